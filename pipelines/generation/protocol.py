"""The protocol every generation engine obeys, and the records it deals in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.config.common import GenerationSettings

Key = tuple[int | str, ...]
"""What a draw depends on; of two keys the parts at one place are of one type, or one key is the other's beginning."""
Progress = Callable[[int, int], None]
"""progress(done, total) counts finished samples."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt that wants `samples` responses, numbered from `first` on; `key` seeds them: number i draws from the stream (key, i).

    messages: the same prompt as chat turns, for engines that take no token ids. limit: tokens of a response, where it is below the engine's.
    said: how the response begins, from an interrupted one of the same key; it is part of the sample, with `said_logp`, and counts for the limit.
    order: of requests that wait those of a lower one go first. greedy: the likeliest token each time, whatever the engine's temperature.
    """

    prompt_ids: tuple[int, ...]
    samples: int
    key: tuple[Any, ...]
    first: int = 0
    messages: tuple[Mapping[str, Any], ...] = ()
    limit: int | None = None
    said: tuple[int, ...] = ()
    said_logp: tuple[float, ...] = ()
    order: int = 0
    greedy: bool = False

    @property
    def start(self) -> tuple[int, ...]:
        """What the next token follows."""
        return self.prompt_ids + self.said

    def room(self, most: int) -> int:
        """Tokens that a response may have of an engine that gives at most so many."""
        return most if self.limit is None else min(self.limit, most)


@dataclass(frozen=True, slots=True)
class Sample:
    """One response.

    token_ids: sampled ids, the end-of-turn token included when it was sampled. logp: log-probability of each under the
    distribution it was sampled from (temperature, top-k and top-p applied), nats; empty where the engine does not know. finish_reason:
    `stop` (end of turn or a stop string) or `length`. text: decoded without special tokens, up to a stop string. policy_version: of the
    weights that sampled it. allowed: for each id those that it was drawn from, one bit an id (numpy.packbits); empty where all could be drawn.
    """

    token_ids: list[int]
    logp: list[float]
    finish_reason: str
    text: str
    policy_version: int = 0
    allowed: list[bytes] = field(default_factory=list)


class Stream(Protocol):
    """Requests of one sample each that may come while earlier ones are under way."""

    def answer(self, requests: Sequence[Request] = ()) -> list[tuple[int, Sample]]:
        """Take these too, and go on until some of all have ended: each with the number of its request, counted from 0 over all calls. Empty
        when none is left. Which end together depends on the requests alone, not on the time."""
        ...

    def interrupt(self) -> dict[int, tuple[list[int], list[float]]]:
        """Give up what is under way: by number of the request the ids said so far, and their log-probabilities."""
        ...


class Generator(Protocol):
    """A policy that can be sampled from."""

    tokenizer: Any
    settings: GenerationSettings
    version: int
    """Of the weights that are served."""

    @property
    def context(self) -> float:
        """Tokens that a prompt and its response may have together; infinite where nothing bounds them."""
        ...

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[list[Sample]]:
        """Responses to each request, in order."""
        ...

    def open(self) -> AbstractContextManager[Stream]:
        """The same, one by one as they end; the weights must stay as they are."""
        ...

    def push(self, model: Any, version: int) -> None:
        """Serve the weights that `model`, a module of the served architecture, has now; samples carry `version`."""
        ...

    def close(self) -> None:
        """Give back what the engine holds; the end of the process does too, however it comes."""
        ...


class Blocking:
    """What makes a `Generator` of an engine that can only answer all that it was asked at once: what it is asked while it answers waits."""

    context = math.inf
    version = 0

    @contextmanager
    def open(self) -> Iterator[Stream]:
        """See `Generator.open`."""
        yield _Rounds(self)  # type: ignore[arg-type]  # what inherits this has the rest


class _Rounds:
    def __init__(self, generator: Generator) -> None:
        self._generator, self._asked = generator, 0

    def answer(self, requests: Sequence[Request] = ()) -> list[tuple[int, Sample]]:
        """See `Stream.answer`."""
        if not requests:
            return []
        first, self._asked = self._asked, self._asked + len(requests)
        return [(first + number, sample) for number, (sample,) in enumerate(self._generator.generate(requests))]

    def interrupt(self) -> dict[int, tuple[list[int], list[float]]]:
        """See `Stream.interrupt`. Between two calls nothing is under way."""
        return {}
