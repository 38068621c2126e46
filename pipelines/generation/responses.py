"""What every engine that samples token ids does alike: room in the context, ends of a turn, and the record of a finished response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config.common import GenerationSettings
from pipelines.errors import UserError
from pipelines.generation.protocol import Request, Sample


@dataclass(frozen=True)
class Responses:
    """How responses of one model end and read. ends: token ids that end a turn. banned: those that are never sampled."""

    tokenizer: Any
    ends: tuple[int, ...]
    settings: GenerationSettings
    banned: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any, generation_config: Any, settings: GenerationSettings) -> Responses:
        """generation_config: the model's, which may name more ends than the tokenizer does, and tokens that it must not say."""
        ends = generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        banned = tuple(generation_config.suppress_tokens or ())
        return cls(tokenizer, tuple(sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None})), settings, banned)

    def check_room(self, requests: Sequence[Request], context: float) -> int:
        """The most tokens that a prompt and its response have together.

        Raises:
            UserError: they do not fit the model's context.
        """
        rooms = [(len(r.prompt_ids) + r.room(self.settings.max_new_tokens), len(r.prompt_ids)) for r in requests]
        most, prompt = max(rooms, default=(0, 0))
        if most > context:
            raise UserError(f"a prompt of {prompt} tokens and max_new_tokens {most - prompt} exceed the model's context of {context}")
        return most

    def sample(self, ids: list[int], logp: list[float], version: int, allowed: Sequence[bytes] = ()) -> Sample:
        """The record of a response that ended."""
        stopped = ids[-1] in self.ends
        text = self.tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True)
        where = min((place for stop in self.settings.stop if (place := text.find(stop)) >= 0), default=-1)
        stopped = stopped or where >= 0
        return Sample(ids, logp, "stop" if stopped else "length", text[:where] if where >= 0 else text, version, list(allowed))
