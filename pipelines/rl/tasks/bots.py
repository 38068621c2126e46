"""Problems whose pass rate is believed to be near a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines import seeding
from pipelines.records import Problem
from pipelines.rl.history import Tally
from pipelines.rl.tasks.draw import Draw, likeliest


class Bots:
    """Bayesian online task selection (BOTS, arXiv 2510.26374): a Beta belief on each problem's pass rate.

    forget: how far a step pulls every belief back to Beta(1, 1). interpolate: weight of what the pass rates of the grading say of a problem that was
    not answered, as of `samples` answers; it says nothing of a problem that was not graded. strong: pass rate of the strong model that the paper
    interpolates to. target: the pass rate sought. temperature: 0 takes the nearest, else they are drawn without replacement by
    softmax(-distance / temperature). thompson: distance of a sample of the belief, else of its mean.
    """

    def __init__(
        self,
        *,
        forget: float = 0.1,
        interpolate: float = 0.1,
        samples: int = 16,
        strong: float = 1.0,
        target: float = 0.5,
        temperature: float = 0.0,
        thompson: bool = True,
        smoothing: float = 0.9,
    ) -> None:
        self.forget, self.interpolate, self.samples, self.strong = forget, interpolate, samples, strong
        self.target, self.temperature, self.thompson, self.smoothing = target, temperature, thompson, smoothing
        self.beliefs: dict[str, tuple[float, float]] = {}
        """By problem (alpha, beta)."""
        self.capability: float | None = None
        """How far the policy is from the graded model, at 0, to the strong one, at 1."""
        self._seen = 0

    def __call__(self, problems: Sequence[Problem], at: Draw) -> list[Problem]:
        for step in sorted(step for step in at.history.tallies if step > self._seen):
            self.observe(problems, at.history.tallies[step])
            self._seen = step
        random = seeding.generator(*at.key("bots"), at.step)
        alpha, beta = np.array([self.beliefs.get(p.problem_id, (1.0, 1.0)) for p in problems]).T
        rates = random.beta(alpha, beta) if self.thompson else alpha / (alpha + beta)
        score = -np.abs(self.target - rates)
        return likeliest(problems, score / (self.temperature or 1.0), at.count, random if self.temperature else None)

    def observe(self, problems: Sequence[Problem], tallies: Mapping[str, Tally]) -> None:
        """Update every belief by one step's answers."""
        seen = [(p, t.right / t.judged) for p in problems if (t := tallies.get(p.problem_id)) and t.judged]
        graded = [(p.pass_rate, rate) for p, rate in seen if p.pass_rate is not None]
        if graded:
            weak, answered = np.array(graded).mean(0)
            raw = (answered - weak) / (self.strong - weak + 1e-6)
            self.capability = raw if self.capability is None else self.smoothing * self.capability + (1 - self.smoothing) * raw
        rates = {p.problem_id: rate for p, rate in seen}
        for problem in problems:
            believed = rates.get(problem.problem_id)
            right = wrong = 0.0
            if believed is not None:
                tally = tallies[problem.problem_id]
                right, wrong = float(tally.right), float(tally.judged - tally.right)
            elif problem.pass_rate is not None and self.capability is not None:
                believed = min(max(problem.pass_rate + self.capability * (self.strong - problem.pass_rate), 0.0), 1.0)
            weight = self.interpolate if believed is not None else 0.0
            count = right + wrong or self.samples
            alpha, beta = self.beliefs.get(problem.problem_id, (1.0, 1.0))
            keep, pull = 1 - self.forget, self.forget
            self.beliefs[problem.problem_id] = (
                keep * alpha + pull + (1 - weight) * right + weight * (believed or 0.0) * count,
                keep * beta + pull + (1 - weight) * wrong + weight * (1 - (believed or 0.0)) * count,
            )
