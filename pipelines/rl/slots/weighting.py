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


def probability_gap(
    logp_BT: Tensor, logp_roll_BT: Tensor, advantage_BT: Tensor, *, low: float = 0.2, high: float = 0.2, signed: bool = True
) -> Tensor:
    """DPPO's total variation (arXiv 2602.04879): tokens whose probability has moved by more than `high` up where A > 0, or by more than `low` down
    elsewhere, do not train. A rare token may change by any ratio, where PPO clips it. signed: false drops what moved too far either way."""
    gap_BT = logp_BT.detach().exp() - logp_roll_BT.exp()
    up, down = gap_BT > high, gap_BT < -low
    return (~(torch.where(advantage_BT > 0, up, down) if signed else up | down)).to(logp_BT)


def binary_kl(logp_BT: Tensor, logp_roll_BT: Tensor, advantage_BT: Tensor, *, limit: float = 0.05) -> Tensor:
    """DPPO's divergence (arXiv 2602.04879): tokens with KL(mu || pi) > `limit`, of the choice between this token and all others, do not train where
    they have moved in the direction of their advantage."""
    x_BT = logp_BT.detach()
    return (~((bernoulli_kl(logp_roll_BT, x_BT) > limit) & (advantage_BT * (x_BT - logp_roll_BT) > 0))).to(logp_BT)


def binary_kl_both(logp_BT: Tensor, logp_roll_BT: Tensor, *, limit: float = 0.1) -> Tensor:
    """KPop: tokens with KL(mu || pi) or KL(pi || mu) > `limit`, of the choice between this token and all others, do not train, whatever their
    advantage."""
    x_BT = logp_BT.detach()
    return ((bernoulli_kl(logp_roll_BT, x_BT) <= limit) & (bernoulli_kl(x_BT, logp_roll_BT) <= limit)).to(logp_BT)


def bernoulli_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p || q) of one event, p and q inside [1e-6, 1 - 1e-6]."""
    p, q = (value.exp().clamp(1e-6, 1 - 1e-6) for value in (logp, logq))
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def second_moment(
    logp_BT: Tensor, logp_roll_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor, harmful_N: Tensor | None = None, *, limit: float = 0.04
) -> Tensor:
    """M2PO (arXiv 2510.01161): of the optimiser step's tokens that have moved in the direction of their advantage, by D = log pi - log mu, those with
    the largest D^2 do not train, so many that the mean of the rest is at most `limit`."""
    square_BT = _harm(logp_BT, logp_roll_BT, advantage_BT, mask_BT)
    ordered_N = (square_BT[square_BT > 0] if harmful_N is None else harmful_N).sort().values
    mean_N = ordered_N.cumsum(0) / torch.arange(1, len(ordered_N) + 1, device=ordered_N.device)
    above_N = ordered_N[mean_N > limit]
    return (square_BT < above_N[0]).to(logp_BT) if len(above_N) else torch.ones_like(logp_BT)


def harmful_squares(logp_BT: Tensor, logp_roll_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """D^2 (N,) of the tokens that have moved in the direction of their advantage."""
    square_BT = _harm(logp_BT, logp_roll_BT, advantage_BT, mask_BT)
    return square_BT[square_BT > 0]


def _harm(logp_BT: Tensor, logp_roll_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """D^2 of those tokens, 0 of the others."""
    d_BT = logp_BT.detach() - logp_roll_BT
    return torch.where((advantage_BT * d_BT > 0) & (mask_BT > 0), d_BT**2, 0.0)


def uncertain_guide(entropy_BT: Tensor, guided_BT: Tensor, mask_BT: Tensor, *, share: float = 0.2) -> Tensor:
    """Prefix-RFT (arXiv 2507.01679): of the tokens that a guide wrote in a response those train, a `share` and at least one, at which the policy's
    entropy is highest; what others wrote trains."""
    guide_BT = (guided_BT > 0) & (mask_BT > 0)
    count_B = (share * guide_BT.sum(-1) + 1e-6).floor().clamp(min=1)
    order_BT = entropy_BT.detach().masked_fill(~guide_BT, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    place_BT = order_BT.argsort(-1)
    return (~guide_BT | (place_BT < count_B[:, None])).to(mask_BT)


def praised_guide(guided_BT: Tensor, advantage_BT: Tensor) -> Tensor:
    """What a guide wrote trains where its advantage is above 0, so that the policy is drawn to it and never away (ThinkTuning, arXiv 2508.07616)."""
    return ((guided_BT == 0) | (advantage_BT > 0)).to(advantage_BT)


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
