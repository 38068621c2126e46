"""A policy that may say only what a lagged copy of it finds likely (NLPO, arXiv 2210.01241).

    allowed = the likeliest tokens of the lagged policy up to a mass of p, the one that crosses p included; at least `least`; special tokens always

The policy samples from its own distribution, renormalised on them. What was allowed goes with every token that was sampled: whoever trains on it
needs the same set, and one made again later, by a pass of another shape, may differ in a token at the border.
Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.models.whole_decoder import Cache


class Decodes(Protocol):
    """What decodes incrementally."""

    def new_cache(self, rows: int, length: int) -> Cache: ...
    def prefill(self, ids_BP: Tensor, length_B: Tensor, cache: Cache) -> Tensor: ...
    def step(self, ids_B: Tensor, length_B: Tensor, cache: Cache) -> Tensor: ...


@dataclass(frozen=True)
class ActionSet:
    """p: mass that the set reaches. top_k: so many tokens at most, 0 for no bound. least: so many at least. always: ids that are in every set.

    Raises:
        UserError: p is no share, or the set may be empty.
    """

    p: float
    top_k: int
    least: int
    always: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1 or self.top_k < 0 or self.least < 1:
            raise UserError(
                f"inputs.allowed_BTK: p {self.p:g} must be above 0 and at most 1, top_k {self.top_k} at least 0, least {self.least} at least 1"
            )

    def of(self, chance_BV: Tensor) -> Tensor:
        """The tokens (B, V), bool, that are allowed where the lagged policy has these chances."""
        ordered, index = chance_BV.double().sort(dim=-1, descending=True, stable=True)
        before, rank = ordered.cumsum(-1).roll(1, -1), torch.arange(ordered.shape[-1], device=ordered.device)
        kept = (rank == 0) | (before <= self.p) | (self.p == 1.0)
        if self.top_k:
            kept &= rank < self.top_k
        allowed = torch.zeros_like(kept).scatter(-1, index, kept | (rank < self.least))
        allowed[..., list(self.always)] = True
        return allowed


class Restricted:
    """`decoder` with a logit of -inf wherever `lagged`, which runs beside it, does not allow a token; its cache holds those of both."""

    def __init__(self, decoder: Decodes, lagged: Decodes, actions: ActionSet, temperature: float) -> None:
        self._decoder, self._lagged, self._actions, self._temperature = decoder, lagged, actions, temperature

    def new_cache(self, rows: int, length: int) -> Cache:
        """See `Decoder.new_cache`."""
        return [*self._decoder.new_cache(rows, length), *self._lagged.new_cache(rows, length)]

    def prefill(self, ids_BP: Tensor, length_B: Tensor, cache: Cache) -> Tensor:
        """See `Decoder.prefill`."""
        own, theirs = self._caches(cache)
        return self._restricted(self._decoder.prefill(ids_BP, length_B, own), self._lagged.prefill(ids_BP, length_B, theirs))

    def step(self, ids_B: Tensor, length_B: Tensor, cache: Cache) -> Tensor:
        """See `Decoder.step`."""
        own, theirs = self._caches(cache)
        return self._restricted(self._decoder.step(ids_B, length_B, own), self._lagged.step(ids_B, length_B, theirs))

    def _caches(self, cache: Cache) -> tuple[Cache, Cache]:
        return cache[: len(cache) // 2], cache[len(cache) // 2 :]

    def _restricted(self, logits_BV: Tensor, lagged_BV: Tensor) -> Tensor:
        return logits_BV.masked_fill(~self._actions.of((lagged_BV.float() / self._temperature).softmax(-1)), float("-inf"))
