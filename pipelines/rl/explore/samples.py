"""Independent answers."""

from __future__ import annotations

from pipelines.records import Trajectory
from pipelines.rl.episodes import Answers, Task


async def samples(task: Task, answers: Answers) -> list[Trajectory]:
    """`group_size` episodes that know nothing of each other."""
    episodes = await answers.together([answers.answer(path) for path in range(task.samples)])
    return [trajectory for parts in episodes for trajectory in parts]
