"""PACS: the outcome is a label, and the policy's own log-ratios, compared within the group, are the logits that predict it.

s_i = beta sum_t (log pi - log pi_old);  psi_i = s_i - mean of the others' s;  L = mean_i w_i BCE(sigmoid(psi_i), correct_i)

(PACS: Implicit Actor Critic Coupling via a Supervised Learning Framework for RLVR, arXiv 2509.02522.) Nearest relative:
RLOO, which detaches the advantage; here it is differentiated. The released code sums padding too; here the mask is applied.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipelines.rl.batch import group_mean, group_sum


def implicit_critic(
    logp_BT: Tensor,
    logp_old_BT: Tensor,
    mask_BT: Tensor,
    group_B: Tensor,
    correct_B: Tensor,
    *,
    beta: float = 1.0,
    balanced: bool = True,
    baseline: Literal["leave_one_out", "group_std", "none"] = "leave_one_out",
) -> Tensor:
    """Loss per response (B,). `balanced` weighs right and wrong responses of a group equally: G / (2 n), 1 where it has one kind."""
    label_B = correct_B.to(logp_BT)
    score_B = beta * ((logp_BT - logp_old_BT) * mask_BT).sum(-1)
    total, size = group_sum(score_B, group_B)
    if baseline == "leave_one_out":
        score_B = torch.where(size > 1, score_B - (total - score_B) / (size - 1).clamp(min=1), 0.0)
    elif baseline == "group_std":
        centred_B = score_B - total / size
        score_B = centred_B / ((group_sum(centred_B**2, group_B)[0] / (size - 1).clamp(min=1) + 1e-12).sqrt() + 1e-6)
    loss_B = torch.nn.functional.binary_cross_entropy_with_logits(score_B, label_B, reduction="none")
    if not balanced:
        return loss_B
    rate_B = group_mean(label_B, group_B)
    own_B = torch.where(label_B > 0, rate_B, 1 - rate_B)
    return loss_B * torch.where((rate_B > 0) & (rate_B < 1), 0.5 / own_B, 1.0)
