"""Short right and long wrong answers first; what is left over trains now and then."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from pipelines import seeding
from pipelines.records import REPLAY, Outcome, Trajectory
from pipelines.rl.account import BUFFERED, below, by_group, drop, episodes, training
from pipelines.rl.recompose.recomposition import Recomposition


def response_recomposition(
    rollouts: list[Trajectory], at: Recomposition, *, keep: float = 0.8, chance: float = 1.0, decay: float = 0.98, last: int = 8
) -> list[Trajectory]:
    """RoRecomp (arXiv 2509.25958): of all right answers of the step the shortest train, of all wrong ones the longest, a share `keep` of either (the
    priority batch). The others wait, at most `last` steps; with probability chance * decay^(step - 1) all that wait train beside it (the compensation
    batch), each once. Rewards stay; part `pool_mean` is the mean reward of the whole group, for `center: {name: pool_mean}`.
    """
    first = priority(training(rollouts), keep)
    means = {group_id: _mean_reward(group) for group_id, group in by_group(training(rollouts)).items()}
    out = []
    for r in rollouts:
        if not r.dropped:
            r = replace(r, reward_parts={"pool_mean": means[r.group_id]} | r.reward_parts)
        waits = r.outcome != Outcome.INFRASTRUCTURE and (r.group_id, r.sample_id) not in first
        out.append(drop(r, BUFFERED) if waits else r)
    return [*out, *below(out, _waiting(at, chance, decay, last), REPLAY)] if _compensates(at, at.step, chance, decay) else out


def priority(rollouts: Sequence[Trajectory], keep: float) -> set[tuple[int, int]]:
    """Group and number of the episodes that train first."""
    lengths: dict[tuple[int, int], int] = defaultdict(int)
    for r in rollouts:
        lengths[r.group_id, r.sample_id] += r.written
    judged = [r for r in episodes(rollouts) if r.outcome != Outcome.INFRASTRUCTURE]
    right = sorted((lengths[r.group_id, r.sample_id], r.group_id, r.sample_id) for r in judged if r.outcome == Outcome.CORRECT)
    wrong = sorted((-lengths[r.group_id, r.sample_id], r.group_id, r.sample_id) for r in judged if r.outcome != Outcome.CORRECT)
    return {(group_id, sample_id) for some in (right, wrong) for _, group_id, sample_id in some[: math.ceil(keep * len(some))]}


def _mean_reward(group: Sequence[Trajectory]) -> float:
    rewards = [r.reward for r in episodes(group) if r.outcome != Outcome.INFRASTRUCTURE]
    return sum(rewards) / max(len(rewards), 1)


def _compensates(at: Recomposition, step: int, chance: float, decay: float) -> bool:
    """Whether what waits trains in a step; known of every step, so that nobody needs to remember what has trained."""
    return seeding.generator(*at.seed, "compensation", step).random() < chance * decay ** (step - 1)


def _waiting(at: Recomposition, chance: float, decay: float, last: int) -> list[list[Trajectory]]:
    """What was left over since the last compensation batch, by group, in order."""
    waiting: list[list[Trajectory]] = []
    for step in range(at.step - 1, max(0, at.step - 1 - last), -1):
        waiting = [*by_group(r for r in at.history.step(step) if r.dropped == BUFFERED).values(), *waiting]
        if _compensates(at, step, chance, decay):
            break  # it took what was there before; its own step's came after it
    return waiting
