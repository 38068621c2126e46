"""Data-parallel ranks: which this is, and what all of them have together. Every rank must make the same calls in order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Meet the other processes of `torchrun`, if there are any, and part at the end. Yields this process' device."""
    if "RANK" not in os.environ:
        yield device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Until every process is here."""
    if world() > 1:
        dist.barrier()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def collect(items: Sequence[T]) -> list[T]:
    """Item i of the whole, of which this rank has items rank, rank + world, rank + 2 world, ...: all of them, on every rank."""
    if world() == 1:
        return list(items)
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, list(items))
    return [part[place] for place in range(max(map(len, parts))) for part in parts if place < len(part)]


def total(figures: Mapping[str, float]) -> dict[str, float]:
    """Sums over ranks."""
    return _reduced(figures, dist.ReduceOp.SUM)


def largest(figures: Mapping[str, float]) -> dict[str, float]:
    """The largest of all ranks."""
    return _reduced(figures, dist.ReduceOp.MAX)


def most(count: int) -> int:
    """The largest count of all ranks."""
    return int(largest({"count": count})["count"])


def longest(seconds: float) -> float:
    """The largest of what all ranks have measured, so that all decide alike."""
    return largest({"seconds": seconds})["seconds"]


def _reduced(figures: Mapping[str, float], operation: Any) -> dict[str, float]:
    if world() == 1:
        return dict(figures)
    names = sorted(figures)
    values = torch.tensor([figures[name] for name in names], dtype=torch.float64)
    dist.all_reduce(values, operation)
    return dict(zip(names, values.tolist(), strict=True))
