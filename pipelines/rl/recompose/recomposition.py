"""What a function of the slot `recompose` is given beside the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pipelines.records import Problem, Trajectory
from pipelines.rl.adopting import Adopting
from pipelines.rl.history import History
from pipelines.rl.rewards import Rewards


class More(Protocol):
    """Judged answers to further problems of a step."""

    def __call__(self, number: int, count: int | None = None) -> list[Trajectory]:
        """Those of the step's further draw 1, 2, ..., in groups of new ids: as many problems as the step has, or the first `count` of them."""
        ...


@dataclass
class Recomposition:
    """What a `recompose` function may use.

    Such a function gets all rollouts of the step and gives them back: those that train no more with their reason (`account.drop`), and what
    it adds. A further positional parameter that is called as a role (roles.py) is a generator of that policy.
    """

    step: int
    seed: tuple[object, ...]
    problems: Mapping[str, Problem]
    history: History
    rewards: Rewards
    more: More
    adopting: Adopting | None = None
    """What takes in answers of others."""


def further(at: Recomposition, count: int, each: int) -> list[Trajectory]:
    """Judged answers to `count` further problems, at most `each` of them a draw."""
    out: list[Trajectory] = []
    for number, before in enumerate(range(0, count, max(each, 1)), 1):
        out += at.more(number, min(each, count - before))
    return out
