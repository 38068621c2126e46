"""The problems of a step: what the recipe's `tasks` leave of all, in an order that the seed gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines import seeding
from pipelines.records import Problem
from pipelines.rl.history import History


@dataclass(frozen=True)
class Draw:
    """One draw of `count` problems. step: 1, 2, ...; number: 0 of the step's own, then of further ones. seed: (run, stage). history: of the steps
    before, where answers are judged by the time of the draw."""

    count: int
    seed: tuple[object, ...]
    step: int
    number: int
    history: History

    def key(self, purpose: str) -> tuple[object, ...]:
        """What randomness of this draw depends on."""
        run, stage = self.seed
        return (run, (stage, f"draw {self.number}") if self.number else stage, purpose)


Choose = Callable[[Sequence[Problem], Draw], Sequence[Problem]]
"""A task sampler of one run: those of the problems that may be drawn, `count` of them where it draws itself. It may remember earlier calls."""


def draw(problems: Sequence[Problem], samplers: Sequence[Choose], at: Draw) -> list[Problem]:
    """`at.count` problems: every one once per epoch, in an order keyed by (seed, stage, epoch).

    Where the samplers choose, they are drawn among what those leave at random, each as often as it stands there while they last; where nothing is
    left, among all.
    """
    left = problems
    for choose in samplers:
        left = choose(left, at)
    if left and list(left) != list(problems):
        order = seeding.generator(*at.key("order among the eligible"), at.step).permutation(len(left))
        return [left[order[place % len(left)]] for place in range(at.count)]
    first = (at.step - 1) * at.count
    drawn = []
    orders: dict[int, list[int]] = {}
    for position in range(first, first + at.count):
        epoch, inside = divmod(position, len(problems))
        if epoch not in orders:
            orders[epoch] = list(seeding.generator(*at.key("order"), epoch).permutation(len(problems)))
        drawn.append(problems[orders[epoch][inside]])
    return drawn


def rate(problem: Problem, history: History, visits: int = 1) -> float | None:
    """Share of right answers in the last `visits` steps that answered the problem; before its first one the pass rate of its grading, None
    without."""
    seen = history.visits.get(problem.problem_id, [])[-visits:]
    return sum(tally.right for tally in seen) / sum(tally.judged for tally in seen) if seen else problem.pass_rate


def likeliest(problems: Sequence[Problem], score: np.ndarray, count: int, random: np.random.Generator | None = None) -> list[Problem]:
    """The `count` of the highest score; with `random` a draw without replacement by softmax(score)."""
    if random is not None:
        score = score + random.gumbel(size=len(problems))  # the largest are such a draw
    return [problems[place] for place in np.argsort(-score, kind="stable")[:count]]
