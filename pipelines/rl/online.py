"""Slots of the loop beside the objective: `tasks` (which problems may be drawn) and `recompose` (which of a step's rollouts train, and what
trains beside them).

Their memory is what was answered in earlier steps, which stands on disk as Parquet: nothing of theirs needs a checkpoint.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines import seeding
from pipelines.generation import Generator, respond
from pipelines.records import GUIDE, REPLAY, Outcome, Problem, Rollout
from pipelines.rl import ranks
from pipelines.rl.account import FULL, REPLACED, SPARE, UNIFORM, drop, of_policy, training
from pipelines.rl.data import answered
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

    def add(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """What became of a step, of which what the policy answered in it counts, whether it trains or not."""
        answers = of_policy(rollouts)
        sums: dict[str, float] = defaultdict(float)
        for rollout in answers:
            if rollout.outcome != Outcome.INFRASTRUCTURE:
                self.outcomes[rollout.problem_id].append(rollout.outcome == Outcome.CORRECT)
            for part, value in rollout.reward_parts.items():
                sums[part] += value / len(answers)
        self.rewards_by_part.append(dict(sums))

    def step(self, number: int) -> list[Rollout]:
        """What the policy answered in step `number`."""
        return of_policy(read_rollouts(self.folder / f"step-{number:06d}.parquet"))


@dataclass
class Recomposition:
    """What a `recompose` function may use. more(round) draws and answers as many further problems as the step has, in groups of new ids.

    Such a function gets all rollouts of the step and gives them back: those that train no more with their reason (`account.drop`), and what
    it adds. A further positional parameter that is called as a role (roles.py) is a generator of that policy.
    """

    step: int
    seed: tuple[object, ...]
    problems: Mapping[str, Problem]
    history: History
    pool: VerifierPool
    more: Callable[[int], list[Rollout]]


def drop_high_pass(outcomes: dict[str, list[bool]], problem: Problem, *, at_least: float = 0.9) -> bool:
    """Whether the problem may still be drawn: not once its pass rate over all rollouts so far reaches `at_least` (ScaleRL)."""
    seen = outcomes.get(problem.problem_id)
    return not seen or sum(seen) / len(seen) < at_least


def replay(rollouts: list[Rollout], at: Recomposition, *, probability: float = 0.4, last: int = 2, until: int = 50) -> list[Rollout]:
    """ReMix (arXiv 2507.06892): up to step `until` each group gives way, with the probability, to one of the last `last` steps'."""
    random = seeding.generator(*at.seed, "replay", at.step)
    known = [number for number in range(max(1, at.step - last), at.step) if at.step <= until]
    past = {number: list(_groups(at.history.step(number)).values()) for number in known}
    out = [rollout for rollout in rollouts if rollout.dropped]
    for group_id, group in sorted(_groups(training(rollouts)).items()):
        if known and random.random() < probability and (choice := past[known[int(random.integers(len(known)))]]):
            old = choice[int(random.integers(len(choice)))]
            out += [drop(rollout, REPLACED) for rollout in group]
            out += [replace(rollout, group_id=group_id, origin=REPLAY, dropped="") for rollout in old]
        else:
            out += group
    return out


def inject(rollouts: list[Rollout], at: Recomposition, guide: Generator, *, at_most: float = 0.25, tries: int = 4) -> list[Rollout]:
    """NPO (arXiv 2604.20733): in a group whose pass rate is at most `at_most`, one failed rollout gives way to a verified right one of a
    later checkpoint, if `tries` samples of it hold one."""
    groups = _groups(training(rollouts))
    hard = {g: group for g, group in groups.items() if sum(r.outcome == Outcome.CORRECT for r in group) <= at_most * len(group)}
    guided = dict(zip(hard, _ask_guide(list(hard.values()), at, guide, tries), strict=True))
    out = [rollout for rollout in rollouts if rollout.dropped or rollout.group_id not in hard]
    for group_id, group in hard.items():
        wrong = next((r for r in group if r.outcome not in (Outcome.CORRECT, Outcome.INFRASTRUCTURE)), None)
        right = next((r for r in guided[group_id] if r.outcome == Outcome.CORRECT), None)
        swapped = wrong is not None and right is not None
        out += [drop(r, REPLACED) if swapped and r is wrong else r for r in group]
        out += [r if swapped and r is right else drop(r, SPARE) for r in guided[group_id]]
    return out


def _ask_guide(groups: Sequence[list[Rollout]], at: Recomposition, guide: Generator, tries: int) -> list[list[Rollout]]:
    """`tries` judged responses of the guide to the problem of each of these groups, numbered on from it; every process answers its share."""
    mine = groups[ranks.rank() :: ranks.world()]
    problems = [at.problems[group[0].problem_id] for group in mine]
    samples = respond(guide, problems, tries, (*at.seed, GUIDE, at.step), slots=[group[0].group_id for group in mine])
    verdicts = iter(at.pool.verify_batch([(p, s.text) for p, some in zip(problems, samples, strict=True) for s in some]))
    answers = [
        [
            replace(group[0], sample_id=len(group) + number, policy=GUIDE, origin=GUIDE, **answered(sample, next(verdicts)))
            for number, sample in enumerate(some)
        ]
        for group, some in zip(mine, samples, strict=True)
    ]
    return ranks.collect(answers)


def dynamic_sampling(rollouts: list[Rollout], at: Recomposition, *, rounds: int = 3) -> list[Rollout]:
    """DAPO (arXiv 2503.14476): only groups with some but not all responses right; up to `rounds` further draws fill the batch.

    A batch that stays short stays so; one without any such group is left as it is.
    """
    first = _groups(training(rollouts))
    out, mixed = list(rollouts), _mixed(first)
    for number in range(1, rounds + 1):
        if len(mixed) >= len(first):
            break
        further = at.more(number)
        out += further
        mixed += _mixed(_groups(further))
    kept = set(mixed[: len(first)] or first)
    return [r if r.group_id in kept else drop(r, FULL if r.group_id in mixed else UNIFORM) for r in out]


def _groups(rollouts: Sequence[Rollout]) -> dict[int, list[Rollout]]:
    """By group id, in order."""
    groups: dict[int, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.group_id].append(rollout)
    return groups


def _mixed(groups: Mapping[int, Sequence[Rollout]]) -> list[int]:
    """Ids of the groups with some but not all responses right."""
    return [g for g, group in groups.items() if 0 < sum(r.outcome == Outcome.CORRECT for r in group) < len(group)]


TASKS: dict[str, Callable[..., bool]] = {"drop_high_pass": drop_high_pass}
RECOMPOSE: dict[str, Callable[..., list[Rollout]]] = {"dynamic_sampling": dynamic_sampling, "replay": replay, "inject": inject}
