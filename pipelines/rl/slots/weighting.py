"""Slots `token_mask` and `token_weight`: which tokens of a response count in the policy loss, and how much.

A mask takes tokens out of the sum; whether the denominators shrink with it is the slot `denominator`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.rl.batch import token_mean


def unmastered(logp_BT: Tensor, entropy_BT: Tensor, correct_B: Tensor, mask_BT: Tensor, *, tau: float = 0.99, sigma: float = 0.2) -> Tensor:
    """UloRL (arXiv 2507.19766): tokens of right responses with probability >= tau do not train once the response's mean
    entropy is below sigma."""
    settled_B = correct_B.bool() & (token_mean(entropy_BT.detach(), mask_BT) < sigma)
    return (~(settled_B[:, None] & (logp_BT.detach().exp() >= tau))).to(mask_BT)


def without_teacher(reprompt_B: Tensor, correct_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Responses that are right, or that no teacher could score: the others are distilled instead (SRPO)."""
    return (correct_B.bool() | ~reprompt_B.bool())[:, None].to(mask_BT).expand_as(mask_BT)


def discriminative(
    hidden_old_BTH: Tensor,
    logp_old_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    low: float = 0.8,
    high: float = 1.2,
    refinements: int = 1,
    temperature: float | None = None,
) -> Tensor:
    """DelTA (arXiv 2605.21467): tokens that tell right responses from wrong ones weigh more; the weights average 1.

    A token's feature is (1 - p) h, the gradient of its log-probability at the head; c = low + (high - low) sigmoid(s / tau),
    s how much nearer it is to its own side's centroid (weighted by |A|) than to the other's, tau the side's mean |s|.
    """
    trained = mask_BT > 0
    feature_NH = ((1 - logp_old_BT.exp())[..., None] * hidden_old_BTH)[trained]
    advantage_N = advantage_BT[trained].to(feature_NH)
    sides = [advantage_N > 0, advantage_N < 0]
    if not all(side.any() for side in sides):
        return torch.ones_like(mask_BT)
    likely_N = torch.ones_like(advantage_N)
    for last in [False] * refinements + [True]:
        centres = [((w := (advantage_N.abs() * likely_N)[side])[:, None] * feature_NH[side]).sum(0) / w.sum() for side in sides]
        new_N = torch.full_like(advantage_N, 0.5)
        for side, own, other in ((sides[0], *centres), (sides[1], *centres[::-1])):
            score_N = ((feature_NH[side] - other) ** 2).sum(-1) - ((feature_NH[side] - own) ** 2).sum(-1)
            tau = score_N.abs().mean().clamp(min=1e-12) if temperature is None else temperature
            new_N[side] = torch.sigmoid(score_N / tau)
        likely_N = new_N
        if last:
            break
    weight_N = low + (high - low) * likely_N
    return torch.ones_like(mask_BT).masked_scatter(trained, (weight_N / weight_N.mean()).to(mask_BT))
