"""Slot S6: a detached weight for the gap between the training and the generation engine, d = log pi_old - log mu.

Each function takes (gap_BT, batch) and returns a weight (B, T).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.rl.batch import Batch


def none(gap_BT: Tensor, batch: Batch) -> Tensor:
    """No correction."""
    return torch.ones_like(gap_BT)


def token_truncated(gap_BT: Tensor, batch: Batch, *, cap: float = 2.0) -> Tensor:
    """min(pi_old / mu, cap) (truncated importance sampling)."""
    return gap_BT.exp().clamp(max=cap)


def token_window(gap_BT: Tensor, batch: Batch, *, low: float = 0.5, high: float = 5.0) -> Tensor:
    """The ratio inside [low, high], 0 outside (IcePop, arXiv 2510.18855)."""
    ratio = gap_BT.exp()
    return ratio * ((ratio >= low) & (ratio <= high))
