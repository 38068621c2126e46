"""A curriculum in stages: simple problems, then harder ones."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal

from pipelines.errors import UserError
from pipelines.records import Problem
from pipelines.rl.tasks.draw import Draw

BINARY = ({"yes", "no"}, {"true", "false"})
_LEVEL = re.compile(r"level (\d+(?:\.\d+)?)")


def form(problem: Problem) -> float:
    """How free an answer is: 0 yes or no, 1 multiple choice, 2 open."""
    options = problem.args.get("options")
    texts = {str(text).casefold() for text in (options.values() if isinstance(options, dict) else options or [problem.answer])}
    if any(texts <= pair for pair in BINARY):
        return 0.0
    return 1.0 if problem.verifier == "choice" else 2.0


def level(problem: Problem) -> float | None:
    """N of the topic `level N`."""
    found = [match[1] for topic in problem.topics if (match := _LEVEL.fullmatch(topic))]
    return float(found[0]) if found else None


def working(problem: Problem) -> float | None:
    """Lines of the worked solution."""
    return None if problem.solution is None else float(sum(bool(line.strip()) for line in problem.solution.splitlines()))


MEASURES: dict[str, Callable[[Problem], float | None]] = {
    "difficulty": lambda problem: problem.difficulty,
    "form": form,
    "level": level,
    "working": working,
}


class Staged:
    """One stage after the other, by a measure of each problem: `difficulty` (1 - pass rate of the grading, or the source's own), `form` of the answer
    (0 yes or no, 1 choice, 2 open), `level` (N of the topic `level N`), or `working` (lines of the worked solution).

    bounds: a problem belongs to the first stage whose bound it does not exceed, those above all of them to one more, and so do those without the
    measure. until: the last step of each stage but the last. cumulative: a stage has the problems of those before it too (CRAFT-GUI, arXiv
    2508.11360); otherwise its own alone (Curr-ReFT, arXiv 2503.07065).

    Raises:
        UserError: bounds or steps do not rise, or there is not one step for each bound.
    """

    def __init__(
        self, *, by: Literal["difficulty", "form", "level", "working"], bounds: Sequence[float], until: Sequence[int], cumulative: bool = False
    ) -> None:
        if len(bounds) != len(until) or any(list(each) != sorted(set(each)) for each in (bounds, until)):
            raise UserError(
                f"tasks 'staged': expected rising bounds, and as many rising steps until which each lasts, got {list(bounds)} and {list(until)}"
            )
        self.measure, self.bounds, self.until, self.cumulative = MEASURES[by], tuple(bounds), tuple(until), cumulative

    def __call__(self, problems: Sequence[Problem], at: Draw) -> list[Problem]:
        now = bisect_left(self.until, at.step)
        return [problem for problem in problems if (self.stage(problem) <= now if self.cumulative else self.stage(problem) == now)]

    def stage(self, problem: Problem) -> int:
        """Number of the problem's stage, from 0."""
        value = self.measure(problem)
        return len(self.bounds) if value is None else bisect_left(self.bounds, value)
