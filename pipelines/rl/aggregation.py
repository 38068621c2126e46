"""Slot S8: per-token losses (B, T) to one number.

Denominators come from `batch.whole`, the whole optimiser batch, so that splitting it into micro-batches (whose losses
are then summed) changes nothing. Fully masked rows count nowhere; an empty mask gives 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.rl.batch import Batch, group_index


def _sequences(batch: Batch) -> Tensor:
    """Sequences of the whole batch with at least one trainable token."""
    return (batch.whole.mask_BT.sum(-1) > 0).sum().clamp(min=1)


def token_mean(loss_BT: Tensor, batch: Batch) -> Tensor:
    """Mean over all tokens (DAPO)."""
    return (loss_BT * batch.mask_BT).sum() / batch.whole.mask_BT.sum().clamp(min=1)


def sequence_mean_token_mean(loss_BT: Tensor, batch: Batch) -> Tensor:
    """Mean over sequences of the mean over their tokens (GRPO)."""
    per_sequence = (loss_BT * batch.mask_BT).sum(-1) / batch.mask_BT.sum(-1).clamp(min=1)
    return per_sequence.sum() / _sequences(batch)


def sequence_mean_token_sum(loss_BT: Tensor, batch: Batch) -> Tensor:
    """Mean over sequences of the sum over their tokens (REINFORCE)."""
    return (loss_BT * batch.mask_BT).sum() / _sequences(batch)


def sequence_mean_token_sum_norm(loss_BT: Tensor, batch: Batch, *, length: int) -> Tensor:
    """As above, divided by a constant, the longest response allowed (Dr.GRPO)."""
    return sequence_mean_token_sum(loss_BT, batch) / length


def prompt_mean(loss_BT: Tensor, batch: Batch) -> Tensor:
    """Mean over prompts of the mean over all tokens of the prompt's responses (ScaleRL, arXiv 2510.13786)."""
    index, groups = group_index(batch.whole.group_B)
    tokens = torch.zeros(groups, device=loss_BT.device).index_add(0, index, batch.whole.mask_BT.sum(-1).float())
    ids = torch.unique(batch.whole.group_B)
    own = torch.searchsorted(ids, batch.group_B)
    per_row = (loss_BT * batch.mask_BT).sum(-1) / tokens[own].clamp(min=1)
    return per_row.sum() / (tokens > 0).sum().clamp(min=1)
