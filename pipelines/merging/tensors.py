"""One tensor of every checkpoint, walked in chunks: what a merge rule is given, and statistics of the whole tensor over such walks.

theta_0 is the base, theta_i an expert (i = 1..N), tau_i = theta_i - theta_0 its delta, all in fp32. A rule is a generator: it walks
the chunks as often as its statistics need and yields the merged values in order. So no rule ever holds a tensor, and sums are
taken chunk by chunk in float64 by one thread: how files are cut and how many workers there are changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines import seeding
from pipelines.errors import UserError

CHUNK = 1 << 18
"""Elements of a walk held at once, per checkpoint: 1 MB in fp32, so that arithmetic stays in a processor's cache."""
PerModel = float | Sequence[float]
"""A setting: one number for all experts, or one for each."""


@dataclass(frozen=True)
class Chunk:
    """The same elements of every checkpoint, flat or as whole rows, until the walk goes on; the rule may write to them.

    start: index of the first.
    """

    start: int
    base: Tensor | None
    experts: list[Tensor]

    def deltas(self) -> list[Tensor]:
        """tau_i, written over theta_i."""
        assert self.base is not None
        return [expert.sub_(self.base) for expert in self.experts]


@dataclass(frozen=True)
class Group:
    """One tensor of all checkpoints.

    name: keys its random streams. read(i, start, out): elements of checkpoint i from `start` on into a flat fp32 tensor; the base is -1.
    whole: entries of the whole model that each expert alone changed, and that others changed too: experts x 2 (ram.py). learnt: what a method has
    learnt of all tensors for this one (lookahead.py). tell(figures): hears what a rule found out about the tensor.
    """

    name: str
    shape: tuple[int, ...]
    experts: int
    read: Callable[[int, int, Tensor], None]
    has_base: bool = True
    seed: int = 0
    whole: Tensor | None = None
    learnt: Any = None
    tell: Callable[[Mapping[str, float]], None] = lambda _: None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Length of a row: the last axis; a vector is one row."""
        return self.shape[-1] if self.shape else 1

    def chunks(self, step: int | None = None) -> Iterator[Chunk]:
        """Flat pieces of `step` elements, by default CHUNK."""
        step = step or CHUNK
        # the same memory for all chunks: fresh pages would cost more than the arithmetic
        memory = torch.empty(self.experts + 1, min(step, self.size)) if self.size else None
        for start in range(0, self.size, step):
            assert memory is not None
            base, *experts = memory[:, : self.size - start]
            for i, values in enumerate(experts):
                self.read(i, start, values)
            if self.has_base:
                self.read(-1, start, base)
            yield Chunk(start, base if self.has_base else None, experts)

    def rows(self, width: int | None = None) -> Iterator[Chunk]:
        """Pieces of whole rows, each a matrix of `width` columns; one row at least, however long."""
        width = self.width if width is None else width
        for chunk in self.chunks(max(1, CHUNK // max(width, 1)) * width) if width else ():
            base = None if chunk.base is None else chunk.base.view(-1, width)
            yield Chunk(chunk.start, base, [expert.view(-1, width) for expert in chunk.experts])

    def uniform(self, expert: int, chunk: Chunk) -> Tensor:
        """Numbers in [0, 1) for the elements of a chunk, keyed by (seed, expert, name): the same however the tensor is walked."""
        # Philox makes four 64-bit numbers, eight of 32 bits, at each step of its counter
        steps, behind = divmod(chunk.start, 8)
        stream = np.random.Philox(seeding.key(self.seed, "merging", expert, self.name)).advance(steps)
        like = chunk.experts[expert]
        drawn = np.random.Generator(stream).random(behind + like.numel(), dtype=np.float32)
        return torch.from_numpy(drawn[behind:]).view(like.shape)


def loaded(base: Tensor | None, experts: Sequence[Tensor], name: str = "", seed: int = 0, whole: Tensor | None = None) -> Group:
    """A group of tensors that are in memory; they are never written to."""
    flat = {i: tensor.reshape(-1) for i, tensor in enumerate(experts)} | ({} if base is None else {-1: base.reshape(-1)})

    def read(number: int, start: int, out: Tensor) -> None:
        out.copy_(flat[number][start : start + len(out)])

    return Group(name, tuple(experts[0].shape), len(experts), read, base is not None, seed, whole)


def collect(group: Group, pieces: Iterator[Tensor]) -> Tensor:
    """What a rule yields as one tensor."""
    found = [piece.reshape(-1).clone() for piece in pieces]
    return torch.cat(found).reshape(group.shape) if found else torch.empty(group.shape)


EXPERTS: dict[str, tuple[int, float, str]] = {
    "slerp": (1, 1, "it takes the base and one model"),
    "nuslerp": (2, 2, "it takes two models"),
    "model_stock": (2, float("inf"), "it needs two models at least"),
}
"""Method -> fewest and most models that it takes beside the base, in numbers and in words; the others take any number."""


def require_experts(method: str, count: int) -> None:
    """
    Raises:
        UserError: the method does not take so many models.
    """
    fewest, most, words = EXPERTS.get(method, (1, float("inf"), "it needs a model"))
    if not fewest <= count <= most:
        raise UserError(f"merge method '{method}': {words}, got {count}")


def per_model(setting: str, value: PerModel, experts: int) -> list[float]:
    """One number per expert.

    Raises:
        UserError: a list of another length.
    """
    if isinstance(value, (int, float)):
        return [float(value)] * experts
    if len(value) != experts:
        raise UserError(f"merging: {setting} has {len(value)} entries for {experts} models")
    return [float(number) for number in value]


def total(x: Tensor) -> float:
    """Sum in float64 by one thread."""
    return float(np.sum(x.numpy(), dtype=np.float64))


def product(x: Tensor, y: Tensor, axis: int | None = None) -> np.ndarray:
    """Sum of products in float64 by one thread, over all elements or along an axis."""
    return np.asarray(np.sum(x.double().mul_(y).numpy(), axis=axis))


def ranked(group: Group, ranks: Sequence[Sequence[int]]) -> list[list[float]]:
    """Order statistics of |tau|, exactly and in two walks: for every expert, the values at its `ranks`, counted from 0 = smallest.

    The bits of a non-negative float are ordered as the float is, so a first walk counts the upper 16 bits and a second the lower
    16 of those that share them with the value sought. No sort, and 0.8 MB for each rank.
    """
    upper = [np.zeros(1 << 15, np.int64) for _ in range(group.experts)]
    for chunk in group.chunks():
        for counts, tau in zip(upper, chunk.deltas(), strict=True):
            counts += torch.bincount(tau.abs_().view(torch.int32).bitwise_right_shift_(16), minlength=1 << 15).numpy()
    bins = [[int(np.searchsorted(np.cumsum(counts), rank, side="right")) for rank in wanted] for counts, wanted in zip(upper, ranks, strict=True)]
    lower = [{top: np.zeros(1 << 16, np.int64) for top in tops} for tops in bins]
    for chunk in group.chunks():
        for tables, tau in zip(lower, chunk.deltas(), strict=True):
            bits = tau.abs_().view(torch.int32)
            for top, counts in tables.items():
                inside = (bits - ((top << 16) - 1)).clamp_(0, (1 << 16) + 1)  # what lies outside counts at the ends
                counts += torch.bincount(inside, minlength=(1 << 16) + 2).numpy()[1:-1]
    found: list[list[float]] = []
    for counts, tops, tables, wanted in zip(upper, bins, lower, ranks, strict=True):
        below = [rank - int(counts[:top].sum()) for rank, top in zip(wanted, tops, strict=True)]
        lows = [int(np.searchsorted(np.cumsum(tables[top]), rank, side="right")) for rank, top in zip(below, tops, strict=True)]
        bits = np.array([(top << 16) + low for top, low in zip(tops, lows, strict=True)], np.int32)
        found.append(bits.view(np.float32).tolist())
    return found
