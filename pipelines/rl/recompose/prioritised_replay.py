"""Groups that say nothing give way to earlier ones that say the most."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipelines import seeding
from pipelines.records import REPLAY, Outcome, Trajectory
from pipelines.rl.account import REPLACED, by_group, drop, mixed, training
from pipelines.rl.recompose.recomposition import Recomposition


def prioritised_replay(
    rollouts: list[Trajectory], at: Recomposition, *, share: float = 0.25, last: int = 8, power: float = 1.0, decay: float = 0.9
) -> list[Trajectory]:
    """Prioritised experience replay (arXiv 1511.05952) over groups: of those whose answers are all right or all wrong, up to a `share` of the step's
    gives way to groups of the `last` steps, each at most once, drawn by (p (1 - p))^power decay^age, p the pass rate and age in steps.

    p (1 - p) is the variance of a 0/1 reward, so the size of the update that the group had when it was new. What is replayed is as old as it is: the
    recipe's ratio or `mismatch` corrects it, and `max_staleness` bounds it.
    """
    groups = by_group(training(rollouts))
    informative = set(mixed(groups))
    idle = [group_id for group_id in sorted(groups) if group_id not in informative][: int(share * len(groups))]
    past: list[tuple[float, list[Trajectory]]] = []
    for number in range(max(1, at.step - last), at.step):
        for group in at.history.groups(number):
            rate = sum(r.outcome == Outcome.CORRECT for r in group) / len(group)
            past.append((((rate * (1 - rate)) ** power) * decay ** (at.step - number), group))
    weights = np.array([weight for weight, _ in past])
    count = min(len(idle), int((weights > 0).sum()))
    if not count:
        return rollouts
    random = seeding.generator(*at.seed, "prioritised replay", at.step)
    chosen = random.choice(len(past), size=count, replace=False, p=weights / weights.sum())
    gone = dict(zip(idle, chosen.tolist(), strict=False))
    out = [drop(r, REPLACED) if r.group_id in gone else r for r in rollouts]
    for group_id, place in gone.items():
        out += [replace(old, group_id=group_id, origin=REPLAY, dropped="") for old in past[place][1]]
    return out
