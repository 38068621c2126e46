"""Slot S11: which rollouts of a batch train at all. Each function takes a batch and returns a row mask (B,) of bools."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.rl.batch import Batch, group_index


def all_rows(batch: Batch) -> Tensor:
    """Every rollout."""
    return torch.ones_like(batch.reward_B, dtype=torch.bool)


def drop_zero_variance(batch: Batch) -> Tensor:
    """Groups whose rewards differ: the others carry no signal, and would only enlarge the denominators (DAPO)."""
    index, groups = group_index(batch.group_B)
    most = torch.full((groups,), -torch.inf).to(batch.reward_B).scatter_reduce(0, index, batch.reward_B, "amax")
    least = torch.full((groups,), torch.inf).to(batch.reward_B).scatter_reduce(0, index, batch.reward_B, "amin")
    return (most > least)[index]


def drop_truncated(batch: Batch) -> Tensor:
    """Responses that ended by themselves (DAPO's overlong filtering)."""
    return all_rows(batch) if batch.truncated_B is None else ~batch.truncated_B
