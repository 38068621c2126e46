"""Answer, then train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from pipelines.records import Problem, Trajectory
from pipelines.rl.clock import Clock
from pipelines.rl.schedule.source import Source


class Synchronous:
    """Every answer is of the policy that it trains."""

    def __init__(self, source: Source, policy: Any) -> None:
        self.source, self._policy = source, policy

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.source.generator.close()

    def take(self, step: int, clock: Clock) -> list[Trajectory]:
        """The answers that `step` trains on."""
        self.source.generator.push(self._policy, step - 1)
        known = self.source.answered(step, 0)
        return self.source.further(step, clock, 0) if known is None else known

    def ahead(self, step: int) -> None:
        """Called before the update of the step before `step`: nothing is answered beside it."""

    def pass_rate(self, problems: Sequence[Problem], samples: int, step: int) -> float:
        """See `Source.pass_rate`."""
        self.source.generator.push(self._policy, step)
        return self.source.pass_rate(problems, samples, step)

    def learn(self, trajectories: Sequence[Trajectory]) -> None:
        """See `Source.learn`."""
        self.source.learn(trajectories)

    def figures(self) -> dict[str, float]:
        """What the journal tells of the schedule."""
        return {}

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint must keep beside the ledger."""
        return {}
