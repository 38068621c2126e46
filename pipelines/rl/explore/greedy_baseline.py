"""Independent answers, and a greedy one that they are compared with."""

from __future__ import annotations

from pipelines.records import Outcome, Trajectory
from pipelines.rl.account import INFRASTRUCTURE, SPARE, drop
from pipelines.rl.demands import takes
from pipelines.rl.episodes import Answers, Task


@takes(lambda n, **_: (n + 1, n + 1))
async def greedy_baseline(task: Task, answers: Answers) -> list[Trajectory]:
    """ReMax (arXiv 2310.10505): `group_size` episodes, and one in which the policy says the likeliest token each time. That one never trains; its
    reward is the part `greedy` of the others, which `center: {name: greedy}` takes as the baseline. Without a verdict on it the group does not train.
    """
    asked = [*(answers.answer(path) for path in range(task.samples)), answers.greedy(task.samples)]
    episodes = await answers.together(asked)
    group = [trajectory for parts in episodes for trajectory in parts]
    await answers.judge(group)
    baseline = episodes[-1][0]
    known = baseline.outcome != Outcome.INFRASTRUCTURE
    for trajectory in group if known else ():
        trajectory.reward_parts["greedy"] = baseline.reward
    return [drop(t, SPARE if t.sample_id == task.samples else INFRASTRUCTURE) if t.sample_id == task.samples or not known else t for t in group]
