"""Problems that the policy has learned are drawn no more."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.records import Problem
from pipelines.rl.tasks.draw import Draw


class DropHighPass:
    """ScaleRL (arXiv 2510.13786): not once a problem's pass rate over all answers so far reaches `at_least`."""

    def __init__(self, *, at_least: float = 0.9) -> None:
        self.at_least = at_least

    def __call__(self, problems: Sequence[Problem], at: Draw) -> list[Problem]:
        totals = at.history.totals
        return [p for p in problems if p.problem_id not in totals or totals[p.problem_id].right < self.at_least * totals[p.problem_id].judged]
