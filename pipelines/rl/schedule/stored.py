"""Groups of responses that stand on disk already: nothing is answered, every group trains once in each pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from pipelines import seeding
from pipelines.records import REPLAY, Trajectory
from pipelines.rl.clock import Clock


class Stored:
    """`count` groups a step, in an order keyed by (seed, stage, pass), over and over: a step follows from its number alone, so a run that was killed
    goes on with nothing but that.

    Raises:
        ValueError: there is no group.
    """

    def __init__(self, groups: Sequence[Sequence[Trajectory]], count: int, seed: tuple[int, str]) -> None:
        if not groups:
            raise ValueError("no group to train on")
        self._groups, self._count, self._seed = groups, count, seed
        self._orders: dict[int, list[int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    @property
    def one_pass(self) -> int:
        """Steps after which every group has trained. The last of them may begin the next pass."""
        return -(-len(self._groups) // self._count)

    def take(self, step: int, clock: Clock) -> list[Trajectory]:
        """The responses that `step` trains on, as of an earlier step: the policy has not answered them."""
        places = [divmod(place, len(self._groups)) for place in range((step - 1) * self._count, step * self._count)]
        drawn = [self._groups[self._order(number)[place]] for number, place in places]
        return [
            replace(trajectory, step=step, group_id=group_id, sample_id=sample_id, origin=REPLAY, dropped="")
            for group_id, group in enumerate(drawn)
            for sample_id, trajectory in enumerate(group)
        ]

    def ahead(self, step: int) -> None:
        """Nothing is answered beside an update."""

    def learn(self, trajectories: Sequence[Trajectory]) -> None:
        """Stored responses make no problems."""

    def figures(self) -> dict[str, float]:
        """What the journal tells of the schedule."""
        return {}

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint must keep."""
        return {}

    def _order(self, number: int) -> list[int]:
        """Places of the groups in pass `number`, from 0."""
        if number not in self._orders:
            self._orders = {number: seeding.generator(*self._seed, "stored", number).permutation(len(self._groups)).tolist()}
        return self._orders[number]
