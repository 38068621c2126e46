"""Problems of middling difficulty come more often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines import seeding
from pipelines.records import Problem
from pipelines.rl.tasks.draw import Draw, likeliest, rate


class Rlcs:
    """Reinforcement learning with curriculum sampling (RLCS; GLM-4.1V-Thinking, arXiv 2507.01006): each problem stands in a bucket by its pass rate,
    that of the grading until the policy answers it and then of its last answers, and is drawn without replacement by the bucket's weight.

    bounds: a rate below the first is too hard, one above the second too easy. weights: of `hard`, `medium`, `easy`; a problem of which nothing is
    known is medium.
    """

    def __init__(self, *, bounds: tuple[float, float] = (0.2, 0.8), weights: Mapping[str, float] | None = None) -> None:
        self.bounds, self.weights = bounds, {"hard": 0.25, "medium": 1.0, "easy": 0.25} | dict(weights or {})

    def __call__(self, problems: Sequence[Problem], at: Draw) -> list[Problem]:
        weights = np.array([self.weights[self.bucket(rate(problem, at.history))] for problem in problems])
        possible = [problem for problem, weight in zip(problems, weights, strict=True) if weight > 0]
        return likeliest(possible, np.log(weights[weights > 0]), at.count, seeding.generator(*at.key("buckets"), at.step))

    def bucket(self, known: float | None) -> str:
        """Where a problem of that pass rate stands."""
        if known is None or self.bounds[0] <= known <= self.bounds[1]:
            return "medium"
        return "hard" if known < self.bounds[0] else "easy"
