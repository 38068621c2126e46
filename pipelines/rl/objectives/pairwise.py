"""Objectives on pairs of responses to one prompt, the better one first: DPO, IPO, ORPO, SimPO, AlphaPO, TRPA, PRDP and CoPG.

One function covers the preference losses: a link of the difference of two scores, the score being a log-ratio or log-odds of
a response. Pairs are all pairs of a group whose rewards (TRPA: levels) differ, so the same rows train on preference data
(groups of two) and on rollouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pipelines.rl.batch import Batch, group_sum, present, token_mean


def _pairs(better: Callable[[Tensor, Tensor], Tensor], rank_B: Tensor, group_B: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Row indices (N,), (N,) of the pairs of present rows of one group in which the first is better."""
    rows = present(mask_BT)
    same = (group_B[:, None] == group_B[None]) & rows[:, None] & rows[None]
    first, second = (same & better(rank_B[:, None], rank_B[None])).nonzero(as_tuple=True)
    return first, second


def _difference(score_B: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """score[first] - score[second] (N,), with a gradient that has one order although rows stand in many pairs."""
    return score_B.index_select(0, first) - score_B.index_select(0, second)


def count_pairs(reward_B: Tensor, group_B: Tensor, mask_BT: Tensor) -> Tensor:
    """How many pairs of responses to one prompt a batch has whose rewards differ."""
    return torch.tensor(len(_pairs(torch.gt, reward_B, group_B, mask_BT)[0])).to(mask_BT)


def count_level_pairs(level_B: Tensor, group_B: Tensor, mask_BT: Tensor) -> Tensor:
    """How many pairs of responses to one prompt a batch has whose levels differ."""
    return torch.tensor(len(_pairs(torch.lt, level_B, group_B, mask_BT)[0])).to(mask_BT)


def preference(
    logp_BT: Tensor,
    logp_ref_BT: Tensor,
    reward_B: Tensor,
    group_B: Tensor,
    mask_BT: Tensor,
    pairs: Tensor,
    *,
    link: Literal["logistic", "square"] = "logistic",
    beta: float = 0.1,
    mean: bool = False,
) -> Tensor:
    """DPO (arXiv 2305.18290): -log sigmoid(beta delta); IPO (arXiv 2310.12036): (delta - 1/(2 beta))^2; the mean over pairs.

    delta is the difference of log pi - log ref, summed over a response or (`mean`, as TRL does for IPO) averaged.
    """
    gap_BT = (logp_BT - logp_ref_BT) * mask_BT
    score_B = token_mean(gap_BT, mask_BT) if mean else gap_BT.sum(-1)
    first, second = _pairs(torch.gt, reward_B, group_B, mask_BT)
    delta = _difference(score_B, first, second)
    loss = -torch.nn.functional.logsigmoid(beta * delta) if link == "logistic" else (delta - 1 / (2 * beta)) ** 2
    return loss.sum() / pairs.clamp(min=1)


def odds_ratio(logp_BT: Tensor, reward_B: Tensor, group_B: Tensor, mask_BT: Tensor, pairs: Tensor, *, coefficient: float = 0.1) -> Tensor:
    """ORPO (arXiv 2403.07691): NLL of the better response (token mean) - coefficient log sigmoid(log-odds difference), odds of the
    length-normalised probability; no reference."""
    mean_B = token_mean(logp_BT, mask_BT)
    bounded_B = mean_B.clamp(max=-1e-7)  # log(1 - exp(a)) near 0
    odds_B = bounded_B - torch.log(-torch.expm1(bounded_B))
    first, second = _pairs(torch.gt, reward_B, group_B, mask_BT)
    likelihood = mean_B.index_select(0, first)
    loss = -likelihood - coefficient * torch.nn.functional.logsigmoid(_difference(odds_B, first, second))
    return loss.sum() / pairs.clamp(min=1)


def normalised_preference(
    logp_BT: Tensor,
    reward_B: Tensor,
    group_B: Tensor,
    mask_BT: Tensor,
    pairs: Tensor,
    *,
    beta: float = 2.5,
    gamma: float = 1.375,
    alpha: float = 0.0,
) -> Tensor:
    """SimPO (arXiv 2405.14734): -log sigmoid(beta (x_w - x_l) - gamma), x the mean log-probability of a response's tokens; no reference.

    AlphaPO (arXiv 2501.03884) puts (1 - exp(-alpha x)) / alpha in place of x; alpha 0 is SimPO.
    """
    score_B = token_mean(logp_BT, mask_BT)
    if alpha:
        score_B = (1 - (-alpha * score_B).exp()) / alpha
    first, second = _pairs(torch.gt, reward_B, group_B, mask_BT)
    loss = -torch.nn.functional.logsigmoid(beta * _difference(score_B, first, second) - gamma)
    return loss.sum() / pairs.clamp(min=1)


def ranked(batch: Batch, logp_BT: Tensor) -> dict[str, float]:
    """How many pairs there are, in how many of them the policy holds the better response for the better one, and the sum of its margins: in the
    log-ratio to the reference (nats a response) where there is one, as DPO's implicit reward is, else in the mean log-probability (nats a token)."""
    first, second = _pairs(torch.gt, batch.reward_B, batch.group_B, batch.mask_BT)
    ref_BT = batch.get("logp_ref_BT")
    score_B = token_mean(logp_BT, batch.mask_BT) if ref_BT is None else ((logp_BT - ref_BT) * batch.mask_BT).sum(-1)
    margin = score_B[first] - score_B[second]
    return {"pairs": float(len(margin)), "pair_accuracy": float((margin > 0).sum()), "pair_margin": float(margin.sum())}


def trust_region_preference(
    logp_BT: Tensor,
    logp_ref_BT: Tensor,
    level_B: Tensor,
    group_B: Tensor,
    mask_BT: Tensor,
    level_pairs: Tensor,
    responses: Tensor,
    *,
    beta: float = 0.1,
    best: float = 2.5,
) -> Tensor:
    """TRPA (arXiv 2504.04524): -log sigmoid(beta a (q_i - q_j)), q the mean log-ratio to the reference, a = `best` where the better
    one is of level 1, else 1. A batch without pairs falls back on -log sigmoid(+-q), + for level 1, over all responses."""
    score_B = token_mean(logp_BT - logp_ref_BT, mask_BT)
    if level_pairs == 0:
        sign_B = torch.where(level_B == 1, 1.0, -1.0).to(score_B)
        return -(present(mask_BT) * torch.nn.functional.logsigmoid(sign_B * score_B)).sum() / responses.clamp(min=1)
    first, second = _pairs(torch.lt, level_B, group_B, mask_BT)
    weight = torch.where(level_B[first] == 1, best, 1.0).to(score_B)
    return -torch.nn.functional.logsigmoid(beta * weight * _difference(score_B, first, second)).sum() / level_pairs


def reward_difference(
    logp_BT: Tensor,
    logp_old_BT: Tensor,
    logp_ref_BT: Tensor,
    reward_B: Tensor,
    group_B: Tensor,
    mask_BT: Tensor,
    pairs: Tensor,
    *,
    beta: float = 0.1,
    eps: float = 0.05,
) -> Tensor:
    """PRDP (arXiv 2402.08714): (X_i - X_j - (R_i - R_j) / beta)^2, X the mean log-ratio to the reference, or the same of log-ratios within `eps` of
    the old policy's where that is more; the mean over pairs."""
    gap_BT, old_BT = logp_BT - logp_ref_BT, logp_old_BT - logp_ref_BT
    near_BT = torch.minimum(torch.maximum(gap_BT, old_BT - eps), old_BT + eps)
    first, second = _pairs(torch.gt, reward_B, group_B, mask_BT)
    wanted = _difference(reward_B.to(logp_BT), first, second) / beta
    free, held = ((_difference(token_mean(each, mask_BT), first, second) - wanted) ** 2 for each in (gap_BT, near_BT))
    return torch.maximum(free, held).sum() / pairs.clamp(min=1)


def contrastive(
    logp_BT: Tensor, logp_ref_BT: Tensor, reward_B: Tensor, group_B: Tensor, mask_BT: Tensor, prompts: Tensor, *, beta: float = 0.1
) -> Tensor:
    """CoPG (arXiv 2406.19185): (Rb_i - Rb_j)^2 / (2 beta (k - 1)) over the pairs of a group of k, Rb = R - beta log(pi/ref) of the whole
    response; the mean over prompts. On-policy its gradient is RLOO's with the KL in the reward."""
    regularised_B = reward_B.to(logp_BT) - beta * ((logp_BT - logp_ref_BT) * mask_BT).sum(-1)
    rows = present(mask_BT).to(logp_BT)
    total, count = (group_sum(value, group_B)[0] for value in (regularised_B * rows, rows))
    # sum over pairs (i > j) of (x_i - x_j)^2 = k * sum x_i^2 - (sum x_i)^2 = k * sum (x_i - mean)^2
    spread_B = count / (count - 1).clamp(min=1) * (regularised_B - total / count.clamp(min=1)) ** 2 * rows
    return spread_B.sum() / (2 * beta * prompts.clamp(min=1))
