"""Slot `auxiliary`: losses beside the policy's, a list, of the same two shapes as regularisers."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.models.value_head import histogram
from pipelines.rl.batch import present
from pipelines.rl.objectives.self_distillation import self_distillation


def value(value_BT: Tensor, value_old_BT: Tensor, return_BT: Tensor, *, coefficient: float = 1.0, clip: float | None = 0.5) -> Tensor:
    """PPO's value loss: coefficient / 2 * max((V - G)^2, (clip(V, V_old +- clip) - G)^2)."""
    error = (value_BT - return_BT) ** 2
    if clip is not None:
        bounded = torch.minimum(torch.maximum(value_BT, value_old_BT - clip), value_old_BT + clip)
        error = torch.maximum(error, (bounded - return_BT) ** 2)
    return coefficient * 0.5 * error


def value_histogram(
    value_logits_BTK: Tensor, return_BT: Tensor, value_edges_K: Tensor, *, coefficient: float = 0.5, sigma: float = 0.75
) -> Tensor:
    """coefficient * cross-entropy of the value head's bins to a Gaussian around the return, of deviation `sigma` bins; 0: two-hot (arXiv 2403.03950).
    Its gradient to the logits is coefficient (softmax - target)."""
    target_BTK = histogram(return_BT, value_edges_K.to(return_BT), sigma=sigma)
    return -coefficient * (target_BTK * value_logits_BTK.log_softmax(-1)).sum(-1)


def outcome_ce(outcome_logits_BTK: Tensor, outcome_B: Tensor, *, coefficient: float = 1.0) -> Tensor:
    """CodeRL's critic: coefficient * cross-entropy to what came of the response, at each of its tokens."""
    target_BTK = torch.nn.functional.one_hot(outcome_B, outcome_logits_BTK.shape[-1])[:, None].to(outcome_logits_BTK)
    return -coefficient * (target_BTK * outcome_logits_BTK.log_softmax(-1)).sum(-1)


def self_reward(
    special_B: Tensor, special_anchor: Tensor, correct_B: Tensor, balance_B: Tensor, *, coefficient: float = 0.1, beta: float = 0.1
) -> Tensor:
    """LaSeR: coefficient * mean w (s - R)^2, s = beta (log pi(z) - anchor) the policy's own verdict read off a reserved token z;
    w balances right and wrong, truncated responses weigh 0."""
    return coefficient * (balance_B * (beta * (special_B - special_anchor) - correct_B.to(special_B)) ** 2).sum()


def expert(
    logp_BT: Tensor, logp_expert_BT: Tensor, advantage_BT: Tensor, correct_B: Tensor, *, coefficient: float = 0.1, slope: float = 0.5
) -> Tensor:
    """CalibRL: coefficient |A| LeakyReLU(z), z = -(log pi - log pi_old(expert)) for right responses and its mirror for wrong ones:
    a strong push towards the expert's level, a weaker one past it, none where no expert is known (nan)."""
    sign_B = torch.where(correct_B.bool(), -1.0, 1.0).to(logp_BT)
    known_BT = ~logp_expert_BT.isnan()
    z = sign_B[:, None] * (logp_BT - logp_expert_BT.nan_to_num(0.0))
    return coefficient * advantage_BT.abs() * torch.nn.functional.leaky_relu(z, slope) * known_BT


def distil(
    student_topk_BTK: Tensor,
    teacher_topk_BTK: Tensor,
    logp_BT: Tensor,
    logp_old_BT: Tensor,
    distil_weight_BT: Tensor,
    *,
    divergence: float = 0.5,
    cap: float = 2.0,
    coefficient: float = 1.0,
) -> Tensor:
    """SRPO's routed part: SDPO's divergence times `distil_weight_BT`, which is 0 on responses that are not routed here."""
    term = self_distillation(student_topk_BTK, teacher_topk_BTK, logp_BT, logp_old_BT, divergence=divergence, cap=cap)
    return coefficient * distil_weight_BT * term


def observation_ce(logp_BT: Tensor, observed_BT: Tensor, mask_BT: Tensor, observations: Tensor, *, coefficient: float = 0.1) -> Tensor:
    """ECHO (prime-rl): coefficient times the mean cross-entropy of what tools answered, a mean of its own beside that over the policy's tokens."""
    return coefficient * _cross_entropy(logp_BT, observed_BT, mask_BT, observations)


def guide_ce(logp_BT: Tensor, guided_BT: Tensor, mask_BT: Tensor, guided_tokens: Tensor, *, coefficient: float = 0.001) -> Tensor:
    """SEELE: coefficient times the mean cross-entropy of what a guide wrote in responses that train, a mean of its own."""
    return coefficient * _cross_entropy(logp_BT, guided_BT, mask_BT, guided_tokens)


def _cross_entropy(logp_BT: Tensor, of_BT: Tensor, mask_BT: Tensor, count: Tensor) -> Tensor:
    """-log pi of these tokens in rows that train, over how many the whole batch has."""
    return -(logp_BT * of_BT * present(mask_BT)[:, None]).sum() / count.clamp(min=1)
