"""Slots S4 and S5: the importance ratio and what bounds it. Each returns the per-token loss (B, T) to be minimised.

Ratio functions return the log ratio x_BT whose exponent weighs a token; clip functions turn (x, advantage, logp) into a loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.rl.batch import Batch

LOG_LIMIT = 20.0
"""Log ratios are clamped to +-20 before exp, as verl does; sequence ratios to +10."""


def ratio_token(logp_BT: Tensor, batch: Batch) -> Tensor:
    """log pi - log pi_old, token by token."""
    return (logp_BT - batch.logp_old_BT).clamp(-LOG_LIMIT, LOG_LIMIT)


def ratio_sequence(logp_BT: Tensor, batch: Batch) -> Tensor:
    """Length-normalised sequence ratio (GSPO, arXiv 2507.18071) at every token, in the GSPO-token form.

    The value is the sequence's; the gradient reaches each token's own log-probability, which sums to the sequence's.
    """
    length = batch.mask_BT.sum(-1, keepdim=True).clamp(min=1)
    mean = ((logp_BT - batch.logp_old_BT) * batch.mask_BT).sum(-1, keepdim=True) / length
    return mean.detach().clamp(max=10.0) + logp_BT - logp_BT.detach()


def clip_none(x_BT: Tensor, advantage_BT: Tensor, logp_BT: Tensor) -> Tensor:
    """-A r."""
    return -advantage_BT * x_BT.exp()


def clip_ppo(x_BT: Tensor, advantage_BT: Tensor, logp_BT: Tensor, *, low: float = 0.2, high: float = 0.2, dual: float | None = None) -> Tensor:
    """max(-A r, -A clip(r, 1 - low, 1 + high)) (arXiv 1707.06347); for A < 0 at most -A dual (dual clip, arXiv 1912.09729)."""
    ratio = x_BT.exp()
    loss = torch.maximum(-advantage_BT * ratio, -advantage_BT * ratio.clamp(1 - low, 1 + high))
    if dual is None:
        return loss
    return torch.where(advantage_BT < 0, torch.minimum(loss, -advantage_BT * dual), loss)


def clip_score(x_BT: Tensor, advantage_BT: Tensor, logp_BT: Tensor) -> Tensor:
    """-A log pi: REINFORCE, whose gradient does not pass through a ratio."""
    return -advantage_BT * logp_BT


def clip_weight_cap(x_BT: Tensor, advantage_BT: Tensor, logp_BT: Tensor, *, low: float = 0.0, high: float = 1.2) -> Tensor:
    """-sg(clip(r, low, high)) A log pi (CISPO, arXiv 2506.13585): every token keeps a gradient, its weight is bounded."""
    return -x_BT.detach().exp().clamp(low, high) * advantage_BT * logp_BT
