"""NFT: supervised fine-tuning on right responses and, through an implicit negative policy, on wrong ones.

right: -w log r_t;  wrong: -w log((1 - q r_t) / (1 - q));  r = pi/pi_old, q the prompt's success rate, both arguments kept
above a floor by a straight-through estimator: the value is floored, the gradient is not.

(NFT: Bridging Supervised Learning and Reinforcement Learning in Math Reasoning, arXiv 2505.18116.) With w = 1 - q it has Dr.GRPO's gradient
on-policy, with w = sqrt((1-q)/q) that of GRPO with the population deviation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def negative_aware(
    logp_BT: Tensor,
    logp_old_BT: Tensor,
    correct_B: Tensor,
    rate_B: Tensor,
    *,
    weight: Literal["dr_grpo", "grpo", "one"] = "dr_grpo",
    negative: float = 1.0,
    bounds: tuple[float, float] = (0.02, 0.98),
    floor: float = 1.0,
) -> Tensor:
    """Loss per token (B, T). `negative` weighs wrong responses (0 gives rejection-sampling fine-tuning); `floor` is for them."""
    rate_B1 = rate_B.clamp(*bounds)[:, None]
    ratio_BT = (logp_BT - logp_old_BT).clamp(-20, 20).exp()
    right_BT = -_straight_through(ratio_BT, 1e-8).log()
    wrong_BT = -_straight_through((1 - rate_B1 * ratio_BT) / (1 - rate_B1), floor).log()
    weight_B1 = {"dr_grpo": 1 - rate_B1, "grpo": ((1 - rate_B1) / rate_B1).sqrt(), "one": torch.ones_like(rate_B1)}[weight]
    return weight_B1 * torch.where(correct_B.bool()[:, None], right_BT, negative * wrong_BT)


def _straight_through(value: Tensor, floor: float) -> Tensor:
    """max(value, floor), with the gradient of value."""
    return value + (value.clamp(min=floor) - value).detach()
