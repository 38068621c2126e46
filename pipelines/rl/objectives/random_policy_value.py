"""ROVER: the policy's log-ratio is the value of a uniformly random policy, fitted to its one-step target.

Q_t = rho (log pi - log pi_old);  y_t = A_t + rho lam (mean_a log pi(a|s_{t+1}) - mean_a log pi_old(a|s_{t+1})), 0 past the last
token;  loss (Q_t - sg(y_t))^2, with A_t the group-centred reward on every token. (Random Policy Valuation is Enough for LLM Reasoning
with Verifiable Rewards, arXiv 2509.24981.) At pi = pi_old its gradient is -2 rho A_t: REINFORCE.
"""

from __future__ import annotations

import torch
from torch import Tensor


def random_policy_value(
    logp_BT: Tensor,
    logp_old_BT: Tensor,
    vocab_mean_BT: Tensor,
    vocab_mean_old_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    rho: float = 1.0,
    lam: float = 1.0,
) -> Tensor:
    """Loss per token (B, T)."""
    ahead_BT = ((vocab_mean_BT - vocab_mean_old_BT) * mask_BT)[:, 1:]
    ahead_BT = torch.nn.functional.pad(ahead_BT, (0, 1))
    return (rho * (logp_BT - logp_old_BT) - (advantage_BT + rho * lam * ahead_BT).detach()) ** 2
