"""Batches over ranks: what `advantages` and `weigh` take of a batch, they take of all ranks' rows together.

Where torch.distributed is initialised every rank calls them with its own rows (whole groups, whose ids are those of the whole batch) and
gets its own rows back, so that the losses and gradients of the ranks add up to those of one process with all rows. Every rank must make
the same calls in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.models import ranks
from pipelines.rl.batch import Batch, is_by_row
from pipelines.rl.tensors import TENSORS, Declared

UNDECLARED = Declared("")


def over_ranks(function: Callable[[Batch], Batch], batch: Batch) -> Batch:
    """`function` of all ranks' rows, cut back to this rank's."""
    if ranks.world() == 1:
        return function(batch)
    whole, own = gather(batch)
    result = function(whole).rows(own).narrow(batch.mask_BT.shape[1])
    return result.having(**{name: tensor for name, tensor in batch.tensors().items() if name in TENSORS and TENSORS[name].numbered})


def tensors_over_ranks(function: Callable[[Batch], Mapping[str, Tensor]], batch: Batch) -> dict[str, Tensor]:
    """Tensors with a row per rollout that `function` gives of all ranks' rows, cut back to this rank's."""
    if ranks.world() == 1:
        return dict(function(batch))
    whole, own = gather(batch)
    return {name: value.index_select(0, own) for name, value in function(whole).items()}


def add_up(names: Sequence[str], totals: Sequence[Mapping[str, Tensor]], like: Tensor) -> dict[str, Tensor]:
    """The sums (or lists) `names` over slices, and over the slices of all ranks; a rank without a slice takes part with nothing."""
    result: dict[str, Tensor] = {}
    for name in names:
        shares = [total[name] for total in totals]
        if TENSORS[name].listed:
            result[name] = torch.cat([like.new_zeros(0), *shares])
            if dist.is_initialized():
                result[name] = torch.cat(_all(result[name], 0.0))
        else:
            result[name] = sum(shares, like.new_zeros(()))
            if dist.is_initialized():
                dist.all_reduce(result[name])
    return result


def gather(batch: Batch) -> tuple[Batch, Tensor]:
    """The rows of all ranks in the order of their groups' ids, which is that of one process, and where this rank's are among them.

    Raises:
        ValueError: a group stands on several ranks.
    """
    whole: dict[str, Tensor] = {}
    parts = _all(batch.group_B, 0)
    group_B, rows = torch.cat(parts), [len(part) for part in parts]
    if sum(len(part.unique()) for part in parts) != len(group_B.unique()):
        raise ValueError("rows of one group stand on several processes, or their ids are not those of the whole batch")
    order = group_B.argsort(stable=True)
    for name, tensor in batch.tensors().items():
        if not is_by_row(name):
            continue
        declared = TENSORS.get(name, UNDECLARED)
        parts = _all(tensor, declared.fill)
        if declared.numbered:
            span = int(max(int(part.max()) for part in parts if part.numel())) + 1
            parts = [torch.where(part < 0, part, part + place * span) for place, part in enumerate(parts)]
        whole[name] = torch.cat(parts).index_select(0, order)
    before = sum(rows[: dist.get_rank()])
    own = order.argsort()[before : before + len(batch.group_B)]
    return batch.having(**whole), own


def _all(tensor: Tensor, fill: float) -> list[Tensor]:
    """Every rank's tensor, widened with `fill` to the widest beyond the first axis."""
    world = dist.get_world_size()
    shapes = [torch.zeros(tensor.ndim, dtype=torch.long, device=tensor.device) for _ in range(world)]
    dist.all_gather(shapes, torch.tensor(tensor.shape, device=tensor.device))
    largest = torch.stack(shapes).amax(0).tolist()
    flat = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
    room = torch.full(largest, fill, dtype=flat.dtype, device=flat.device)
    room[tuple(slice(0, size) for size in tensor.shape)] = flat
    parts = [torch.empty_like(room) for _ in range(world)]
    dist.all_gather(parts, room)
    return [part[: int(shape[0])].to(tensor.dtype) for part, shape in zip(parts, shapes, strict=True)]
