"""More of the domains that lag behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from pipelines import seeding
from pipelines.records import Problem
from pipelines.rl.history import History, Tally
from pipelines.rl.tasks.draw import Draw


class RuleReasoner:
    """Domain-aware dynamic sampling (RuleReasoner, arXiv 2506.08672): of how many problems each domain gets in a step.

    w_d ~ exp((max(0, target - r_d) + epsilon) / temperature), r_d the mean reward of the domain's last `window` batches, anew every `every` steps; a
    domain that was not drawn yet counts as one at 0. smoothing: weight of the older batches in r_d, batch by batch; 0 takes their plain mean. by:
    what tells domains apart.
    """

    def __init__(
        self,
        *,
        target: float = 1.0,
        epsilon: float = 0.1,
        temperature: float = 0.3,
        window: int = 4,
        every: int = 8,
        smoothing: float = 0.0,
        by: Literal["domain", "source"] = "domain",
    ) -> None:
        self.target, self.epsilon, self.temperature = target, epsilon, temperature
        self.window, self.every, self.smoothing, self.by = window, every, smoothing, by

    def __call__(self, problems: Sequence[Problem], at: Draw) -> list[Problem]:
        pools: dict[str, list[Problem]] = defaultdict(list)
        for problem in problems:
            pools[getattr(problem, self.by)].append(problem)
        names = sorted(pools)
        before = (at.step - 1) // self.every * self.every
        weights = self.weights(self.rewards(names, problems, at.history, before)) if before else np.full(len(names), 1 / len(names))
        random = seeding.generator(*at.key("domains"), at.step)
        chosen: list[Problem] = []
        for name, count in zip(names, random.multinomial(at.count, weights).tolist(), strict=True):
            order = random.permutation(len(pools[name]))
            chosen += [pools[name][order[place % len(order)]] for place in range(count)]
        return chosen

    def rewards(self, names: Sequence[str], problems: Sequence[Problem], history: History, until: int) -> np.ndarray:
        """r_d of each domain after step `until`."""
        domain_of = {problem.problem_id: getattr(problem, self.by) for problem in problems}
        batches: dict[str, list[float]] = {name: [] for name in names}
        for step in sorted(step for step in history.tallies if step <= until):
            for name, batch in _means(history.tallies[step], domain_of).items():
                batches[name].append(batch)
        return np.array([self.smoothed(batches[name][-self.window :]) for name in names])

    def smoothed(self, batches: Sequence[float]) -> float:
        """One figure for the last batches of a domain."""
        if not self.smoothing or not batches:
            return sum(batches) / max(len(batches), 1)
        figure = batches[0]
        for batch in batches[1:]:
            figure = self.smoothing * figure + (1 - self.smoothing) * batch
        return figure

    def weights(self, rewards: np.ndarray) -> np.ndarray:
        """Chance of each domain."""
        score = (np.maximum(self.target - rewards, 0.0) + self.epsilon) / self.temperature
        chance = np.exp(score - score.max())
        return chance / chance.sum()


def _means(tallies: Mapping[str, Tally], domain_of: Mapping[str, str]) -> dict[str, float]:
    """Share of right answers in a step by domain."""
    sums: dict[str, Tally] = defaultdict(Tally)
    for problem_id, tally in tallies.items():
        if problem_id in domain_of:
            total = sums[domain_of[problem_id]]
            total.judged += tally.judged
            total.right += tally.right
    return {name: total.right / total.judged for name, total in sums.items()}
