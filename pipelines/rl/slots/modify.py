"""Slot `modify`: what happens to the advantage (B,) of a response by its sign or outcome, after scaling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipelines.rl.batch import group_mean, group_sum, present, token_mean
from pipelines.rl.slots.advantage import center_group_mean


def signed_outcome(advantage_B: Tensor, correct_B: Tensor, *, correct: float = 1.0, wrong: float = 1.0) -> Tensor:
    """+correct where the response is right, -wrong where not, whatever the reward (RLVR-Decomposed, arXiv 2506.01347)."""
    return torch.where(correct_B.bool(), correct, -wrong).to(advantage_B)


def positive_part(advantage_B: Tensor) -> Tensor:
    """max(A, 0) (A-LoL, arXiv 2305.14718)."""
    return advantage_B.clamp(min=0)


def overconfident_errors(
    advantage_B: Tensor,
    logp_old_BT: Tensor,
    logp_ref_BT: Tensor,
    mask_BT: Tensor,
    *,
    alpha: float = 1.0,
    norm: Literal["sum", "mean"] = "sum",
    cap: float | None = None,
) -> Tensor:
    """ACE (arXiv 2602.21420): a negative A becomes A (1 + alpha softplus(c)), c the log-ratio of the response to the reference.

    c is that of the policy that the advantage is taken of; `norm` mean and `cap` keep it from growing with length.
    """
    gap_BT = (logp_old_BT - logp_ref_BT) * mask_BT
    c_B = gap_BT.sum(-1) if norm == "sum" else token_mean(gap_BT, mask_BT)
    c_B = c_B if cap is None else c_B.clamp(max=cap)
    return torch.where(advantage_B < 0, advantage_B * (1 + alpha * torch.nn.functional.softplus(c_B)), advantage_B)


def success_scaled_negatives(advantage_B: Tensor, correct_B: Tensor, group_B: Tensor, *, floor: float = 0.5, slope: float = 1.0) -> Tensor:
    """GUI-Libra's SNGS (arXiv 2602.22190): a negative A is scaled by min(floor + slope * p, 1), p the group's success rate."""
    rate_B = group_mean(correct_B.to(advantage_B), group_B)
    return torch.where(advantage_B < 0, advantage_B * (floor + slope * rate_B).clamp(max=1.0), advantage_B)


def forward_correction(advantage_B: Tensor, correct_B: Tensor, *, false_negative: float) -> Tensor:
    """Score weights rho1 where the noisy verifier says right and rho1 - 1 where not (arXiv 2510.00915, forward form).

    In expectation -(1 - rho0 - rho1) for truly wrong responses and 0 for right ones: the direction of the clean gradient.
    """
    return torch.where(correct_B.bool(), false_negative, false_negative - 1.0).to(advantage_B)


def lagrangian(advantage_B: Tensor, cost_B: Tensor, group_B: Tensor, multiplier: Tensor) -> Tensor:
    """(A - lambda (C - mean of the group's)) / (1 + lambda): the advantage of R - lambda C, of one size whatever lambda is (Safe RLHF, arXiv
    2310.12773). After a scale by the group's deviation lambda would mean something else in every group."""
    return (advantage_B - multiplier * center_group_mean(cost_B, group_B)) / (1 + multiplier)


def pair_roles(advantage_B: Tensor, correct_B: Tensor, group_B: Tensor, *, hard_success: float = 1.0, easy_failure: float = 1.0) -> Tensor:
    """Weighted GRPO with pairing (arXiv 2602.03452): rare successes of hard prompts and rare failures of easy ones weigh more.

    A prompt is hard when at most half of its group is right.
    """
    right_B = correct_B.bool()
    hard_B = group_mean(correct_B.to(advantage_B), group_B) <= 0.5
    weight = torch.where(hard_B & right_B, hard_success, torch.where(~hard_B & ~right_B, easy_failure, 1.0))
    return advantage_B * weight


def imitated(advantage_B: Tensor, guided_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """1 where a guide wrote all that trains of a response: it is learnt as it stands, whatever its reward (ReLIFT, arXiv 2506.07527)."""
    whole_B = present(mask_BT) & (((guided_BT > 0) | (mask_BT == 0)).all(-1))
    return torch.where(whole_B, 1.0, advantage_B)


def self_rewarded(
    advantage_B: Tensor,
    special_old_B: Tensor,
    special_anchor: Tensor,
    group_B: Tensor,
    step: Tensor,
    *,
    beta: float = 0.1,
    share: float = 0.1,
    warmup: int = 200,
    least_std: float = 0.1,
) -> Tensor:
    """LaSeR: after `warmup` steps (1 - share) A + share * z, z the group's z-score of the policy's own verdict clipped to [0, 1].

    Groups whose verdicts deviate by no more than `least_std` keep A.
    """
    if int(step) <= warmup:
        return advantage_B
    verdict_B = (beta * (special_old_B - special_anchor)).clamp(0.0, 1.0)
    centred_B = verdict_B - group_mean(verdict_B, group_B)
    squares, size = group_sum(centred_B**2, group_B)
    std_B = (squares / (size - 1).clamp(min=1)).sqrt()
    own_B = torch.where(std_B > least_std, centred_B / (std_B + 1e-6), advantage_B)
    return (1 - share) * advantage_B + share * own_B
