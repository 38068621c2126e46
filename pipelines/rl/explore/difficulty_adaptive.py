"""More answers where fewer are right."""

from __future__ import annotations

import math
from typing import Literal

from pipelines.records import Outcome, Trajectory
from pipelines.rl.account import episodes
from pipelines.rl.demands import takes
from pipelines.rl.episodes import Answers, Task
from pipelines.rl.explore.samples import samples, several

Form = Literal["equal", "hard"]


@takes(lambda n, *, most, **_: (n, max(n, most)))
async def difficulty_adaptive(
    task: Task, answers: Answers, *, form: Form = "equal", most: int = 32, scaled: bool = False
) -> list[Trajectory]:
    """DARS (arXiv 2508.13755): `group_size` episodes, then as many more, up to `most` in all, as the share of right ones calls for (`further`). All
    are one group. scaled: whether the recipe divides advantages by the group's deviation.
    """
    group = await samples(task, answers)
    await answers.judge(group)
    judged = [t for t in episodes(group) if t.outcome != Outcome.INFRASTRUCTURE]
    if not judged:
        return group
    rate = sum(t.outcome == Outcome.CORRECT for t in judged) / len(judged)
    count = further(rate, task.samples, most, form, scaled=scaled)
    return [*group, *await several(answers, range(task.samples, task.samples + count))]


def further(rate: float, count: int, most: int, form: Form, *, scaled: bool = False) -> int:
    """How many answers to add to `count` of which a share of `rate` is right, so that the sum of |A| over the group comes to that of a group half of
    which is right (`equal`), or to 2 (1 - rate) times that (`hard`); none from one half on. Without any right answer half of one counts as right.

    An answer adds 2 rate (1 - rate) to the sum on average, or with scaled advantages its deviation's share, 2 sqrt(rate (1 - rate)).
    """
    if rate >= 0.5:
        return 0
    rate = rate if rate > 1e-6 else 0.5 / count
    each, peak = (2 * math.sqrt(rate * (1 - rate)), float(count)) if scaled else (2 * rate * (1 - rate), 0.5 * count)
    target = peak if form == "equal" else 2 * (1 - rate) * peak
    return max(min(math.ceil((target - count * each) / each - 1e-9), most - count), 0)
