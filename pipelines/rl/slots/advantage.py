"""Slots `center` and `scale`: from the shaped reward (B,) to the advantage (B,) of a whole response.

A singleton group has nothing to be compared with: `singleton` says whether it gets 0 (the default) or keeps its reward, as in
verl; its deviation counts as 1. A group without variance gets 0 from every group-centred estimator; whether it counts in
the denominators is the slot `routing`. Statistics of a group count all its rows; those of the batch only rows that still have
a trainable token.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.rl.batch import group_index, group_mean, group_sum, present
from pipelines.rl.slots.routing import drop_zero_variance

Singleton = Literal["zero", "keep"]


def center_none(shaped_B: Tensor) -> Tensor:
    """No baseline."""
    return shaped_B


def center_const(shaped_B: Tensor, *, value: float = 0.0) -> Tensor:
    """R - value."""
    return shaped_B - value


def center_batch_mean(shaped_B: Tensor, mask_BT: Tensor) -> Tensor:
    """R - mean of the batch."""
    rows = present(mask_BT)
    return shaped_B - (shaped_B * rows).sum() / rows.sum().clamp(min=1)


def center_group_mean(shaped_B: Tensor, group_B: Tensor, *, singleton: Singleton = "zero") -> Tensor:
    """R - mean of the group (GRPO, arXiv 2402.03300)."""
    total, size = group_sum(shaped_B, group_B)
    return torch.where(size > 1, shaped_B - total / size, _alone(shaped_B, singleton))


def center_length_mean(shaped_B: Tensor, group_B: Tensor, mask_BT: Tensor, *, singleton: Singleton = "zero") -> Tensor:
    """R - sum of length * R / sum of lengths over the group: the baseline of least variance where a token's score has the same size everywhere (OPO,
    arXiv 2505.23585)."""
    length_B = mask_BT.sum(-1)
    total, size = group_sum(length_B * shaped_B, group_B)
    tokens, _ = group_sum(length_B, group_B)
    return torch.where(size > 1, shaped_B - total / tokens.clamp(min=1), _alone(shaped_B, singleton))


def center_leave_one_out(shaped_B: Tensor, group_B: Tensor, *, singleton: Singleton = "zero") -> Tensor:
    """R - mean of the others in the group (RLOO, arXiv 2402.14740) = G/(G-1) (R - mean)."""
    total, size = group_sum(shaped_B, group_B)
    return torch.where(size > 1, shaped_B - (total - shaped_B) / (size - 1).clamp(min=1), _alone(shaped_B, singleton))


def _alone(shaped_B: Tensor, singleton: Singleton) -> Tensor:
    return shaped_B if singleton == "keep" else torch.zeros_like(shaped_B)


def center_critic(shaped_B: Tensor, baseline_B: Tensor) -> Tensor:
    """R - V(prompt), the expected reward of the reference policy."""
    return shaped_B - baseline_B


def center_pool_mean(shaped_B: Tensor, pool_mean_B: Tensor) -> Tensor:
    """R - mean reward of all that the group was answered, of which only some trains (Reinforce-Ada, arXiv 2510.04996)."""
    return shaped_B - pool_mean_B


def center_greedy(shaped_B: Tensor, greedy_B: Tensor) -> Tensor:
    """R - R of the greedy answer to the problem (ReMax, arXiv 2310.10505)."""
    return shaped_B - greedy_B


def center_role_mean(shaped_B: Tensor, role_baseline_B: Tensor) -> Tensor:
    """R - running mean of the role's rewards before it (SPIRAL's role-conditioned advantage, arXiv 2506.24119)."""
    return shaped_B - role_baseline_B


def scale_none(centred_B: Tensor) -> Tensor:
    """No division (Dr.GRPO, arXiv 2503.20783)."""
    return centred_B


def scale_group_std(centred_B: Tensor, shaped_B: Tensor, group_B: Tensor, *, ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """A / (std of the group's rewards + eps). ddof 1 is the unbiased form that verl and TRL use, 0 the papers' form."""
    squares, size = group_sum((shaped_B - group_mean(shaped_B, group_B)) ** 2, group_B)
    std_B = torch.where(size > 1, (squares / (size - ddof).clamp(min=1)).sqrt(), 1.0)
    return centred_B / (std_B + eps)


def scale_group_mean(centred_B: Tensor, shaped_B: Tensor, group_B: Tensor) -> Tensor:
    """A / mean of the group's rewards, 0 where that is 0: a prompt of success rate p weighs 1/p (MaxRL, arXiv 2602.02710).

    Raises:
        UserError: a reward is below 0, so the mean says nothing of how often the prompt is solved.
    """
    if (shaped_B < 0).any():
        least = float(shaped_B.min())
        raise UserError(f"scale 'group_mean' divides by the mean reward of a group, and there is a reward of {least:g}; keep them at 0 or above")
    mean_B = group_mean(shaped_B, group_B)
    return torch.where(mean_B > 0, centred_B / torch.where(mean_B > 0, mean_B, 1.0), 0.0)


def scale_valid_share(centred_B: Tensor, shaped_B: Tensor, group_B: Tensor, mask_BT: Tensor) -> Tensor:
    """A * B / (B - M), M of the B responses being in groups without variance, which still count in the denominators (GPG, arXiv 2504.02546)."""
    rows = present(mask_BT)
    valid = rows & drop_zero_variance(shaped_B, group_B)
    return centred_B * rows.sum() / valid.sum().clamp(min=1)


def scale_batch_std(
    centred_B: Tensor, shaped_B: Tensor, mask_BT: Tensor, *, of: Literal["raw", "centred"] = "centred", ddof: int = 1, eps: float = 1e-6
) -> Tensor:
    """A / (std over the batch + eps), of the `raw` rewards (Lite PPO, arXiv 2508.08221) or the `centred` ones (ScaleRL)."""
    values = (shaped_B if of == "raw" else centred_B)[present(mask_BT)]
    return centred_B / (values.std(correction=ddof) + eps) if len(values) > ddof else torch.zeros_like(centred_B)


def scale_beta(
    centred_B: Tensor, shaped_B: Tensor, group_B: Tensor, mask_BT: Tensor, *, ceiling: float = 1e6, variance_floor: float = 1e-6
) -> Tensor:
    """A / Beta(p; alpha, beta): BNPO, p the group's success rate (rewards in [0, 1]), at most `ceiling` times A.

    a, b are the moments' fit of a Beta distribution to the rates of the batch's prompts; alpha = max(1, 1 + a/3) and beta
    likewise. One prompt alone gives alpha = beta = 1, which is plain centring.
    """
    rate_B = group_mean(shaped_B, group_B)
    index, groups = group_index(group_B[present(mask_BT)])
    rate_P = torch.zeros(groups).to(rate_B).index_copy(0, index, rate_B[present(mask_BT)])
    if groups > 1:
        mean, variance = rate_P.mean(), rate_P.var(correction=1).clamp(min=variance_floor)
        strength = mean * (1 - mean) / variance - 1
        alpha, beta = (1 + strength * mean / 3).clamp(min=1), (1 + strength * (1 - mean) / 3).clamp(min=1)
    else:
        alpha = beta = torch.ones(()).to(rate_B)
    log_pdf = (
        torch.xlogy(alpha - 1, rate_B) + torch.xlogy(beta - 1, 1 - rate_B) + torch.lgamma(alpha + beta) - torch.lgamma(alpha) - torch.lgamma(beta)
    )
    return centred_B * (-log_pdf).exp().clamp(0.0, ceiling)


def scale_hardness(centred_B: Tensor, shaped_B: Tensor, group_B: Tensor, *, offset: float = 1.256, slope: float = 0.256) -> Tensor:
    """A (offset - slope * mean_g): harder prompts weigh more; rewards are -1 and 1 (Confucius3-Math's PSHW, arXiv 2506.18330)."""
    return centred_B * (offset - slope * group_mean(shaped_B, group_B))
