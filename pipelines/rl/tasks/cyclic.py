"""A curriculum that begins again and again: the easiest share of the problems, more, all."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipelines import seeding
from pipelines.records import Problem
from pipelines.rl.demands import Need, needs
from pipelines.rl.tasks.draw import Draw


@needs(Need.RATES)
class Cyclic:
    """Modified cyclical curriculum learning (MCCL): epoch after epoch the easiest `first` of the problems, twice as many, and so on up to all; then
    from the start, `cycle` epochs in all. In each epoch problems that were made from others (`parents`) come after those that were not.

    How hard a problem is, its `difficulty` says: 1 - the pass rate of its grading, or the source's own. Ties go by problem id; those without come
    last.
    """

    def __init__(self, *, first: float = 0.25, cycle: int = 3) -> None:
        self.first, self.cycle = first, cycle

    def share(self, epoch: int) -> float:
        """Which share of the problems, the easiest, an epoch has; epochs count from 0."""
        return min(self.first * 2 ** (epoch % self.cycle), 1.0)

    def __call__(self, problems: Sequence[Problem], at: Draw) -> list[Problem]:
        sizes = [math.ceil(self.share(epoch) * len(problems)) for epoch in range(self.cycle)]
        ranked = sorted(problems, key=lambda p: (math.inf if p.difficulty is None else p.difficulty, p.problem_id))
        orders: dict[int, list[Problem]] = {}
        chosen = []
        for position in range((at.step - 1) * at.count, at.step * at.count) if problems else ():
            cycles, place = divmod(position, sum(sizes))
            epoch = 0
            while place >= sizes[epoch]:
                place, epoch = place - sizes[epoch], epoch + 1
            number = cycles * self.cycle + epoch
            if number not in orders:
                order = seeding.generator(*at.key("cycle"), number).permutation(sizes[epoch])
                orders[number] = sorted((ranked[each] for each in order), key=lambda problem: bool(problem.parents))
            chosen.append(orders[number][place])
        return chosen
