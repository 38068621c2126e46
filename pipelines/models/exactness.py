"""The same bits twice: what trains runs under PyTorch's deterministic algorithms, whatever the number of threads.

With several threads the backward pass of advanced indexing (`x[index]`) adds to a position that is read twice in the order in which
the threads come, so that one batch has another gradient each time. `index_select` adds in one order, and no gradient here flows
through anything else; a test walks the graphs of every recipe. The number of threads still decides how long sums are split: it
belongs to what a run was made from.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

fills: Any = importlib.import_module("torch.utils.deterministic")  # a module whose attribute is a property


@contextmanager
def deterministic(device: torch.device | str) -> Iterator[None]:
    """Deterministic algorithms meanwhile, in all threads of this process.

    On a CPU an operation that has none raises RuntimeError. Elsewhere PyTorch warns of it and goes on: no promise is made there.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(), fills.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=torch.device(device).type != "cpu")
    fills.fill_uninitialized_memory = False  # nothing here reads memory that it has not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        fills.fill_uninitialized_memory = before[2]


def at_true(x: Tensor, mask: Tensor) -> Tensor:
    """x[mask] (N, ...) for a mask over the leading axes of `x`, with a gradient that has one order."""
    return x.flatten(0, mask.ndim - 1).index_select(0, mask.flatten().nonzero()[:, 0])
