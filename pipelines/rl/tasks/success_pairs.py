"""Problems that are hard but solved at times, with problems that are easy but failed at times."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines import seeding
from pipelines.records import Problem
from pipelines.rl.tasks.draw import Draw, rate


class SuccessPairs:
    """Positive-negative pairing (Beyond Variance, arXiv 2602.03452): half of a step are the problems with the smallest success rates above 0 and up
    to `hard`, the other half those with the largest ones below 1 and from `easy` on; ties go by problem id.

    A success rate is that of the last `visits` steps that answered the problem, before them that of its grading. Where a half has too few, problems
    of which nothing is known take their place, then any others, at random.
    """

    def __init__(self, *, hard: float = 0.25, easy: float = 0.75, visits: int = 4) -> None:
        self.hard, self.easy, self.visits = hard, easy, visits

    def __call__(self, problems: Sequence[Problem], at: Draw) -> list[Problem]:
        rates = [rate(problem, at.history, self.visits) for problem in problems]
        known = [(found, problem.problem_id, problem) for found, problem in zip(rates, problems, strict=True) if found is not None]
        solvable = [problem for found, _, problem in sorted(known, key=lambda each: each[:2]) if 0 < found <= self.hard]
        brittle = [problem for found, _, problem in sorted(known, key=lambda each: (-each[0], each[1])) if self.easy <= found < 1]
        half = at.count // 2
        chosen = [*solvable[: at.count - half], *brittle[:half]]
        order = seeding.generator(*at.key("beside the pairs"), at.step).permutation(len(problems)).tolist()
        there = {problem.problem_id for problem in chosen}
        others = [place for place in order if problems[place].problem_id not in there]
        others.sort(key=lambda place: rates[place] is not None)
        return [*chosen, *(problems[place] for place in others[: at.count - len(chosen)])]
