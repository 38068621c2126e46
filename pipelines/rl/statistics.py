"""What a loss reads of the whole batch of an optimiser step, so that its slices add up (tensors.py says which function gives which).

The functions obey the convention of slots: positional parameters are tensors, keyword-only ones settings, which a recipe
gives under `inputs`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.rl.batch import group_index, group_mean, group_sum, present
from pipelines.rl.objectives.self_distillation import entropy_with_tail


def success_rate(correct_B: Tensor, group_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Share of the row's group that is right."""
    return group_mean(correct_B.to(mask_BT), group_B)


def class_balance(correct_B: Tensor, mask_BT: Tensor, truncated_B: Tensor | None = None) -> Tensor:
    """w / N: right and wrong responses have equal weight in a mean over N rows; 0 for truncated ones or when a class is absent."""
    rows = present(mask_BT)
    counted = rows if truncated_B is None else rows & ~truncated_B.bool()
    right, wrong = counted & correct_B.bool(), counted & ~correct_B.bool()
    total, least = counted.sum(), torch.minimum(right.sum(), wrong.sum())
    weight = right * (total / (2 * right.sum().clamp(min=1))) + wrong * (total / (2 * wrong.sum().clamp(min=1)))
    return (weight * (least > 0) / rows.sum().clamp(min=1)).to(mask_BT)


def diversity_weights(diversity_B: Tensor, correct_B: Tensor, group_B: Tensor, mask_BT: Tensor, *, tau: float = 1.0) -> Tensor:
    """softmax of diversity / tau over the right responses of a group, divided by the number of groups that have any; else 0."""
    right = correct_B.bool() & present(mask_BT)
    mass_B = (diversity_B.to(mask_BT) / tau).exp() * right
    total, _ = group_sum(mass_B, group_B)
    _, groups = group_index(group_B[right])
    return torch.where(right, mass_B / total.clamp(min=1e-12), 0.0) / max(groups, 1)


def least_likely(logp_old_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor, *, share: float = 0.01) -> Tensor:
    """1 on the `share` of negative tokens with the lowest log-probability; none when that is a single token."""
    negative = (advantage_BT < 0) & (mask_BT > 0)
    count = int(int(negative.sum()) * share)
    if count <= 1:
        return torch.zeros_like(mask_BT)
    bound = logp_old_BT[negative].kthvalue(count).values
    return (negative & (logp_old_BT <= bound)).to(mask_BT)


def prompt_count(group_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Number of prompts with a row that trains."""
    return torch.tensor(group_index(group_B[present(mask_BT)])[1]).to(mask_BT)


def response_count(mask_BT: Tensor) -> Tensor:
    """Number of rows that train."""
    return present(mask_BT).sum().to(mask_BT)


def observation_count(observed_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Number of tokens that a tool answered in the rows that train."""
    return (observed_BT * present(mask_BT)[:, None]).sum().to(mask_BT)


def guided_count(guided_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Number of tokens that a guide wrote in the rows that train."""
    return (guided_BT * present(mask_BT)[:, None]).sum().to(mask_BT)


def step_count(step_value_BK: Tensor, mask_BT: Tensor) -> Tensor:
    """Number of steps of reasoning in the rows that train."""
    return (~step_value_BK.isnan() & present(mask_BT)[:, None]).sum().to(mask_BT)


def distillation_weights(teacher_topk_BTK: Tensor, correct_B: Tensor, reprompt_B: Tensor, mask_BT: Tensor, *, beta: float = 1.0) -> Tensor:
    """SRPO: exp(-beta H_teacher), mean 1 over the tokens that are distilled, 0 on the others."""
    routed_BT = (~correct_B.bool() & reprompt_B.bool())[:, None] * mask_BT
    weight_BT = (-beta * entropy_with_tail(teacher_topk_BTK)).exp() * routed_BT
    return weight_BT * routed_BT.sum() / weight_BT.sum().clamp(min=1e-12)


def component_weights(history_KW: Tensor, *, window: int = 10, temperature: float = 5.0, form: str = "paper") -> Tensor:
    """RECAP (arXiv 2510.21978): weight (K,), mean 1, of K objectives from their losses of the last 2 * window steps; 1 before that.

    c = mean of the last window / mean of the one before, i = deviation of the last / sum of both means; the weight is a softmax
    of (c + i) / temperature (`code`: half of that).
    """
    if history_KW.shape[1] < 2 * window:
        return torch.ones(len(history_KW))
    last, before = history_KW[:, -window:], history_KW[:, -2 * window : -window]
    mean, earlier = last.mean(-1), before.mean(-1)
    return objective_weights(mean, earlier, last.std(-1, correction=0), temperature=temperature, form=form)


def objective_weights(mean_K: Tensor, earlier_K: Tensor, deviation_K: Tensor, *, temperature: float = 5.0, form: str = "paper") -> Tensor:
    """The rule of `component_weights`, from the windows' statistics."""
    score = mean_K / earlier_K.clamp(min=1e-8) + deviation_K / (mean_K + earlier_K).clamp(min=1e-8)
    return len(mean_K) * torch.softmax((score if form == "paper" else score / 2) / temperature, 0)
