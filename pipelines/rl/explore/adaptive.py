"""Answers in rounds, until a group says enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pipelines.records import Outcome, Trajectory
from pipelines.rl.account import SPARE, drop, episodes
from pipelines.rl.demands import takes
from pipelines.rl.episodes import Answers, Task
from pipelines.rl.explore.samples import several


@takes(lambda _, *, rounds, per_round, **_more: (per_round, rounds * per_round))
async def adaptive(
    task: Task, answers: Answers, *, rounds: int = 4, per_round: int = 8, above: float = 0.7, until: Literal["balanced", "positive"] = "balanced"
) -> list[Trajectory]:
    """Reinforce-Ada (arXiv 2510.04996): up to `rounds` rounds of `per_round` episodes, until the group has enough of both outcomes (`balanced`:
    half of `group_size` with a reward above `above`, and half without) or one right answer (`positive`). Of all, `group_size` train; their part
    `pool_mean` is the mean reward of all, which `center: {name: pool_mean}` takes as the baseline.
    """
    pool: list[Trajectory] = []
    for number in range(rounds):
        more = await several(answers, range(number * per_round, (number + 1) * per_round))
        await answers.judge(more)
        pool += more
        judged = [t for t in episodes(pool) if t.outcome != Outcome.INFRASTRUCTURE]
        positive = sum(t.reward > above for t in judged)
        negative = len(judged) - positive
        if positive >= (task.samples / 2 if until == "balanced" else 1) and (until == "positive" or negative >= task.samples / 2):
            break
    rewards = [t.reward for t in episodes(pool) if t.outcome != Outcome.INFRASTRUCTURE]
    for trajectory in pool if rewards else ():
        trajectory.reward_parts["pool_mean"] = sum(rewards) / len(rewards)
    chosen = {t.sample_id for t in down_sampled(episodes(pool), task.samples, above)}
    return [t if t.sample_id in chosen else drop(t, SPARE) for t in pool]


def down_sampled(pool: Sequence[Trajectory], count: int, above: float) -> list[Trajectory]:
    """`count` of them: half with a reward above `above` where there are as many, the others filled up with those that there are."""
    judged = [t for t in pool if t.outcome != Outcome.INFRASTRUCTURE]
    positive, negative = [t for t in judged if t.reward > above], [t for t in judged if t.reward <= above]
    first = positive[: count // 2]
    second = negative[: count - len(first)]
    return [*first, *second, *positive[len(first) : count - len(second)]]
