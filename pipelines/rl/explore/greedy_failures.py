"""Only problems that the policy does not solve by its likeliest answer."""

from __future__ import annotations

from pipelines.records import Outcome, Trajectory
from pipelines.rl.account import PROBE, drop
from pipelines.rl.demands import takes
from pipelines.rl.episodes import Answers, Task
from pipelines.rl.explore.samples import samples


@takes(lambda n, **_: (1, n + 1))
async def greedy_failures(task: Task, answers: Answers) -> list[Trajectory]:
    """SELF (The Reasoning Boundary Paradox, arXiv 2510.02230): the policy first answers greedily; `group_size` answers are sampled of the problems
    that it gets wrong so, and of no others. The greedy answer never trains. A step in which every problem is solved has no update.
    """
    probe = await answers.greedy(task.samples)
    await answers.judge(probe)
    asked = [] if probe[0].outcome == Outcome.CORRECT else await samples(task, answers)
    return [*asked, *(drop(trajectory, PROBE) for trajectory in probe)]
