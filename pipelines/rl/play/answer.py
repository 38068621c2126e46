"""The policy answers the problem that was drawn, and that is all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.records import Problem, Trajectory
from pipelines.rl.episodes import Round, Task


class Answer:
    """One group."""

    width = 1

    async def __call__(self, task: Task, at: Round) -> list[Trajectory]:
        """See `Play`."""
        return await at.answer(task)

    def problems(self, trajectories: Sequence[Trajectory], known: Mapping[str, Problem]) -> dict[str, Problem]:
        """See `Play`."""
        return {}
