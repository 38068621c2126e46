"""Independent answers."""

from __future__ import annotations

from collections.abc import Iterable

from pipelines.records import Trajectory
from pipelines.rl.episodes import Answers, Task


async def samples(task: Task, answers: Answers) -> list[Trajectory]:
    """`group_size` episodes that know nothing of each other."""
    return await several(answers, range(task.samples))


async def several(answers: Answers, paths: Iterable[int]) -> list[Trajectory]:
    """The episodes of these numbers, side by side, not yet judged."""
    episodes = await answers.together([answers.answer(path) for path in paths])
    return [trajectory for parts in episodes for trajectory in parts]
