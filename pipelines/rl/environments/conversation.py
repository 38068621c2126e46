"""What one episode has seen and said so far, and the room that is left."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.errors import InfrastructureError
from pipelines.generation import Engine, Key, Turn
from pipelines.records import Outcome, Segment, Verdict


def turn_keys(key: Key) -> Iterator[Key]:
    """What the draws of an episode of this key depend on: its first turn on the key alone, later ones on their number too."""
    yield key
    for number in itertools.count(1):
        yield (*key, number)


class Conversation:
    """Segments that grow by turns of the policy and by what it reads. start: the prompt, and what has been written for the policy after it. keys: of
    the turns to come (`turn_keys`). tokens: of all after the prompt, at most; the engine's context bounds them too. messages: the prompt, for engines
    that take no ids."""

    def __init__(
        self, engine: Engine, start: Sequence[Segment], keys: Iterator[Key], tokens: int, messages: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.segments = list(start)
        self._engine, self._keys, self._messages = engine, keys, messages
        self._most = int(min(tokens, engine.context - len(start[0].ids)))
        self._opening = [token for segment in start[1:] for token in segment.ids]

    @property
    def ids(self) -> list[int]:
        """All of it."""
        return [token for segment in self.segments for token in segment.ids]

    @property
    def room(self) -> int:
        """Tokens that may still follow."""
        return self._most - sum(len(segment.ids) for segment in self.segments[1:])

    async def turn(self, limit: int | None = None) -> Turn:
        """What the policy says next, in at most `limit` tokens, and no more than there is room for. What was written for it at its start is part of
        what it says first."""
        room = max(self.room, 1)
        turn = await self._engine.sample(self.ids, next(self._keys), room if limit is None else min(room, limit), self._messages)
        self.segments.append(turn.segment)
        opening, self._opening = self._opening, []
        return replace(turn, text=self._engine.tokenizer.decode(opening) + turn.text) if opening else turn

    def read(self, ids: list[int], author: str) -> bool:
        """Let the policy read these, if that leaves room to answer."""
        if len(ids) >= self.room:
            return False
        self.segments.append(Segment(author, ids))
        return True


def worth(value: object, where: str) -> float | None:
    """What an environment says that an episode is worth; None where it leaves that to the problem's verifier.

    Raises:
        InfrastructureError: it is no number in [0, 1].
    """
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InfrastructureError(f"{where} gave {str(value)[:100]!r}; expected a number in [0, 1], or None")
    return float(value)


def judged(value: float) -> Verdict:
    """The verdict of an environment."""
    return Verdict(Outcome.CORRECT if value == 1 else Outcome.WRONG, value, detail="by the environment")
