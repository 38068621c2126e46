"""Slot `aggregation`: what a token's loss weighs in the loss of the optimiser step.

Every aggregation is a coefficient per row (B,): L = sum_b c_b sum_t m_bt l_bt. It is taken once from the whole batch (all
micro-batches, all ranks), so that the losses of its slices add up to its own. Fully masked rows count nowhere, and an
empty mask gives 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.rl.batch import group_index, group_sum, present


def token_mean(mask_BT: Tensor) -> Tensor:
    """Mean over all tokens (DAPO)."""
    return torch.ones_like(mask_BT[:, 0]) / mask_BT.sum().clamp(min=1)


def sequence_mean_token_sum(mask_BT: Tensor) -> Tensor:
    """Mean over sequences of the sum over their tokens (REINFORCE)."""
    return torch.ones_like(mask_BT[:, 0]) / present(mask_BT).sum().clamp(min=1)


def sequence_mean_token_mean(mask_BT: Tensor) -> Tensor:
    """Mean over sequences of the mean over their tokens (GRPO)."""
    return sequence_mean_token_sum(mask_BT) / mask_BT.sum(-1).clamp(min=1)


def sequence_mean_token_sum_norm(mask_BT: Tensor, response_limit: Tensor | None = None, *, length: int | None = None) -> Tensor:
    """Mean over sequences of the sum over their tokens, divided by a constant (Dr.GRPO): `length`, or the longest response
    that the run allows."""
    constant = length if length is not None else response_limit
    if constant is None:
        raise ValueError("sequence_mean_token_sum_norm divides by the longest response: set its `length`, or the batch's response_limit")
    return sequence_mean_token_sum(mask_BT) / constant


def prompt_mean(mask_BT: Tensor, group_B: Tensor) -> Tensor:
    """Mean over prompts of the mean over all tokens of the prompt's responses (ScaleRL, arXiv 2510.13786)."""
    tokens_B, _ = group_sum(mask_BT.sum(-1), group_B)
    _, prompts = group_index(group_B[tokens_B > 0])
    return 1 / (tokens_B.clamp(min=1) * max(prompts, 1))


def constant_sum(mask_BT: Tensor, *, constant: float = 1000.0) -> Tensor:
    """Sum over all tokens, divided by a constant (NFT)."""
    return torch.full_like(mask_BT[:, 0], 1 / constant)


def original(mask_BT: Tensor, kept_BT: Tensor) -> Tensor:
    """Slot `denominator`: tokens that a mask took out of the sum still count below it (AReaL, IcePop, UloRL)."""
    return mask_BT


def kept(mask_BT: Tensor, kept_BT: Tensor) -> Tensor:
    """Slot `denominator`: only tokens that are summed count."""
    return mask_BT * kept_BT
