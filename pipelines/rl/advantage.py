"""Slot S2: centre, then scale. Both act on the reward (B,) and broadcast over tokens afterwards.

A singleton group has nothing to be compared with: centred by its own mean or by leave-one-out it gets 0. A group without
variance gets 0 from every group-centred estimator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.rl.batch import Batch, group_index


def _group_sums(value_B: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Per row: the sum of `value_B` over its group, and the group's size."""
    index, groups = group_index(batch.group_B)
    total = torch.zeros(groups, dtype=value_B.dtype, device=value_B.device).index_add(0, index, value_B)
    size = torch.zeros_like(total).index_add(0, index, torch.ones_like(value_B))
    return total[index], size[index]


def center_none(reward_B: Tensor, batch: Batch) -> Tensor:
    """No baseline."""
    return reward_B


def center_const(reward_B: Tensor, batch: Batch, *, value: float = 0.0) -> Tensor:
    """R - value."""
    return reward_B - value


def center_batch_mean(reward_B: Tensor, batch: Batch) -> Tensor:
    """R - mean of the batch."""
    return reward_B - reward_B.mean()


def center_group_mean(reward_B: Tensor, batch: Batch) -> Tensor:
    """R - mean of the group (GRPO, arXiv 2402.03300)."""
    total, size = _group_sums(reward_B, batch)
    return reward_B - total / size


def center_leave_one_out(reward_B: Tensor, batch: Batch) -> Tensor:
    """R - mean of the others in the group (RLOO, arXiv 2402.14740) = G/(G-1) (R - mean)."""
    total, size = _group_sums(reward_B, batch)
    return torch.where(size > 1, reward_B - (total - reward_B) / (size - 1).clamp(min=1), 0.0)


def scale_none(advantage_B: Tensor, reward_B: Tensor, batch: Batch) -> Tensor:
    """No division (Dr.GRPO, arXiv 2503.20783)."""
    return advantage_B


def scale_group_std(advantage_B: Tensor, reward_B: Tensor, batch: Batch, *, ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """A / (std of the group's rewards + eps). ddof 1 is the unbiased form that verl and TRL use, 0 the papers' form."""
    total, size = _group_sums(reward_B, batch)
    squares, _ = _group_sums((reward_B - total / size) ** 2, batch)
    std = (squares / (size - ddof).clamp(min=1)).sqrt()
    return advantage_B / (std + eps)


def scale_batch_std(advantage_B: Tensor, reward_B: Tensor, batch: Batch, *, of: str = "centred", ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """A / (std over the batch + eps), of the `raw` rewards (Lite PPO, arXiv 2508.08221) or the `centred` ones."""
    values = reward_B if of == "raw" else advantage_B
    return advantage_B / (values.std(correction=ddof) + eps) if len(values) > ddof else torch.zeros_like(advantage_B)
