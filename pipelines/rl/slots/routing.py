"""Slot `routing`: which rollouts of a batch train at all. Each function gives a row mask (B,) of bools; a list is their
conjunction. A row that does not train leaves the denominators too."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.rl.batch import group_index, group_mean, present


def drop_zero_variance(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """Groups whose rewards differ: the others carry no signal, and would only enlarge the denominators (DAPO)."""
    index, groups = group_index(group_B)
    most = torch.full((groups,), -torch.inf).to(reward_B).scatter_reduce(0, index, reward_B, "amax")
    least = torch.full((groups,), torch.inf).to(reward_B).scatter_reduce(0, index, reward_B, "amin")
    return (most > least)[index]


def drop_truncated(reward_B: Tensor, truncated_B: Tensor) -> Tensor:
    """Responses that ended by themselves (DAPO's overlong filtering)."""
    return ~truncated_B.bool()


def only_correct(correct_B: Tensor) -> Tensor:
    """Right responses (positive sample reinforcement, arXiv 2506.01347)."""
    return correct_B.bool()


def only_wrong(correct_B: Tensor) -> Tensor:
    """Wrong responses (negative sample reinforcement)."""
    return ~correct_B.bool()


def with_teacher(reprompt_B: Tensor) -> Tensor:
    """Responses that a teacher could score (SDPO)."""
    return reprompt_B.bool()


def positive_advantage(reward_B: Tensor, baseline_B: Tensor) -> Tensor:
    """Responses better than the reference policy's expected reward (A-LoL)."""
    return reward_B > baseline_B


def pairs(correct_B: Tensor, group_B: Tensor, mask_BT: Tensor, *, hard: float = 0.5, easy: float = 0.5) -> Tensor:
    """As many hard-but-solvable prompts (0 < p <= hard) as easy-but-brittle ones (easy < p < 1): the hardest of the one and the
    easiest of the other, ties by prompt id (arXiv 2602.03452)."""
    rate_B = group_mean(correct_B.float(), group_B)
    index, groups = group_index(group_B)
    rate_P = torch.zeros(groups, device=rate_B.device).index_copy(0, index, rate_B)
    trains_P = torch.zeros(groups, device=rate_B.device).index_add(0, index, present(mask_BT).float()) > 0
    hard_P = (trains_P & (rate_P > 0) & (rate_P <= hard)).nonzero()[:, 0]
    easy_P = (trains_P & (rate_P > easy) & (rate_P < 1)).nonzero()[:, 0]
    count = min(len(hard_P), len(easy_P))
    chosen = torch.cat([hard_P[rate_P[hard_P].argsort(stable=True)][:count], easy_P[(-rate_P[easy_P]).argsort(stable=True)][:count]])
    return torch.isin(index, chosen)
