"""Groups of earlier steps train again."""

from __future__ import annotations

from dataclasses import replace

from pipelines import seeding
from pipelines.records import REPLAY, Trajectory
from pipelines.rl.account import REPLACED, by_group, drop, training
from pipelines.rl.recompose.recomposition import Recomposition


def replay(rollouts: list[Trajectory], at: Recomposition, *, probability: float = 0.4, last: int = 2, until: int = 50) -> list[Trajectory]:
    """ReMix (arXiv 2507.06892): up to step `until` each group gives way, with the probability, to one of the last `last` steps'."""
    random = seeding.generator(*at.seed, "replay", at.step)
    known = [number for number in range(max(1, at.step - last), at.step) if at.step <= until]
    past = {number: at.history.groups(number) for number in known}
    out = [rollout for rollout in rollouts if rollout.dropped]
    for group_id, group in sorted(by_group(training(rollouts)).items()):
        if known and random.random() < probability and (choice := past[known[int(random.integers(len(known)))]]):
            old = choice[int(random.integers(len(choice)))]
            out += [drop(rollout, REPLACED) for rollout in group]
            out += [replace(rollout, group_id=group_id, origin=REPLAY, dropped="") for rollout in old]
        else:
            out += group
    return out
