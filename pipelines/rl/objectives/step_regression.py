"""Direct Advantage Policy Optimization: each step's log-ratio is regressed on the advantage a critic gave the step.

L = mean over steps of (A_k / beta - sum_{t in k} (log pi - log ref))^2 / 2;  A_k = V_{k+1} - V_k, and outcome - V at the last
step. (Improving Multi-Step Reasoning Abilities of LLMs with Direct Advantage Policy Optimization, arXiv 2412.18279; not ByteDance's
DAPO.) V is the probability of a correct end before the step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.rl.batch import present


def step_advantages(step_value_BK: Tensor, correct_B: Tensor) -> Tensor:
    """A_k (B, K), nan past a response's last step."""
    ahead_BK = torch.nn.functional.pad(step_value_BK[:, 1:], (0, 1), value=torch.nan)
    last_BK = ~step_value_BK.isnan() & ahead_BK.isnan()
    return torch.where(last_BK, correct_B.to(step_value_BK)[:, None], ahead_BK) - step_value_BK


def step_regression(
    logp_BT: Tensor,
    logp_ref_BT: Tensor,
    step_value_BK: Tensor,
    step_BT: Tensor,
    correct_B: Tensor,
    mask_BT: Tensor,
    steps: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """This slice's share of the mean over all steps."""
    advantage_BK = step_advantages(step_value_BK, correct_B)
    known_BK = ~advantage_BK.isnan()
    # tokens after the last step belong to it
    step = torch.minimum(step_BT, (known_BK.sum(-1, keepdim=True) - 1).clamp(min=0))
    ratio_BK = torch.zeros_like(advantage_BK, dtype=logp_BT.dtype).scatter_add(-1, step, (logp_BT - logp_ref_BT) * mask_BT)
    error_BK = torch.where(known_BK, 0.5 * (advantage_BK.nan_to_num(0.0) / beta - ratio_BK) ** 2, 0.0)
    return (present(mask_BT) * error_BK.sum(-1)).sum() / steps.clamp(min=1)
