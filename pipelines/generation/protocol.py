"""The protocol every generation engine obeys, and the records it deals in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt that wants `samples` responses, numbered from `first` on; `key` seeds them: number i draws from the stream (key, i)."""

    prompt_ids: tuple[int, ...]
    samples: int
    key: tuple[object, ...]
    first: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One response.

    token_ids: sampled ids, the end-of-turn token included when it was sampled. logp: log-probability of each under the
    distribution it was sampled from (temperature, top-k and top-p applied), nats. finish_reason: `stop` (end of turn or a stop string)
    or `length`. text: decoded without special tokens, up to a stop string. policy_version: of the weights that sampled it.
    """

    token_ids: list[int]
    logp: list[float]
    finish_reason: str
    text: str
    policy_version: int = 0


class Generator(Protocol):
    """A policy that can be sampled from."""

    tokenizer: Any

    def push(self, model: Any, version: int) -> None:
        """Serve the weights of `model`, a module of the served architecture, from now on; samples carry `version`."""
        ...

    def generate(self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None) -> list[list[Sample]]:
        """Responses to each request, in order; `progress(done, total)` counts finished samples."""
        ...
