"""Slot `regularisers`: terms added to the policy loss, a list. A function gives (B, T), which is aggregated as the policy loss
is, or a scalar, this slice's share of a term with denominators of its own.

KL: d = log pi - log ref on samples of pi. k1 = d, k2 = d^2/2, k3 = exp(-d) + d - 1; differentiated in the loss, k1's
gradient is 0 in expectation, k2's that of the reverse KL(pi || ref), k3's that of the forward KL(ref || pi).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pipelines.rl.batch import scaled, token_mean

Estimator = Literal["k1", "k2", "k3", "k3plus"]


def divergence(logp_BT: Tensor, other_BT: Tensor, estimator: Estimator = "k3", limit: float | None = None) -> Tensor:
    """The estimate per token. `k3plus` has k3's value and k2's gradient (verl). k3 is at most `limit` (verl: 10)."""
    d = (logp_BT - other_BT).clamp(-20, 20)
    if estimator == "k1":
        return d
    k2, k3 = d**2 / 2, ((-d).exp() + d - 1).clamp(max=torch.inf if limit is None else limit)
    return {"k2": k2, "k3": k3, "k3plus": k2 - k2.detach() + k3.detach()}[estimator]


def kl(
    logp_BT: Tensor,
    logp_ref_BT: Tensor,
    logp_old_BT: Tensor,
    kl_scale: Tensor | None = None,
    *,
    coefficient: float,
    estimator: Estimator = "k3",
    limit: float | None = None,
    importance: bool = False,
) -> Tensor:
    """coefficient * KL(pi, ref); `importance` multiplies by the ratio to the old policy, for rollouts that are off-policy."""
    term = divergence(logp_BT, logp_ref_BT, estimator, limit)
    ratio = (logp_BT - logp_old_BT).clamp(-20, 20).exp()
    return scaled(coefficient, kl_scale) * term * ((ratio.detach() if estimator in ("k2", "k3plus") else ratio) if importance else 1.0)


def kl_old(logp_BT: Tensor, logp_old_BT: Tensor, *, coefficient: float, estimator: Estimator = "k3") -> Tensor:
    """coefficient * KL(pi, pi_old): a trust region around the policy that sampled (TRPA)."""
    return coefficient * divergence(logp_BT, logp_old_BT, estimator)


def kl_roll(logp_BT: Tensor, logp_roll_BT: Tensor, *, coefficient: float, estimator: Estimator = "k2") -> Tensor:
    """coefficient * KL(pi, mu) to the policy that answered; 2e-3 k2 is the 1e-3 (log pi - log mu)^2 of prime-rl."""
    return coefficient * divergence(logp_BT, logp_roll_BT, estimator)


def kl_convex(
    logp_BT: Tensor,
    logp_ref_BT: Tensor,
    logp_prev_BT: Tensor,
    step: Tensor,
    *,
    coefficient: float,
    estimator: Estimator = "k3",
    start: int = 50,
    every: int = 10,
    drop: float = 0.1,
    least: float = 0.5,
) -> Tensor:
    """ReMix: coefficient (lam KL(pi, base) + (1 - lam) KL(pi, pi of the step before)); lam falls from 1 to `least` after `start` steps."""
    lam = max(1 - drop * math.ceil(max(float(step) - start, 0) / every), least)
    return coefficient * (lam * divergence(logp_BT, logp_ref_BT, estimator) + (1 - lam) * divergence(logp_BT, logp_prev_BT, estimator))


def kl_forward(logp_BT: Tensor, logp_tempered_BT: Tensor, *, coefficient: float) -> Tensor:
    """coefficient (rho log rho - rho + 1), rho = ref^/pi: unbiased for KL(ref^ || pi) on samples of pi (RAPO, arXiv 2510.03865)."""
    x = (logp_tempered_BT - logp_BT).clamp(-10, 10)
    return coefficient * (x.exp() * x - x.exp() + 1)


def entropy_bonus(entropy_BT: Tensor, *, coefficient: float) -> Tensor:
    """-coefficient * H."""
    return -coefficient * entropy_BT


def entropy_correct(entropy_BT: Tensor, diversity_weight_B: Tensor, mask_BT: Tensor, *, coefficient: float) -> Tensor:
    """DSDR: -coefficient * mean over prompts of sum_i w_i mean_t H, w a softmax of diversity over the prompt's right responses."""
    return -coefficient * (diversity_weight_B * token_mean(entropy_BT, mask_BT)).sum()


def entropy_target(
    entropy_BT: Tensor, mask_BT: Tensor, coefficient_B: Tensor, entropy_sum: Tensor | None = None, *, coefficient: float = 0.001, target: float = 0.55
) -> Tensor:
    """coefficient |H - target|, H aggregated as the loss is: pushes from both sides (Confucius3-Math's TER, arXiv 2506.18330)."""
    here = aggregate_entropy(entropy_BT, mask_BT, coefficient_B)
    share = (coefficient_B * mask_BT.sum(-1)).sum()
    return coefficient * of_whole(lambda h: (h - target).abs(), here, here.detach() if entropy_sum is None else entropy_sum, share)


def entropy_anchor(
    peak_entropy_B: Tensor,
    entropy_anchor: Tensor | None = None,
    peak_sum: Tensor | None = None,
    peak_count: Tensor | None = None,
    *,
    coefficient: float = 0.005,
) -> Tensor:
    """SIREN: coefficient (H - anchor)^2, H the mean over responses of the nucleus entropy of their peak tokens, the anchor what it was at the
    first step."""
    total, count = sum_of_peaks(peak_entropy_B), count_of_peaks(peak_entropy_B)
    whole, responses = (total.detach(), count) if peak_sum is None or peak_count is None else (peak_sum, peak_count)
    mean = mean_peak(whole, responses)
    anchor = mean if entropy_anchor is None else entropy_anchor
    return coefficient * of_whole(lambda h: (h - anchor) ** 2, total / responses.clamp(min=1), mean, count / responses.clamp(min=1))


def of_whole(function: Callable[[Tensor], Tensor], here: Tensor, whole: Tensor, share: Tensor) -> Tensor:
    """This slice's share of function(whole), where the slices' `here` add up to `whole`: value f(whole) * share, gradient
    f'(whole) * d here."""
    at = whole.detach().requires_grad_()
    with torch.enable_grad():
        value = function(at)
        (slope,) = torch.autograd.grad(value, at)
    return value.detach() * share.detach() + slope.detach() * (here - here.detach())


def aggregate_entropy(entropy_BT: Tensor, mask_BT: Tensor, coefficient_B: Tensor) -> Tensor:
    """This slice's share of the aggregated entropy."""
    return (coefficient_B[:, None] * mask_BT * entropy_BT).sum()


def peak_entropy(nucleus_entropy_BT: Tensor, mask_BT: Tensor, *, quantile: float = 0.8) -> Tensor:
    """Mean over a response's tokens whose entropy is strictly above its `quantile` (B,), nan where there is none."""
    held_BT = nucleus_entropy_BT.detach().masked_fill(mask_BT == 0, torch.nan)
    peak_BT = (held_BT > held_BT.nanquantile(quantile, dim=-1, keepdim=True)).to(mask_BT)
    return torch.where(peak_BT.sum(-1) > 0, token_mean(nucleus_entropy_BT, peak_BT), torch.nan)


def sum_of_peaks(peak_entropy_B: Tensor) -> Tensor:
    """Over the responses that have any."""
    return torch.where(peak_entropy_B.isnan(), 0.0, peak_entropy_B).sum()


def count_of_peaks(peak_entropy_B: Tensor) -> Tensor:
    """Number of those."""
    return (~peak_entropy_B.isnan()).sum().to(peak_entropy_B)


def mean_peak(peak_sum: Tensor, peak_count: Tensor) -> Tensor:
    """0 where no response has any."""
    return peak_sum / peak_count.clamp(min=1)
