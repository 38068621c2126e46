"""A share of every step for what was learnt earlier."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from pipelines import seeding
from pipelines.records import Problem
from pipelines.rl.history import History
from pipelines.rl.tasks.draw import Draw, draw


class Rehearsal:
    """Power-law rehearsal (arXiv 2401.10393): `share` of a step's problems are of earlier tasks, the others of the main one.

    Task j is rehearsed with probability d_j^-power / sum_i d_i^-power, d_j the steps since one of its problems was last drawn, or since the stage
    began; power 0 draws all alike, which is plain replay of other data (RECAP, arXiv 2510.21978). by: what tells tasks apart. main: name of the main
    task; "" is that of the first problem, so of what `data` names first. bank: most problems that an earlier task keeps, drawn by the seed. Where
    there is no earlier task, or a step is too small for one of its problems, all are drawn as they come.
    """

    def __init__(
        self, *, by: Literal["domain", "source"] = "domain", main: str = "", share: float = 0.2, power: float = 1.0, bank: int = 1000
    ) -> None:
        self.by, self.main, self.share, self.power, self.bank = by, main, share, power, bank

    def __call__(self, problems: Sequence[Problem], at: Draw) -> Sequence[Problem]:
        tasks: dict[str, list[Problem]] = defaultdict(list)
        for problem in problems:
            tasks[getattr(problem, self.by)].append(problem)
        main = tasks.pop(self.main or next(iter(tasks), ""), [])
        count = round(self.share * at.count)
        if not (main and tasks and count):
            return problems
        names = sorted(tasks)
        banks = {name: self._bank(tasks[name], name, at) for name in names}
        random = seeding.generator(*at.key("rehearsal"), at.step)
        counts = random.multinomial(count, self.chances(since([banks[name] for name in names], at.step, at.history)))
        rehearsed: list[Problem] = []
        for name, drawn in zip(names, counts.tolist(), strict=True):
            order = random.permutation(len(banks[name]))
            rehearsed += [banks[name][order[place % len(order)]] for place in range(drawn)]
        return [*draw(main, [], Draw(at.count - count, at.seed, at.step, at.number, at.history)), *rehearsed]

    def chances(self, since: np.ndarray) -> np.ndarray:
        """P(j) of tasks that were last drawn so many steps ago."""
        weights = since.astype(float) ** -self.power
        return weights / weights.sum()

    def _bank(self, problems: Sequence[Problem], name: str, at: Draw) -> Sequence[Problem]:
        if len(problems) <= self.bank:
            return problems
        return [problems[place] for place in seeding.generator(*at.seed, "bank", name).permutation(len(problems))[: self.bank]]


def since(tasks: Sequence[Sequence[Problem]], step: int, history: History) -> np.ndarray:
    """Steps since one of each task's problems was last drawn, 1 if it was in the step before; before the first time those of the whole stage."""
    task_of = {problem.problem_id: number for number, problems in enumerate(tasks) for problem in problems}
    last = np.zeros(len(tasks), int)
    for number in sorted(n for n in history.tallies if n < step):
        for problem_id in history.tallies[number]:
            if problem_id in task_of:
                last[task_of[problem_id]] = number
    return step - last
