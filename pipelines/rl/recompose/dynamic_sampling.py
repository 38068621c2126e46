"""Only groups that say something."""

from __future__ import annotations

from pipelines.records import Trajectory
from pipelines.rl.account import FULL, UNIFORM, by_group, drop, mixed, training
from pipelines.rl.recompose.recomposition import Recomposition


def dynamic_sampling(rollouts: list[Trajectory], at: Recomposition, *, rounds: int = 3) -> list[Trajectory]:
    """DAPO (arXiv 2503.14476): only groups with some but not all responses right; up to `rounds` further draws fill the batch.

    A batch that stays short stays so; one without any such group is left as it is.
    """
    first = by_group(training(rollouts))
    out, informative = list(rollouts), mixed(first)
    for number in range(1, rounds + 1):
        if len(informative) >= len(first):
            break
        further = at.more(number)
        out += further
        informative += mixed(by_group(further))
    trained = set(informative[: len(first)] or first)
    return [r if r.group_id in trained else drop(r, FULL if r.group_id in informative else UNIFORM) for r in out]
