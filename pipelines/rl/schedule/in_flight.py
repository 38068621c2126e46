"""Groups are under way while the policy is trained, and across its updates."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self

from pipelines.generation import Engine, Said
from pipelines.models import ranks
from pipelines.models.sharding import weights
from pipelines.records import Problem, Trajectory
from pipelines.rl.answering import Game
from pipelines.rl.clock import Clock
from pipelines.rl.episodes import Task
from pipelines.rl.schedule.one_ahead import Stopped
from pipelines.rl.schedule.source import Source

Running = Literal["go_on", "finish", "drop"]


@dataclass
class _Ticket:
    """A problem that was admitted, with all groups that it leads to. version: of the weights that its oldest token is of, or that are served while it
    has none. begun: it has some."""

    number: int
    version: int
    game: Game
    done: asyncio.Task[list[Trajectory]]
    begun: bool = False


class InFlight:
    """While an update runs the engine answers until the next step's groups are ready; the others go on with the new weights, or as `running` says.

    bound: most updates between the weights of a group's oldest token and those that it trains. A step waits for what would be too old for the next,
    so that long answers are not thrown away; what is too old all the same is given up. groups: most that are under way at once, of all processes.
    running: at an update, what is under way goes on with the new weights (`go_on`, so that its tokens are of several versions), is finished first
    (`finish`), or is given up (`drop`).

    Admission is AReaL's (arXiv 2505.24298); of the groups that are done the oldest train first. No clock decides anything: an update takes as long
    as the next step's groups do. So a run is reproducible, and one that was killed goes on from the ledger with what was under way.
    """

    def __init__(self, source: Source, policy: Any, behaviour: Any, *, bound: int, groups: int, running: Running) -> None:
        self.source, self._policy, self._behaviour = source, policy, behaviour
        self._bound, self._running = bound, running
        whole = source.settings.prompts_per_step
        self._batch = len(source.share(whole))
        self._most = max(self._batch, math.ceil(groups * self._batch / whole))
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._beside: tuple[Clock, Future[None]] | None = None
        self._stop = threading.Event()
        self._figures: dict[str, float] = {}
        self._engine: Engine | None = None
        self._tickets: dict[int, _Ticket] = {}
        self._next = 0
        """Number of the next ticket: place `number % batch` of this process' share of draw `number // batch + 1`."""
        self._drawn: dict[int, list[Task]] = {}
        """This process' share of the last draw."""
        self._said: dict[tuple[Any, ...], Said] = {}
        """By key, of open tickets."""
        self._given_up = 0
        """Groups that were too old for the step that is taken now."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._threads.shutdown(cancel_futures=True)
        self._leave()
        self.source.generator.close()

    def take(self, step: int, clock: Clock) -> list[Trajectory]:
        """The answers that `step` trains on. At the start of a run, and of a resumed one, they begin here."""
        known = self.source.answered(step, 0)
        if known is not None:
            self._restore(step + 1)
            return known
        if self._engine is None:
            self._restore(step)
            self._go_on(step)
        self._wait(clock)
        self._advance(lambda: self._enough(step))
        clock.lap("generate")
        groups = [self._consumed(ticket, place, step) for place, ticket in zip(self._share(), self._ready()[: self._batch], strict=True)]
        clock.lap("verify")
        if self._running == "finish":
            self._advance(lambda: False)
        self._interrupt()
        self._figures = {"given_up": float(self._given_up), "under_way": float(len(self._tickets))}
        self._given_up = 0
        self.source.ledger.record_under_way(step + 1, self._state())
        return self.source.gathered(step, 0, groups)

    def ahead(self, step: int) -> None:
        """Serve the policy as it stands, before the update of the step before `step`, and answer beside that."""
        self._behaviour.load_state_dict(weights(self._policy), strict=False)  # a value head is no part of it
        self._go_on(step)
        if self.source.answered(step, 0) is None:
            clock = Clock()
            self._beside = clock, self._threads.submit(self._answer_beside, step, clock)

    def pass_rate(self, problems: Sequence[Problem], samples: int, step: int) -> float:
        """See `Source.pass_rate`."""
        self._wait(Clock())
        self._interrupt()
        self.source.generator.push(self._policy, step)
        rate = self.source.pass_rate(problems, samples, step)
        self.source.generator.push(self._behaviour, max(step - 1, 0))
        return rate

    def learn(self, trajectories: Sequence[Trajectory]) -> None:
        """See `Source.learn`."""
        self.source.learn(trajectories)

    def figures(self) -> dict[str, float]:
        """What the journal tells of all processes' groups: how many were given up before this step, and how many it left under way, or waiting."""
        return ranks.total(self._figures)

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint must keep beside the ledger."""
        return {"behaviour": self._behaviour}

    def _go_on(self, step: int) -> None:
        """Serve what answers `step`: give up what would be too old for it, and admit others."""
        assert self._engine is not None
        self._interrupt()
        version = max(step - 2, 0)
        self.source.generator.push(self._behaviour, version)
        for ticket in list(self._tickets.values()):
            if not ticket.begun:
                ticket.version = version
            if step - 1 - ticket.version > self._bound or (self._running == "drop" and not ticket.done.done()):
                self._engine.give_up(ticket.done)
                del self._tickets[ticket.number]
                self._given_up += 1
        running = sum(not ticket.done.done() for ticket in self._tickets.values())
        # a ticket that was given up is no longer counted, so another takes its place
        capacity = min(self._most - running, self._bound * self._batch - len(self._tickets))
        for _ in range(capacity):
            self._admit(self._task(self._next), self._next, version)
            self._next += 1

    def _admit(self, task: Task, number: int, version: int) -> None:
        assert self._engine is not None
        game = Game(self.source.answering, self._engine, task, 0, self.source.seed[1])
        self._tickets[number] = _Ticket(number, version, game, self._engine.begin(game.play(), number // self._batch))

    def _task(self, number: int) -> Task:
        draw, place = divmod(number, self._batch)
        if draw + 1 not in self._drawn:
            self._drawn = {draw + 1: self.source.tasks(draw + 1)}  # drawn now: what may be drawn depends on the steps before
        return self._drawn[draw + 1][place]

    def _ready(self) -> list[_Ticket]:
        """What may train, the oldest first."""
        return sorted((ticket for ticket in self._tickets.values() if ticket.done.done()), key=lambda ticket: (ticket.version, ticket.number))

    def _enough(self, step: int) -> bool:
        """Whether as many groups are done as `step` trains, and all that would be too old for the next."""
        due = (ticket for ticket in self._tickets.values() if step - ticket.version > self._bound)
        return len(self._ready()) >= self._batch and all(ticket.done.done() for ticket in due)

    def _advance(self, enough: Callable[[], bool]) -> None:
        assert self._engine is not None
        self._engine.advance(enough)

    def _answer_beside(self, step: int, clock: Clock) -> None:
        self._advance(lambda: self._enough(step))
        clock.lap("generate")

    def _consumed(self, ticket: _Ticket, place: int, step: int) -> list[Trajectory]:
        del self._tickets[ticket.number]
        trajectories = ticket.done.result()
        ticket.game.judge()
        move = place * self.source.answering.play.width - ticket.game.task.group_id
        return [replace(trajectory, group_id=trajectory.group_id + move, step=step) for trajectory in trajectories]

    def _interrupt(self) -> None:
        """What is under way stops where it is, and is remembered."""
        assert self._engine is not None
        self._engine.interrupt()
        self._said |= {each.key: each for each in self._engine.said}
        self._engine.said.clear()
        under_way: dict[tuple[Any, ...], Said] = {}
        for ticket in self._tickets.values():
            key = ticket.game.task.key[:-1]
            parts = {said.key: said for said in self._said.values() if said.key[: len(key)] == key}
            versions = [version for said in parts.values() for version in said.versions]
            ticket.version, ticket.begun = min(versions, default=ticket.version), bool(versions)
            under_way |= parts
        self._said = under_way

    def _wait(self, clock: Clock) -> None:
        if self._beside is not None:
            beside, future = self._beside
            self._beside = None
            future.result()
            clock.lap("wait")
            clock.beside = beside.seconds

    def _leave(self) -> None:
        if self._engine is not None:
            self._engine.__exit__(None, None, None)
            self._engine = None
            self._tickets, self._said = {}, {}

    def _state(self) -> dict[str, Any]:
        tickets = [{"number": t.number, "version": t.version, "problem": t.game.task.problem.problem_id} for t in self._tickets.values()]
        drawn = {number: [task.problem.problem_id for task in tasks] for number, tasks in self._drawn.items()}
        said = [asdict(each) for each in self._said.values()]
        return {"figures": self._figures, "next": self._next, "tickets": tickets, "drawn": drawn, "said": said}

    def _restore(self, step: int) -> None:
        """What was under way when a run before this one went on to `step`."""
        self._leave()
        self._given_up = 0
        recorded = self.source.ledger.under_way(step) or {"figures": {}, "next": (step - 1) * self._batch, "tickets": [], "drawn": {}, "said": []}
        said = [Said(**each | {"key": tuple(each["key"])}) for each in recorded["said"]]
        self._said = {each.key: each for each in said}
        self._engine = Engine(self.source.generator, self._beat, said)
        self._next, self._figures = recorded["next"], recorded["figures"]
        slots = self._share()
        self._drawn = {
            int(draw): [self.source.task(int(draw), 0, slot, self.source.problems[name]) for slot, name in zip(slots, names, strict=True)]
            for draw, names in recorded["drawn"].items()
        }
        for ticket in recorded["tickets"]:
            draw, place = divmod(ticket["number"], self._batch)
            task = self.source.task(draw + 1, 0, slots[place], self.source.problems[ticket["problem"]])
            self._admit(task, ticket["number"], ticket["version"])

    def _share(self) -> range:
        return self.source.share(self.source.settings.prompts_per_step)

    def _beat(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise Stopped
