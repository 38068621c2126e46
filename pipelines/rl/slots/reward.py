"""Slots `reward` and `token_reward`: what the advantage is taken of. Each `reward` maps the score so far (B,) to another
(a list applies in order); each `token_reward` gives an addition per token (B, T), which credit over time reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.rl.batch import group_mean, group_sum, present, scaled


def overlong(
    shaped_B: Tensor,
    mask_BT: Tensor,
    response_limit: Tensor | None = None,
    *,
    limit: int | None = None,
    buffer: int | None = None,
    factor: float = 1.0,
) -> Tensor:
    """DAPO's soft penalty (arXiv 2503.14476): 0 up to limit - buffer tokens, then linear down to -factor at the limit.

    Without a `limit` it is the run's own longest response (none known: no penalty); `buffer` is a fifth of it unless given.
    """
    longest = limit if limit is not None else None if response_limit is None else float(response_limit)
    if longest is None:
        return shaped_B
    room = buffer if buffer is not None else longest / 5
    return shaped_B + factor * ((longest - room - mask_BT.sum(-1)) / room).clamp(-1.0, 0.0)


def rescale(shaped_B: Tensor, *, low: float = -1.0, high: float = 1.0) -> Tensor:
    """A score of 0 becomes `low`, of 1 `high`."""
    return low + (high - low) * shaped_B


def decoupled(
    shaped_B: Tensor, components_BK: Tensor, group_B: Tensor, *, weights: Sequence[float] | None = None, eps: float = 1e-4
) -> Tensor:
    """GDPO (arXiv 2601.05242): each part of the reward in deviations (ddof 1) from the mean of its group, then their weighted sum; so one part
    never hides another, as it does where they are summed first."""
    out_B = torch.zeros_like(shaped_B)
    for place, part_B in enumerate(components_BK.unbind(-1)):
        centred_B = part_B - group_mean(part_B, group_B)
        squares, size = group_sum(centred_B**2, group_B)
        deviation = (squares / (size - 1).clamp(min=1)).sqrt()
        out_B = out_B + (1.0 if weights is None else weights[place]) * centred_B / (deviation + eps)
    return out_B


def log_tamed(
    shaped_B: Tensor,
    components_BK: Tensor,
    mask_BT: Tensor,
    *,
    weights: Sequence[float] | None = None,
    threshold: Literal["mean", "median"] = "mean",
    limit: float | None = None,
) -> Tensor:
    """PaCo-RL: the weighted sum of the parts, where log(1 + r) stands for a part whose deviation (ddof 0) over mean is, in the batch, above the
    `threshold` of all parts' (or above `limit`), so that one that varies much does not rule the sum.

    Raises:
        UserError: such a part has a value of -1 or less.
    """
    rows_BK = components_BK[present(mask_BT)]
    if not len(rows_BK):
        return torch.zeros_like(shaped_B)
    varies_K = rows_BK.std(0, correction=0) / (rows_BK.mean(0) + 1e-6)
    bound = limit if limit is not None else varies_K.mean() if threshold == "mean" else varies_K.quantile(0.5)
    wild_K = varies_K > bound
    if (rows_BK[:, wild_K] <= -1).any():
        raise UserError("reward 'log_tamed' takes log(1 + r) of a part of the reward with a value of -1 or less; shift it first")
    tamed_BK = torch.where(wild_K, components_BK.log1p(), components_BK)
    return (tamed_BK if weights is None else tamed_BK * torch.tensor(weights).to(tamed_BK)).sum(-1)


def clamp(shaped_B: Tensor, *, low: float, high: float) -> Tensor:
    """The score inside [low, high]."""
    return shaped_B.clamp(low, high)


def sequence_kl(
    shaped_B: Tensor, logp_old_BT: Tensor, logp_ref_BT: Tensor, mask_BT: Tensor, kl_scale: Tensor | None = None, *, coefficient: float
) -> Tensor:
    """R - coefficient * sum_t (log pi_old - log ref): the k1 estimate of the whole response's KL, inside the reward."""
    return shaped_B - scaled(coefficient, kl_scale) * ((logp_old_BT - logp_ref_BT) * mask_BT).sum(-1)


def brier(correct_B: Tensor, confidence_B: Tensor, format_B: Tensor | None = None, *, form: str = "paper") -> Tensor:
    """RLCR (arXiv 2507.16806): a strictly proper score of the stated confidence q beside correctness c.

    form `paper`: c - (q - c)^2, and -1 when no confidence in [0, 1] is stated (the worst score there is); `code`: the
    released 0.5 format + 0.5 c + 0.5 (1 - (q - c)^2), nothing of which is left without a confidence or the form.
    """
    correct = correct_B.to(confidence_B)
    stated = (confidence_B >= 0) & (confidence_B <= 1)
    error = (confidence_B.nan_to_num(0.0) - correct) ** 2
    if form == "paper":
        return torch.where(stated, correct - error, -1.0)
    valid = stated if format_B is None else stated & format_B.bool()
    return valid * (0.5 + 0.5 * correct + 0.5 * (1 - error))


def exploration(candidates_B: Tensor, rank_B: Tensor, format_B: Tensor) -> Tensor:
    """InfiGUI-G1's adaptive exploration: of N answers the k-th is the first right one: 1/sqrt(N k), none right: -1/N.

    A well-formed response gets 1 more, any other -1 in all.
    """
    n, k = candidates_B.to(torch.float32), rank_B.to(torch.float32)
    accuracy = torch.where(k > 0, (n * k).clamp(min=1).rsqrt(), -1 / n.clamp(min=1))
    return torch.where(format_B.bool() & (n > 0), 1.0 + accuracy, -1.0)


def backward_correction(shaped_B: Tensor, *, false_positive: float, false_negative: float, floor: float = 0.05) -> Tensor:
    """(R - rho0) / (1 - rho0 - rho1): unbiased for the true reward behind a noisy verifier (arXiv 2510.00915).

    It is affine, so a scale by the group's own deviation cancels it: use it with leave-one-out or plain centring.
    """
    return (shaped_B - false_positive) / max(1 - false_positive - false_negative, floor)


def diversity(shaped_B: Tensor, diversity_B: Tensor, correct_B: Tensor, *, coefficient: float = 0.1, limit: float = 1.0) -> Tensor:
    """DSDR (arXiv 2602.19895): correct responses gain coefficient * min(diversity, limit), which must stay below the margin of being right."""
    return shaped_B + coefficient * diversity_B.clamp(0.0, limit) * correct_B


def consistency(correct_B: Tensor, format_B: Tensor, consistency_B: Tensor) -> Tensor:
    """R1-Reward (StableReinforce): 0.5 format + correct (1 + 0.5 consistency)."""
    return 0.5 * format_B + correct_B * (1 + 0.5 * consistency_B)


def format_and_accuracy(shaped_B: Tensor, format_B: Tensor, *, share: float = 0.1) -> Tensor:
    """share * format + (1 - share) * accuracy (GUI-Libra, arXiv 2602.22190)."""
    return share * format_B + (1 - share) * shaped_B


def token_kl(logp_old_BT: Tensor, logp_ref_BT: Tensor, kl_scale: Tensor | None = None, *, coefficient: float) -> Tensor:
    """-coefficient (log pi_old - log ref): KL in the reward, whose gradient is that of the reverse KL."""
    return -scaled(coefficient, kl_scale) * (logp_old_BT - logp_ref_BT)


def token_kl_sft(logp_old_BT: Tensor, logp_sft_BT: Tensor, *, coefficient: float) -> Tensor:
    """`token_kl` to the SFT policy."""
    return -coefficient * (logp_old_BT - logp_sft_BT)


def token_preference(logp_dpo_BT: Tensor, logp_sft_BT: Tensor, *, coefficient: float = 0.05, limit: float = 0.05) -> Tensor:
    """coefficient (log pi_dpo - log pi_sft) inside +-limit: the token reward that DPO implies (RTO, arXiv 2404.18922)."""
    return (coefficient * (logp_dpo_BT - logp_sft_BT)).clamp(-limit, limit)
