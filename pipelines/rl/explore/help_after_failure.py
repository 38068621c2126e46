"""Answers without help, and where all fail again with help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pipelines.records import Outcome, Trajectory
from pipelines.rl.account import REPLACED, drop, episodes
from pipelines.rl.demands import Need, needs, takes
from pipelines.rl.episodes import Answers, Task


@needs(Need.SOLUTIONS)
@takes(lambda n, *, shares, **_: (n, n * (1 + len(shares))))
async def help_after_failure(
    task: Task, answers: Answers, *, shares: Sequence[float] = (0.5,), trained: Literal["all", "last"] = "all"
) -> list[Trajectory]:
    """`group_size` episodes without help; while none of the last round is right, as many with the next of these shares of the guidance's help.
    trained: all of them are one group (Guide, arXiv 2506.13923), or the last round alone is (GHPO, arXiv 2507.10628)."""
    group = last = await _round(task, answers, 0, 0.0)
    for number, share in enumerate(shares, 1):
        await answers.judge(last)
        if not task.problem.solution or not failed(last):
            break
        last = await _round(task, answers, number, share)
        group = [*([drop(t, REPLACED) for t in group] if trained == "last" else group), *last]
    return group


async def _round(task: Task, answers: Answers, number: int, share: float) -> list[Trajectory]:
    asked = [answers.answer(number * task.samples + path, share) for path in range(task.samples)]
    return [trajectory for parts in await answers.together(asked) for trajectory in parts]


def failed(group: Sequence[Trajectory]) -> bool:
    """Whether some of these could be judged and none of them is right."""
    judged = [t for t in episodes(group) if t.outcome != Outcome.INFRASTRUCTURE]
    return bool(judged) and all(t.outcome != Outcome.CORRECT for t in judged)
