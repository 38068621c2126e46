"""Only groups that say something."""

from __future__ import annotations

from pipelines.records import REPLAY, Trajectory
from pipelines.rl.account import FULL, UNIFORM, below, by_group, drop, mixed, training
from pipelines.rl.demands import takes
from pipelines.rl.recompose.recomposition import Recomposition


@takes(lambda n, *, rounds, **_: (n, n * (1 + rounds)))
def dynamic_sampling(
    rollouts: list[Trajectory], at: Recomposition, *, rounds: int = 3, recover: bool = False, share: float = 1.0
) -> list[Trajectory]:
    """DAPO (arXiv 2503.14476): only groups with some but not all responses right; up to `rounds` further draws fill the batch. recover: those for
    which the step before had no place head it, one update old and with no correction for that (Recent Sample Recovery, arXiv 2506.18330). share: with
    less than 1 the batch draws until so much of it is such groups, and groups of one outcome have the places that are left (GPG, arXiv 2504.02546).

    A batch that stays short stays so; one without any such group is left as it is.
    """
    first = by_group(training(rollouts))
    recovered = below(rollouts, _without_place(at), REPLAY) if recover and at.step > 1 else []
    out, informative = [*recovered, *rollouts], [*by_group(recovered), *mixed(first)]
    for number in range(1, rounds + 1):
        if len(informative) >= share * len(first):
            break
        further = at.more(number)
        out += further
        informative += mixed(by_group(further))
    others = [group_id for group_id in by_group(training(out)) if group_id not in informative] if share < 1 else []
    trained = set([*informative, *others][: len(first)] or first)
    return [r if r.group_id in trained else drop(r, FULL if r.group_id in informative else UNIFORM) for r in out]


def _without_place(at: Recomposition) -> list[list[Trajectory]]:
    """The groups that the step before had too many of."""
    return list(by_group(r for r in at.history.step(at.step - 1) if r.dropped == FULL).values())
