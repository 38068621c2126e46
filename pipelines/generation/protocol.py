"""The protocol every generation engine obeys, and the records it deals in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.config.common import GenerationSettings

Progress = Callable[[int, int], None]
"""progress(done, total) counts finished samples."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt that wants `samples` responses, numbered from `first` on; `key` seeds them: number i draws from the stream (key, i).

    messages: the same prompt as chat turns, for engines that take no token ids.
    """

    prompt_ids: tuple[int, ...]
    samples: int
    key: tuple[object, ...]
    first: int = 0
    messages: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One response.

    token_ids: sampled ids, the end-of-turn token included when it was sampled. logp: log-probability of each under the
    distribution it was sampled from (temperature, top-k and top-p applied), nats; empty where the engine does not know. finish_reason:
    `stop` (end of turn or a stop string) or `length`. text: decoded without special tokens, up to a stop string. policy_version: of the
    weights that sampled it.
    """

    token_ids: list[int]
    logp: list[float]
    finish_reason: str
    text: str
    policy_version: int = 0


class Generator(Protocol):
    """A policy that can be sampled from."""

    tokenizer: Any
    settings: GenerationSettings

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[list[Sample]]:
        """Responses to each request, in order."""
        ...

    def push(self, model: Any, version: int) -> None:
        """Serve the weights that `model`, a module of the served architecture, has now; samples carry `version`."""
        ...

    def close(self) -> None:
        """Give back what the engine holds; the end of the process does too, however it comes."""
        ...
