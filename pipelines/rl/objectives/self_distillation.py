"""SDPO: the policy, having seen a sibling's right solution, teaches itself token by token.

Per token a divergence between student and teacher over the student's K likeliest tokens and the rest as one more bucket:
0 the forward KL(teacher || student), 1 the reverse, between them the Jensen-Shannon mixture at that share; times
min(pi/pi_old, cap). The teacher (a moving average of the policy) is detached. (Reinforcement Learning via Self-Distillation,
arXiv 2601.20802; SRPO, arXiv 2604.02288, routes only failed responses here.)
"""

from __future__ import annotations

import torch
from torch import Tensor


def with_tail(topk_BTK: Tensor) -> Tensor:
    """Log-probabilities of K tokens and of all others together (B, T, K + 1)."""
    rest = torch.log1p(-topk_BTK.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-7))
    return torch.cat([topk_BTK, rest], -1)


def entropy_with_tail(topk_BTK: Tensor) -> Tensor:
    """Entropy (B, T) of the K + 1 buckets."""
    logp = with_tail(topk_BTK)
    return -(logp.exp() * logp).sum(-1)


def divergence_of(student_topk_BTK: Tensor, teacher_topk_BTK: Tensor, divergence: float) -> Tensor:
    """Divergence (B, T) of student and teacher over K tokens and the rest, nats: see the head of this file. No gradient goes to the teacher."""
    student, teacher = with_tail(student_topk_BTK), with_tail(teacher_topk_BTK.detach())
    if divergence == 0.0:
        return _kl(teacher, student)
    if divergence == 1.0:
        return _kl(student, teacher)
    share = torch.tensor(divergence).to(student)
    mixture = torch.logaddexp(student + share.log(), teacher + (1 - share).log())
    return (1 - share) * _kl(teacher, mixture) + share * _kl(student, mixture)


def self_distillation(
    student_topk_BTK: Tensor, teacher_topk_BTK: Tensor, logp_BT: Tensor, logp_old_BT: Tensor, *, divergence: float = 0.5, cap: float = 2.0
) -> Tensor:
    """Loss per token (B, T)."""
    term = divergence_of(student_topk_BTK, teacher_topk_BTK, divergence)
    return term * (logp_BT - logp_old_BT).detach().clamp(max=20.0).exp().clamp(max=cap)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)
