"""Slot S1: what is added to the verifier's score before advantages are taken.

Each function takes (reward_B, batch) and returns the shaped reward (B,).
"""

from __future__ import annotations

from torch import Tensor

from pipelines.rl.batch import Batch


def none(reward_B: Tensor, batch: Batch) -> Tensor:
    """The verifier's score as it is."""
    return reward_B


def overlong(reward_B: Tensor, batch: Batch, *, limit: int = 20480, buffer: int = 4096) -> Tensor:
    """DAPO's soft overlong penalty (arXiv 2503.14476): 0 up to limit - buffer tokens, then linear down to -1 at the limit."""
    length_B = batch.mask_BT.sum(-1)
    return reward_B + ((limit - buffer - length_B) / buffer).clamp(-1.0, 0.0)
