"""Losses of reward models. Shapes: B responses or pairs, K bins. Each returns (B,), in nats, with gradient.

    bradley_terry   softplus(-(r_w - r_l - margin)) + centre (r_w + r_l)^2        Ouyang et al., arXiv 2203.02155
    hl_gauss        cross-entropy to a Gaussian around the score, cut into bins      Farebrother et al., arXiv 2403.03950
    binary          -log s(r) of a right response, -log s(-r) of a wrong one         also of r = log p(Yes) - log p(No)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(better_B: Tensor, worse_B: Tensor, margin_B: Tensor, *, centre: float = 0.0, noise: float = 0.0) -> Tensor:
    """-log of the probability that the better response is preferred. margin_B: what their scores must differ by (Llama 2, arXiv 2307.09288). centre:
    fixes the constant that the difference leaves free (arXiv 2312.09244). noise: probability that the pair is in the wrong order."""
    gap_B = better_B - worse_B - margin_B
    return (1 - noise) * F.softplus(-gap_B) + noise * F.softplus(gap_B) + centre * (better_B + worse_B) ** 2


def binary(score_B: Tensor, target_B: Tensor) -> Tensor:
    """Negative log-likelihood of a probability of being right, s(score)."""
    return F.softplus(score_B) - target_B * score_B


def hl_gauss(logits_BK: Tensor, target_BK: Tensor) -> Tensor:
    """Cross-entropy to `histogram` of the scores."""
    return -(target_BK * torch.log_softmax(logits_BK, -1)).sum(-1)


def histogram(score_B: Tensor, edges: Tensor, sigma: float) -> Tensor:
    """The mass (B, K) of a Gaussian of standard deviation `sigma` around each score in the bins between `edges` (K + 1), cut at their ends."""
    below_BK = torch.erf((edges - score_B[:, None]) / (math.sqrt(2) * sigma))
    return (below_BK[:, 1:] - below_BK[:, :-1]) / (below_BK[:, -1:] - below_BK[:, :1])
