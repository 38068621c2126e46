"""Many episodes that ask one policy, each for its next turn, in whatever order they get to it.

An episode is a coroutine. What it asks for waits until every other has asked, ended, or waits for those that did: only then does the policy
decode. So what decodes together follows from what was asked and from no clock, and two runs do the same arithmetic. What an episode awaits beside
the engine (a tool, a verdict) the policy waits for.

Turns may be interrupted, between two calls of `advance`: the weights may change, and every turn goes on from what it has said. What was said is
told as `Said`, and whoever gives that back to another engine has its episodes there again, without sampling anything twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self, TypeVar

from pipelines.generation.protocol import Generator, Key, Progress, Request, Sample, Stream
from pipelines.records import POLICY, Segment

T = TypeVar("T")


@dataclass(frozen=True)
class Said:
    """What a turn has said so far. finish_reason: "" where it goes on. versions: of the weights, by token."""

    key: Key
    ids: list[int]
    logp: list[float]
    versions: list[int]
    finish_reason: str = ""
    text: str = ""


@dataclass(frozen=True)
class Turn:
    """What the policy said next: the segment, why it ended (`stop` or `length`), and its text without special tokens."""

    segment: Segment
    finish_reason: str
    text: str


@dataclass
class _Asked:
    request: Request
    future: asyncio.Future[Turn]
    task: asyncio.Task[Any]
    versions: list[int] = field(default_factory=list)

    @property
    def key(self) -> Key:
        return (*self.request.key, self.request.first)


@dataclass
class _Places:
    taken: int = 0
    waiting: deque[tuple[asyncio.Task[Any], asyncio.Future[None]]] = field(default_factory=deque)


class Engine:
    """Asks `generator` for episodes. progress(done, total) counts turns: asked so far, and ended. said: what an earlier engine was told for the
    same episodes. A context manager: at its end the episodes that are left are given up."""

    def __init__(self, generator: Generator, progress: Progress | None = None, said: Iterable[Said] = ()) -> None:
        self.tokenizer, self.settings, self.context = generator.tokenizer, generator.settings, generator.context
        self.said: list[Said] = []
        """What turns have said that ended, or were interrupted, since the caller last took it from here."""
        self._generator, self._progress, self._known_said = generator, progress, {each.key: each for each in said}
        self._loop = asyncio.new_event_loop()
        self._asked: list[_Asked] = []
        self._under_way: dict[int, _Asked] = {}
        """By number in the stream."""
        self._numbers = self._total = self._done = 0
        self._stream: Stream | None = None
        self._opened = ExitStack()
        self._known: dict[asyncio.Task[Any], int] = {}
        """With the order of its episode."""
        self._running: set[asyncio.Task[Any]] = set()
        """Of those, the ones that wait neither for the policy nor for others of their own."""
        self._quiet = asyncio.Event()
        self._places: dict[int, _Places] = {}
        self._error: BaseException | None = None
        """What a coroutine has raised: the policy is asked no more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def run(self, episodes: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """What each of these coroutines returns, which may await `sample` and `together`. The first that raises ends all.

        Where the policy is sharded all processes must call this together, also with no episodes.
        """
        with self:
            tasks = [self.begin(episode) for episode in episodes]
            self.advance(lambda: False)
            return [task.result() for task in tasks]

    def begin(self, episode: Coroutine[Any, Any, T], order: int = 0) -> asyncio.Task[T]:
        """An episode that goes on in every `advance`, until its task is done or cancelled. Where many wait for the policy, lower orders go first."""
        task = self._task(episode, order)
        task.add_done_callback(self._ended)
        return task

    def advance(self, enough: Callable[[], bool]) -> None:
        """Decode until `enough`, asked whenever turns have ended and every episode waits again, or until no episode is left.

        Raises: what an episode raises.
        """
        self._loop.run_until_complete(self._advance(enough))

    def give_up(self, task: asyncio.Task[Any]) -> None:
        """End an episode that nobody waits for any more, with all its parts."""
        task.cancel()
        if not task.done():
            self._loop.run_until_complete(asyncio.wait([task]))

    def interrupt(self) -> None:
        """Let the weights change: what is under way goes on, with the next `advance`, from what it has said."""
        if self._stream is None:
            return
        for number, (ids, logp) in self._stream.interrupt().items():
            asked = self._under_way.pop(number)
            if asked.future.cancelled():
                continue
            asked.versions += [self._generator.version] * (len(ids) - len(asked.versions))
            asked.request = replace(asked.request, said=tuple(ids), said_logp=tuple(logp))
            self._asked.append(asked)
            self.said.append(Said(asked.key, ids, logp, list(asked.versions)))
        self._opened.close()
        self._stream = None

    async def sample(self, ids: Sequence[int], key: Key, limit: int | None = None, messages: Sequence[Any] = (), *, greedy: bool = False) -> Turn:
        """What the policy says after these ids, in at most `limit` tokens. key: what the draw depends on, besides the ids and the weights. greedy:
        the likeliest token each time."""
        asker = self._asker()
        known = self._known_said.pop(key, None)
        if known is not None and known.finish_reason:
            return Turn(Segment(POLICY, known.ids, known.logp, known.versions, trains=True), known.finish_reason, known.text)
        said, logp, versions = ((), (), []) if known is None else (tuple(known.ids), tuple(known.logp), known.versions)
        request = Request(tuple(ids), 1, key[:-1], key[-1], tuple(messages), limit, said, logp, self._known[asker], greedy)  # type: ignore[arg-type]
        asked = _Asked(request, self._loop.create_future(), asker, list(versions))
        self._asked.append(asked)
        self._wait(asked.task)
        return await asked.future

    @property
    def greedy(self) -> Engine:
        """The same engine to episodes in which the policy says the likeliest token each time."""
        return _Greedy(self)  # type: ignore[return-value]  # it has all that this has

    async def together(self, parts: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """What these coroutines return, run side by side: in place of `asyncio.gather`, which would hide from the engine who waits for whom."""
        asker = self._asker()
        if not parts:
            return []
        tasks = [self._task(part, self._known[asker]) for part in parts]
        self._wait(asker)
        left = self._loop.create_future()
        waiting = len(tasks)

        def ended(task: asyncio.Task[T]) -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0 and not left.done():
                self._running.add(asker)  # before the part leaves: who looks meanwhile sees that somebody goes on
                left.set_result(None)
            self._ended(task)

        for task in tasks:
            task.add_done_callback(ended)
        try:
            await left
        finally:
            if unfinished := [task for task in tasks if task.cancel()]:
                await asyncio.wait(unfinished)
        return [task.result() for task in tasks]

    @asynccontextmanager
    async def place(self, owner: object, most: int) -> AsyncIterator[None]:
        """One of `most` places that `owner` has, such as sessions of a server; who finds none waits, in the order of asking, and holds nobody up."""
        asker, places = self._asker(), self._places.setdefault(id(owner), _Places())
        if places.taken < most:
            places.taken += 1
        else:
            turn = self._loop.create_future()
            places.waiting.append((asker, turn))
            self._wait(asker)
            await turn
        try:
            yield
        finally:
            while places.waiting and places.waiting[0][1].cancelled():
                places.waiting.popleft()
            if places.waiting:
                following, turn = places.waiting.popleft()
                self._running.add(following)
                turn.set_result(None)
            else:
                places.taken -= 1

    async def _advance(self, enough: Callable[[], bool]) -> None:
        if self._stream is None:
            self._stream = self._opened.enter_context(self._generator.open())
            self._numbers = 0
        while True:
            if self._running:
                self._quiet.clear()
                await self._quiet.wait()
            if self._error is not None:
                raise self._error
            if enough() or not (self._asked or self._under_way):
                return
            self._decode(self._stream)

    def _decode(self, stream: Stream) -> None:
        """Ask for what is wanted, and wake who is answered."""
        asked, self._asked = sorted((each for each in self._asked if not each.future.cancelled()), key=lambda each: each.key), []
        for each in asked:
            self._under_way[self._numbers] = each
            self._numbers += 1
        self._total += sum(not each.request.said for each in asked)
        for number, sample in stream.answer([each.request for each in asked]):
            self._done += 1
            self._wake(self._under_way.pop(number), sample)
        if self._progress:
            self._progress(self._done, self._total)

    def _wake(self, asked: _Asked, sample: Sample) -> None:
        versions = asked.versions + [sample.policy_version] * (len(sample.token_ids) - len(asked.versions))
        self.said.append(Said(asked.key, sample.token_ids, sample.logp, versions, sample.finish_reason, sample.text))
        if not asked.future.cancelled():
            self._running.add(asked.task)
            segment = Segment(POLICY, sample.token_ids, sample.logp, versions, trains=True, allowed=sample.allowed)
            asked.future.set_result(Turn(segment, sample.finish_reason, sample.text))

    def _task(self, part: Coroutine[Any, Any, T], order: int) -> asyncio.Task[T]:
        task = self._loop.create_task(part)
        self._known[task] = order
        self._running.add(task)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._known.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = self._error or error
            self._quiet.set()
        self._wait(task)

    def _wait(self, task: asyncio.Task[Any]) -> None:
        """This one does nothing of its own for now."""
        self._running.discard(task)
        if not self._running:
            self._quiet.set()

    def _asker(self) -> asyncio.Task[Any]:
        """
        Raises:
            RuntimeError: the engine does not know who asks, so it could not know when all wait.
        """
        task = asyncio.current_task()
        if task is None or task not in self._known:
            raise RuntimeError("an episode asked from a task that it made itself; run its parts with `engine.together`")
        return task


class _Greedy:
    """An engine of which every turn is the policy's likeliest."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def sample(self, ids: Sequence[int], key: Key, limit: int | None = None, messages: Sequence[Any] = ()) -> Turn:
        return await self._engine.sample(ids, key, limit, messages, greedy=True)
