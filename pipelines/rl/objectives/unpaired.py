"""KTO: each response is desirable or not by itself; no pairs are needed.

D = sum_t log(pi/ref) of the response;  z0 = max(0, mean over the batch of D of mismatched responses), the KL of the policy from its reference
desirable: w_D (1 - sigmoid(beta (D - z0)));  undesirable: w_U (1 - sigmoid(beta (z0 - D)))

(KTO: Model Alignment as Prospect Theoretic Optimization, arXiv 2402.01306.) z0 has no gradient; a mismatched response is that of another prompt in
the batch, scored under the row's own. Nearest relative: DPO, whose partner is the other response of the pair, where KTO's is z0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.rl.batch import present


def reference_point(mismatched_B: Tensor, mask_BT: Tensor) -> Tensor:
    """z0 of the batch, a scalar, at least 0."""
    rows = present(mask_BT)
    return ((mismatched_B * rows).sum() / rows.sum().clamp(min=1)).clamp(min=0)


def unpaired(
    logp_BT: Tensor,
    logp_ref_BT: Tensor,
    reward_B: Tensor,
    mask_BT: Tensor,
    kl_point: Tensor,
    *,
    beta: float = 0.1,
    above: float = 0.5,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Tensor:
    """Loss per response (B,), in [0, weight]. above: rewards above this are desirable. The paper keeps desirable n_D / (undesirable n_U) in
    [1, 4/3], with n_D and n_U responses of each kind."""
    ratio_B = ((logp_BT - logp_ref_BT) * mask_BT).sum(-1)
    away_B, good_B = beta * (ratio_B - kl_point), reward_B > above
    return torch.where(good_B, desirable * torch.sigmoid(-away_B), undesirable * torch.sigmoid(away_B))
