"""Slot `mismatch`: detached weights (B, T) for the gap d = log pi_old - log mu between the training and the generation engine.

A list multiplies. Names after the public taxonomy of truncated (TIS) and masked (MIS) importance sampling.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipelines.rl.batch import token_mean


def token_truncated(gap_BT: Tensor, *, cap: float = 2.0) -> Tensor:
    """min(pi_old / mu, cap) (token TIS)."""
    return gap_BT.exp().clamp(max=cap)


def token_window(gap_BT: Tensor, *, low: float = 0.5, high: float = 5.0, keep: Literal["ratio", "one"] = "ratio") -> Tensor:
    """The ratio (or 1) inside [low, high], 0 outside (token MIS; IcePop, arXiv 2510.18855)."""
    ratio = gap_BT.exp()
    return (ratio if keep == "ratio" else torch.ones_like(ratio)) * ((ratio >= low) & (ratio <= high))


def token_capped(gap_BT: Tensor, *, cap: float = 5.0) -> Tensor:
    """The ratio up to cap, 0 above (AReaL, arXiv 2505.24298)."""
    ratio = gap_BT.exp()
    return ratio * (ratio <= cap)


def sequence_truncated(gap_BT: Tensor, *, cap: float = 5.0) -> Tensor:
    """min(product over the response, cap) on all its tokens (sequence TIS)."""
    return gap_BT.sum(-1, keepdim=True).clamp(max=20.0).exp().clamp(max=cap).expand_as(gap_BT)


def sequence_window(gap_BT: Tensor, *, low: float = 0.0, high: float = 2.0) -> Tensor:
    """Responses whose product lies in [low, high] (sequence MIS)."""
    ratio = gap_BT.sum(-1, keepdim=True).clamp(max=20.0).exp()
    return ((ratio >= low) & (ratio <= high)).to(gap_BT).expand_as(gap_BT)


def geometric_window(gap_BT: Tensor, mask_BT: Tensor, *, low: float = 0.999, high: float = 1.001) -> Tensor:
    """Responses whose geometric mean ratio lies in [low, high]."""
    ratio = token_mean(gap_BT, mask_BT)[:, None].exp()
    return ((ratio >= low) & (ratio <= high)).to(gap_BT).expand_as(gap_BT)


def divergence_limit(gap_BT: Tensor, mask_BT: Tensor, *, estimator: Literal["k2", "k3"] = "k3", limit: float = 1e-3) -> Tensor:
    """Responses whose mean k2 = d^2/2 or k3 = exp(d) - 1 - d stays within `limit`."""
    value_BT = gap_BT**2 / 2 if estimator == "k2" else gap_BT.exp() - 1 - gap_BT
    return (token_mean(value_BT, mask_BT)[:, None] <= limit).to(gap_BT).expand_as(gap_BT)


def veto(gap_BT: Tensor, *, floor: float = 1e-4) -> Tensor:
    """Responses without a token whose ratio is below `floor`."""
    return (gap_BT.exp() >= floor).all(-1, keepdim=True).to(gap_BT).expand_as(gap_BT)


def divide_by_mean(gap_BT: Tensor, mismatch_mean: Tensor) -> Tensor:
    """1 / mean over the batch's tokens of what the other functions of the list give: the weights then average 1. Where they reject every
    token there is nothing to average, and the weights stay 0."""
    return torch.ones_like(gap_BT) / torch.where(mismatch_mean > 0, mismatch_mean, 1.0)
