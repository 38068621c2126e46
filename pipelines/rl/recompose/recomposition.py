"""What a function of the slot `recompose` is given beside the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipelines.records import Problem, Trajectory
from pipelines.rl.history import History
from pipelines.rl.rewards import Rewards


@dataclass
class Recomposition:
    """What a `recompose` function may use. more(round) draws and answers as many further problems as the step has, in groups of new ids.

    Such a function gets all rollouts of the step and gives them back: those that train no more with their reason (`account.drop`), and what
    it adds. A further positional parameter that is called as a role (roles.py) is a generator of that policy.
    """

    step: int
    seed: tuple[object, ...]
    problems: Mapping[str, Problem]
    history: History
    rewards: Rewards
    more: Callable[[int], list[Trajectory]]
