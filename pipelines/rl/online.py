"""Slots of the loop beside the objective: `tasks` (which problems may be drawn) and `recompose` (what becomes of a batch of
rollouts before it trains).

Their memory is the rollouts of earlier steps, which stand on disk as Parquet: nothing of theirs needs a checkpoint.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines import seeding
from pipelines.generation import Generator, respond
from pipelines.records import Outcome, Problem, Rollout
from pipelines.rl.data import GUIDE, answered
from pipelines.store import read_rollouts
from pipelines.verifiers import VerifierPool


@dataclass
class History:
    """What earlier steps showed: outcomes by problem, mean reward by part and step, and the rollout files themselves."""

    folder: Path
    outcomes: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    rewards_by_part: list[dict[str, float]] = field(default_factory=list)

    def read(self) -> None:
        """Read back the files of a run that was interrupted."""
        for path in sorted(self.folder.glob("step-*.parquet")):
            self.add(int(path.stem.removeprefix("step-")), read_rollouts(path))

    def add(self, step: int, made: Sequence[Rollout]) -> None:
        """The rollouts of a step; what was replayed in it has been counted before."""
        sums: dict[str, float] = defaultdict(float)
        for rollout in made:
            if rollout.step == step:
                self.outcomes[rollout.problem_id].append(rollout.outcome == Outcome.CORRECT)
            for part, value in rollout.reward_parts.items():
                sums[part] += value / len(made)
        self.rewards_by_part.append(dict(sums))

    def step(self, number: int) -> list[Rollout]:
        """The rollouts of step `number`."""
        return read_rollouts(self.folder / f"step-{number:06d}.parquet")


@dataclass
class Recomposition:
    """What a `recompose` function may use. more(round) draws and answers as many further problems as the step has; `guide` generates
    from a frozen policy named by the stage's `reference`."""

    step: int
    seed: tuple[object, ...]
    problems: Mapping[str, Problem]
    history: History
    pool: VerifierPool
    more: Callable[[int], list[Rollout]]
    guide: Generator | None


def drop_high_pass(outcomes: dict[str, list[bool]], problem: Problem, *, at_least: float = 0.9) -> bool:
    """Whether the problem may still be drawn: not once its pass rate over all rollouts so far reaches `at_least` (ScaleRL)."""
    seen = outcomes.get(problem.problem_id)
    return not seen or sum(seen) / len(seen) < at_least


def replay(made: list[Rollout], at: Recomposition, *, probability: float = 0.4, last: int = 2, until: int = 50) -> list[Rollout]:
    """ReMix (arXiv 2507.06892): up to step `until` each group gives way, with the probability, to one of the last `last` steps'."""
    random = seeding.generator(*at.seed, "replay", at.step)
    known = [number for number in range(max(1, at.step - last), at.step) if at.step <= until]
    past: dict[int, list[list[Rollout]]] = {}
    for number in known:
        groups: dict[int, list[Rollout]] = defaultdict(list)
        for rollout in at.history.step(number):
            groups[rollout.group_id].append(rollout)
        past[number] = [group for group in groups.values() if group[0].step == number]  # what was replayed then is older
    out: list[Rollout] = []
    for group_id in sorted({rollout.group_id for rollout in made}):
        mine = [rollout for rollout in made if rollout.group_id == group_id]
        if known and random.random() < probability:
            choice = past[known[int(random.integers(len(known)))]]
            if choice:
                mine = [replace(rollout, group_id=group_id) for rollout in choice[int(random.integers(len(choice)))]]
        out += mine
    return out


def inject(made: list[Rollout], at: Recomposition, *, at_most: float = 0.25, tries: int = 4) -> list[Rollout]:
    """NPO (arXiv 2604.20733): in a group whose pass rate is at most `at_most`, one failed rollout gives way to a verified right one of a
    later checkpoint, if `tries` samples of it hold one."""
    assert at.guide is not None
    by_group: dict[int, list[int]] = defaultdict(list)
    for place, rollout in enumerate(made):
        by_group[rollout.group_id].append(place)
    hard = [g for g, rows in by_group.items() if sum(made[row].outcome == Outcome.CORRECT for row in rows) <= at_most * len(rows)]
    problems = [at.problems[made[by_group[g][0]].problem_id] for g in hard]
    groups = respond(at.guide, problems, tries, (*at.seed, "guide", at.step), slots=hard)
    verdicts = iter(at.pool.verify_batch([(p, s.text) for p, samples in zip(problems, groups, strict=True) for s in samples]))
    out = list(made)
    for group, samples in zip(hard, groups, strict=True):
        judged = [(sample, next(verdicts)) for sample in samples]
        right = next(((sample, verdict) for sample, verdict in judged if verdict.correct), None)
        wrong = next((row for row in by_group[group] if made[row].outcome not in (Outcome.CORRECT, Outcome.INFRASTRUCTURE)), None)
        if right and wrong is not None:
            out[wrong] = replace(made[wrong], policy=GUIDE, **answered(*right))
    return out


def dynamic_sampling(made: list[Rollout], at: Recomposition, *, rounds: int = 3) -> list[Rollout]:
    """DAPO (arXiv 2503.14476): only groups with some but not all responses right; up to `rounds` further draws fill the batch.

    A batch that stays short stays so; one without any such group is left as it is.
    """
    wanted = len({rollout.group_id for rollout in made})
    mixed = _mixed(made)
    for number in range(1, rounds + 1):
        if len(mixed) >= wanted:
            break
        mixed += _mixed(at.more(number))
    groups = [[replace(rollout, group_id=number) for rollout in group] for number, group in enumerate(mixed[:wanted])]
    return [rollout for group in groups for rollout in group] or made


def _mixed(made: Sequence[Rollout]) -> list[list[Rollout]]:
    """Groups with some but not all responses right."""
    groups: dict[int, list[Rollout]] = defaultdict(list)
    for rollout in made:
        groups[rollout.group_id].append(rollout)
    return [group for group in groups.values() if 0 < sum(r.outcome == Outcome.CORRECT for r in group) < len(group)]


TASKS: dict[str, Callable[..., bool]] = {"drop_high_pass": drop_high_pass}
RECOMPOSE: dict[str, Callable[..., list[Rollout]]] = {"dynamic_sampling": dynamic_sampling, "replay": replay, "inject": inject}
