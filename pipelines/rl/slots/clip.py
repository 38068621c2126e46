"""Slot `clip`: log ratio x and advantage to the loss of each token (B, T), to be minimised.

The first five differentiate through the ratio; the `score` family weighs the score function, -sg(w) A log pi.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def surrogate(x_BT: Tensor, advantage_BT: Tensor) -> Tensor:
    """-A r."""
    return -advantage_BT * x_BT.exp()


def ppo(x_BT: Tensor, advantage_BT: Tensor, *, low: float = 0.2, high: float = 0.2, dual: float | None = None) -> Tensor:
    """max(-A r, -A clip(r, 1 - low, 1 + high)) (arXiv 1707.06347); for A < 0 at most -A dual (dual clip, arXiv 1912.09729)."""
    ratio = x_BT.exp()
    return _pessimistic(ratio, ratio.clamp(1 - low, 1 + high), advantage_BT, dual)


def ppo_centred(x_BT: Tensor, advantage_BT: Tensor, logp_old_BT: Tensor, anchor_BT: Tensor, *, low: float = 0.2, high: float = 0.2) -> Tensor:
    """PPO's clip around q = pi_old / anchor, where the ratio of replayed tokens starts (ReMix, arXiv 2507.06892)."""
    ratio, centre = x_BT.exp(), (logp_old_BT - anchor_BT).exp()
    return _pessimistic(ratio, torch.minimum(torch.maximum(ratio, centre - low), centre + high), advantage_BT, None)


def ppo_log_adaptive(
    x_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor, *, low: float = 0.025, high: float = 0.05, dual: float | None = 0.05, power: float = 0.5
) -> Tensor:
    """PPO's clip of the log ratio to [-low n^power, high n^power], n the token's place; dual clip at exp(dual n^power) (CTPO)."""
    width_BT = mask_BT.cumsum(-1).clamp(min=1) ** power
    clipped = torch.minimum(torch.maximum(x_BT, -low * width_BT), high * width_BT).exp()
    return _pessimistic(x_BT.exp(), clipped, advantage_BT, None if dual is None else (dual * width_BT).exp())


def ppo_low_probability(
    x_BT: Tensor,
    advantage_BT: Tensor,
    logp_BT: Tensor,
    logp_proxy_BT: Tensor,
    low_BT: Tensor,
    *,
    low: float = 1.0,
    high: float = 9.0,
    beta: float = 1.0,
) -> Tensor:
    """Lp-Reg (arXiv 2510.03222): unlikely tokens that are no noise are held near the proxy instead of being clipped.

    Where the token is among the least likely of negative advantage (`low_BT`) and below the proxy q:
    -A r + beta (q/pi - log(q/pi) - 1).
    """
    gap_BT = logp_proxy_BT - logp_BT
    held = (low_BT > 0) & (gap_BT.detach() > 0)
    gap_BT = torch.where(held, gap_BT, 0.0)  # elsewhere exp could overflow
    return torch.where(held, surrogate(x_BT, advantage_BT) + beta * (gap_BT.exp() - gap_BT - 1), ppo(x_BT, advantage_BT, low=low, high=high))


def shaped_guide(
    x_BT: Tensor, advantage_BT: Tensor, logp_BT: Tensor, guided_BT: Tensor, *, low: float = 0.2, high: float = 0.2, gamma: float = 0.1
) -> Tensor:
    """PPO's clip, but -A pi / (pi + gamma) on tokens that a guide wrote (LUFFY, arXiv 2504.14945): the ratio to a guide that is sure of them, shaped
    so that unlikely tokens have a larger share of the gradient, and without clip."""
    pi_BT = logp_BT.exp()
    return torch.where(guided_BT > 0, -advantage_BT * pi_BT / (pi_BT + gamma), ppo(x_BT, advantage_BT, low=low, high=high))


def soft_gate(x_BT: Tensor, advantage_BT: Tensor, *, positive: float = 1.0, negative: float = 1.05) -> Tensor:
    """-A (4 / tau) sigmoid(tau (r - 1)), tau by the sign of A (SAPO, arXiv 2511.20347): on-policy the gradient is that of -A r, and
    it fades smoothly away from r = 1 instead of being cut."""
    tau = torch.where(advantage_BT > 0, x_BT.new_tensor(positive), x_BT.new_tensor(negative))
    return -advantage_BT * torch.sigmoid(tau * (x_BT.exp() - 1)) * 4 / tau


def window(x_BT: Tensor, advantage_BT: Tensor, *, low: float = 0.2, high: float = 5.0) -> Tensor:
    """-A r inside [low, high], 0 outside (IcePop with one ratio)."""
    ratio = x_BT.exp()
    return -advantage_BT * ratio * ((ratio >= low) & (ratio <= high)).detach()


def score(advantage_BT: Tensor, logp_BT: Tensor) -> Tensor:
    """-A log pi: REINFORCE."""
    return -advantage_BT * logp_BT


def score_ratio(x_BT: Tensor, advantage_BT: Tensor, logp_BT: Tensor) -> Tensor:
    """-sg(r) A log pi: REINFORCE with the importance weight."""
    return -x_BT.detach().exp() * advantage_BT * logp_BT


def weight_cap(x_BT: Tensor, advantage_BT: Tensor, logp_BT: Tensor, *, low: float = 0.0, high: float = 5.0) -> Tensor:
    """-sg(clip(r, low, high)) A log pi (CISPO, arXiv 2506.13585): every token keeps a gradient, its weight is bounded."""
    return -x_BT.detach().exp().clamp(low, high) * advantage_BT * logp_BT


def masked_score(x_BT: Tensor, advantage_BT: Tensor, logp_BT: Tensor, *, low: float = 0.2, high: float = 0.2, cap: float | None = None) -> Tensor:
    """-M sg(min(r, cap)) A log pi, M = 0 where PPO would clip: A > 0 and r > 1 + high, or A < 0 and r < 1 - low."""
    ratio = x_BT.detach().exp()
    outside = ((advantage_BT > 0) & (ratio > 1 + high)) | ((advantage_BT < 0) & (ratio < 1 - low))
    return -torch.where(outside, 0.0, ratio if cap is None else ratio.clamp(max=cap)) * advantage_BT * logp_BT


def taper(
    x_BT: Tensor, advantage_BT: Tensor, logp_BT: Tensor, *, positive: Sequence[float] = (1.0, 1.0), negative: Sequence[float] = (0.0, 1.0)
) -> Tensor:
    """-sg(W) A log pi, W the ratio inside `positive` where A >= 0 and inside `negative` elsewhere (TOPR, arXiv 2503.14286)."""
    ratio = x_BT.detach().exp()
    return -torch.where(advantage_BT >= 0, ratio.clamp(*positive), ratio.clamp(*negative)) * advantage_BT * logp_BT


def soft_gamma(
    x_BT: Tensor, advantage_BT: Tensor, logp_BT: Tensor, *, positive: Sequence[float] = (2.0, 3.0), negative: Sequence[float] = (3.0, 2.0)
) -> Tensor:
    """-sg(phi) A log pi, phi = exp(lam) r^k exp(-lam r), which is 1 at r = 1 and highest at r = k / lam; (k, lam) is `positive` where A >= 0, else
    `negative` (VESPO, arXiv 2602.10693)."""
    log_ratio = x_BT.detach()
    first, second = ((k * log_ratio + lam * (1 - log_ratio.exp())).exp() for k, lam in (positive, negative))
    return -torch.where(advantage_BT >= 0, first, second) * advantage_BT * logp_BT


def _pessimistic(ratio: Tensor, clipped: Tensor, advantage_BT: Tensor, dual: float | Tensor | None) -> Tensor:
    loss = torch.maximum(-advantage_BT * ratio, -advantage_BT * clipped)
    return loss if dual is None else torch.where(advantage_BT < 0, torch.minimum(loss, -advantage_BT * dual), loss)


RELATIVE = (ppo, ppo_low_probability, masked_score, shaped_guide)
"""Clips to [1 - low, 1 + high], beyond which a token has no gradient."""


def bounds(clip: Callable[..., Tensor]) -> tuple[float, float] | None:
    """(low, high) of such a clip with its settings, None for any other."""
    if getattr(clip, "func", clip) not in RELATIVE:
        return None
    parameters = inspect.signature(clip).parameters
    return parameters["low"].default, parameters["high"].default
