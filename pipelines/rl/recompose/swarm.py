"""Groups of other runs beside one's own, over a folder that the runs share."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import re
import stat
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines import seeding
from pipelines.errors import UserError
from pipelines.models import ranks
from pipelines.records import SHARED, Trajectory
from pipelines.rl.account import PROBE, SPARE, below, by_group, mixed, of_policy, training
from pipelines.rl.adopting import Adopting
from pipelines.rl.demands import Need, needs, takes
from pipelines.rl.recompose.recomposition import Recomposition, further
from pipelines.store import write_json

FOLDER = "TOUCHSTONE_SWARM"
"""Environment variable that names the folder."""
NODE = re.compile("[0-9a-f]{16}")
LARGEST = 64 * 2**20
"""Bytes of a file that are read."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class SharedAnswer(_Strict):
    """An answer as text. ended: it ends there; else it was cut at its limit."""

    text: str
    ended: bool


class SharedGroup(_Strict):
    """The answers to one problem, whose id is the hash of what it asks and of its answer."""

    problem_id: str
    answers: Annotated[list[SharedAnswer], Field(min_length=2, max_length=1024)]


class SharedStep(_Strict):
    """What a run has in the folder: the answers of its newest step, in the file NODE.json."""

    step: int
    groups: list[SharedGroup]


@needs(Need.RUNS)
@takes(lambda n, *, external, **_: (n, math.ceil(n * (1 + external))))
def swarm(rollouts: list[Trajectory], at: Recomposition, *, external: float = 1.0) -> list[Trajectory]:
    """Swarm sampling policy optimisation (SAPO, 'Sharing is Caring', arXiv 2509.08721): beside the groups of the step train `external` times as many
    of other runs, drawn uniformly from those with both outcomes in the newest step of each, and those that are lacking the policy answers itself.

    Runs exchange text through the folder that TOUCHSTONE_SWARM names. A group is taken if its problem is one of this stage's; tokens, verdicts,
    rewards and log-probabilities are this run's own, so that ratios begin at 1. A step of another run is taken from once. What cannot be read,
    or is no such file, is passed over. What was taken is in the ledger and in the rollouts.

    Raises:
        UserError: TOUCHSTONE_SWARM is not set, or names no folder.
    """
    folder, adopting = shared_folder(), at.adopting
    assert adopting is not None  # a run always has it
    node = node_of(adopting.ledger.folder)
    if ranks.rank() == 0:
        write_json(folder / f"{node}.json", _shared(rollouts, at.step).model_dump())
    local = len(by_group(training(rollouts)))
    wanted = round(external * local)
    taken = list(by_group(adopting.taken(lambda: _chosen(folder, node, at, adopting, wanted))).values())
    return [*rollouts, *below(rollouts, taken, SHARED), *further(at, wanted - len(taken), local)]


def shared_folder() -> Path:
    """The folder that the runs share.

    Raises:
        UserError: TOUCHSTONE_SWARM is not set, or names no folder.
    """
    folder = os.environ.get(FOLDER)
    if not folder or not Path(folder).is_dir():
        said = f"is {folder}, which is no folder" if folder else "is not set"
        raise UserError(f"recompose 'swarm' exchanges answers with other runs in the folder that {FOLDER} names, which {said}")
    return Path(folder)


def node_of(ledger: Path) -> str:
    """What a run is called among others: it follows from where it runs, so a run that goes on is the same."""
    return hashlib.sha256(f"{platform.node()}:{ledger.resolve()}".encode()).hexdigest()[:16]


def _shared(rollouts: list[Trajectory], step: int) -> SharedStep:
    """The step's own groups whose answers are text alone: of one turn, and without help."""
    groups = by_group(r for r in of_policy(rollouts) if r.dropped not in (PROBE, SPARE))
    plain = [group for group in groups.values() if len(group) > 1 and all(len(r.turns) == 1 and r.trained_prompt is None for r in group)]
    said = [[SharedAnswer(text=r.response, ended=r.finish_reason == "stop") for r in group] for group in plain]
    named = [SharedGroup(problem_id=group[0].problem_id, answers=answers) for group, answers in zip(plain, said, strict=True)]
    return SharedStep(step=step, groups=named)


def _chosen(folder: Path, node: str, at: Recomposition, adopting: Adopting, wanted: int) -> list[Trajectory]:
    """`wanted` groups of other runs, or as many as there are: in a random order the first that have both outcomes."""
    found = [
        (f"{path.stem}@{step.step}", group)
        for path in sorted(folder.glob("*.json"))
        if NODE.fullmatch(path.stem) and path.stem != node and (step := read(path)) and f"{path.stem}@{step.step}" not in at.history.shared
        for group in step.groups
        if group.problem_id in at.problems
    ]
    taken: list[list[Trajectory]] = []
    for place in seeding.generator(*at.seed, "swarm", at.step).permutation(len(found)).tolist():
        if len(taken) == wanted:
            break
        whose, group = found[place]
        said = [(answer.text, answer.ended) for answer in group.answers]
        judged = adopting.judged(at.problems[group.problem_id], said, len(taken), whose)
        if mixed({0: judged}):
            taken.append(judged)
    return [t for group in taken for t in group]


def read(path: Path) -> SharedStep | None:
    """What another run has put there; None where it is torn, foreign, too large or gone."""
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
            return None
        return SharedStep.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
