"""Answer the next step's problems while this one trains."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from pipelines.models.sharding import weights
from pipelines.records import Problem, Trajectory
from pipelines.rl.clock import Clock
from pipelines.rl.schedule.source import Source


class Stopped(Exception):
    """Nobody waits for these answers any more."""


class OneAhead:
    """What a step's answers are sampled from are the weights before the update of the step before, whatever the clock does, so a run is as
    reproducible as one that waits. behaviour: a copy of the policy that is never trained, which the engine serves."""

    def __init__(self, source: Source, policy: Any, behaviour: Any) -> None:
        self.source, self._policy, self._behaviour = source, policy, behaviour
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._under_way: tuple[int, Clock, Future[list[list[Trajectory]]]] | None = None
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._threads.shutdown(cancel_futures=True)
        self.source.generator.close()

    def take(self, step: int, clock: Clock) -> list[Trajectory]:
        """The answers that `step` trains on. At the start of a run, and of a resumed one, they begin here."""
        known = self.source.answered(step, 0)
        if known is not None:
            return known
        if self._under_way is None:
            self._serve(step)
            self._begin(step)
        assert self._under_way is not None
        _, beside, future = self._under_way
        groups = future.result()
        self._under_way = None
        clock.lap("wait")
        clock.beside = beside.seconds
        return self.source.gathered(step, 0, groups)

    def ahead(self, step: int) -> None:
        """Begin `step` with the policy as it stands, before the update of the step before."""
        self._behaviour.load_state_dict(weights(self._policy), strict=False)  # a value head is no part of it
        self._serve(step)
        if self.source.answered(step, 0) is None:
            self._begin(step)

    def pass_rate(self, problems: Sequence[Problem], samples: int, step: int) -> float:
        """See `Source.pass_rate`."""
        if self._under_way:
            self._under_way[2].result()
        self.source.generator.push(self._policy, step)
        rate = self.source.pass_rate(problems, samples, step)
        self.source.generator.push(self._behaviour, max(step - 1, 0))
        return rate

    def learn(self, trajectories: Sequence[Trajectory]) -> None:
        """See `Source.learn`."""
        self.source.learn(trajectories)

    def figures(self) -> dict[str, float]:
        """What the journal tells of the schedule."""
        return {}

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint must keep beside the ledger."""
        return {"behaviour": self._behaviour}

    def _serve(self, step: int) -> None:
        """What answers `step`."""
        self.source.generator.push(self._behaviour, max(step - 2, 0))

    def _begin(self, step: int) -> None:
        clock, tasks = Clock(), self.source.tasks(step)  # drawn now: what may be drawn depends on the steps before
        self._under_way = step, clock, self._threads.submit(self.source.answer, step, 0, tasks, clock, self._beat)

    def _beat(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise Stopped
