"""Merge rules, one pure function over one tensor each: (base, experts) in fp32 -> merged in fp32.

theta_0 is the base, theta_i an expert (i = 1..N), tau_i = theta_i - theta_0 its delta. Keyword-only arguments are the
settings a params file may give. Every function is elementwise except where its docstring says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pipelines.errors import UserError

EPS = 1e-5
"""Smallest delta that RAM counts as a change: a bf16 step at |w| = 0.05 is 2.4e-4, so any stored change of an ordinary weight counts."""


def linear(base: Tensor, experts: list[Tensor], *, weights: Sequence[float] | None = None, normalize: bool = True) -> Tensor:
    """Model soup: sum w_i theta_i, divided by sum w_i unless `normalize` is off (arXiv 2203.05482). The base takes no part."""
    w = _weights(weights, len(experts))
    merged = torch.zeros_like(base)
    for weight, expert in zip(w, experts, strict=True):
        merged.add_(expert, alpha=weight)
    return merged.div_(_divisor(w)) if normalize else merged


def task_arithmetic(
    base: Tensor, experts: list[Tensor], *, weights: Sequence[float] | None = None, scale: float = 1.0, normalize: bool = False
) -> Tensor:
    """theta_0 + scale * sum w_i tau_i (arXiv 2212.04089)."""
    w = _weights(weights, len(experts))
    total = torch.zeros_like(base)
    for weight, expert in zip(w, experts, strict=True):
        total.add_(expert - base, alpha=weight)
    return base + total * (scale / _divisor(w) if normalize else scale)


def ties(
    base: Tensor, experts: list[Tensor], *, density: float = 0.2, weights: Sequence[float] | None = None, scale: float = 1.0, normalize: bool = True
) -> Tensor:
    """Trim, elect sign, merge (arXiv 2306.01708).

    Each tau_i keeps its `density` share of largest magnitudes within the tensor (equal magnitudes at the threshold are all kept, so
    the result does not depend on memory order); s = sign(sum w_i tau_i), + where that is 0; entries that agree with s are
    averaged by weight (`normalize`) or summed. The default density is the paper's 0.2; mergekit's is 1.
    """
    if not 0.0 < density <= 1.0:
        raise UserError(f"merge method 'ties': density must lie in (0, 1], got {density}")
    w = _weights(weights, len(experts))
    trimmed = [_trim(expert - base, density) for expert in experts]
    signed = torch.zeros_like(base)
    for weight, tau in zip(w, trimmed, strict=True):
        signed.add_(tau, alpha=weight)
    positive = signed >= 0
    total, divisor = torch.zeros_like(base), torch.zeros_like(base)
    for weight, tau in zip(w, trimmed, strict=True):
        agrees = (tau != 0) & ((tau * weight >= 0) == positive)
        total.add_(tau * agrees, alpha=weight)
        divisor.add_(agrees.to(base.dtype), alpha=weight)
    if normalize:
        total /= torch.where(divisor.abs() < 1e-8, torch.ones_like(divisor), divisor)
    return base + scale * total


def ram(base: Tensor, experts: list[Tensor], *, eps: float = EPS) -> Tensor:
    """Reinforced Agent Merging (arXiv 2601.13572).

    An entry counts as changed by expert i where |tau_i| > `eps`. Changed by none: the base; by one: that expert's value, unscaled; by
    several: the mean over those that changed it. RL deltas are sparse and mostly disjoint, so dividing by N, as soups and TIES
    without trimming do, would shrink what only one expert has learnt by N. The mean runs over theta, not tau, and is updated expert by
    expert, so that equal experts come out to the last bit.
    """
    merged, count = base.clone(), torch.zeros_like(base)
    for expert in experts:
        changed = (expert - base).abs() > eps
        count += changed
        merged = torch.where(changed, torch.where(count == 1, expert, merged + (expert - merged) / count), merged)
    return merged


def ram_plus(
    base: Tensor,
    experts: list[Tensor],
    counts: Tensor | None = None,
    *,
    r: float = 0.1,
    alpha: float = 0.2,
    eps: float = EPS,
    scope: Literal["model", "tensor"] = "model",
) -> Tensor:
    """RAM whose unique entries grow by lambda_i = 1 + r * clip(rho_i, 0, alpha), rho_i = shared_i / unique_i (arXiv 2601.13572).

    `counts` are `overlap` summed over the whole model, the paper's scope; without them rho is taken over this tensor alone, which is
    what `scope: tensor` (mergekit's form) asks for. An expert without unique entries has rho = alpha.
    """
    if scope == "tensor" or counts is None:
        counts = overlap(base, experts, eps=eps)
    merged = ram(base, experts, eps=eps)
    masks, alone = _changes(base, experts, eps)
    for expert, mask, (unique, shared) in zip(experts, masks, counts.tolist(), strict=True):
        rho = shared / unique if unique else alpha
        growth = r * min(max(rho, 0.0), alpha)
        merged += torch.where(mask & alone, growth * (expert - base), torch.zeros_like(base))
    return merged


def overlap(base: Tensor, experts: list[Tensor], *, eps: float = EPS) -> Tensor:
    """Entries of each expert that it alone changed and that others changed too: int64, experts x (unique, shared)."""
    masks, alone = _changes(base, experts, eps)
    rows = [((mask & alone).count_nonzero(), mask.count_nonzero()) for mask in masks]
    return torch.tensor([[int(unique), int(changed - unique)] for unique, changed in rows])


def _changes(base: Tensor, experts: list[Tensor], eps: float) -> tuple[list[Tensor], Tensor]:
    """Per expert, where it changed the base; and where exactly one did."""
    masks = [(expert - base).abs() > eps for expert in experts]
    count = torch.zeros_like(base, dtype=torch.uint8)
    for mask in masks:
        count += mask
    return masks, count == 1


def _trim(tau: Tensor, density: float) -> Tensor:
    """Zero all but the largest `density` share of magnitudes; at least one entry stays."""
    keep = max(1, math.ceil(round(density * tau.numel(), 6)))
    if keep >= tau.numel():
        return tau
    magnitude = tau.abs()
    threshold = magnitude.flatten().kthvalue(tau.numel() - keep + 1).values
    return torch.where(magnitude >= threshold, tau, torch.zeros_like(tau))


def _weights(weights: Sequence[float] | None, experts: int) -> list[float]:
    """One weight per expert; all 1 when none are given."""
    if weights is None:
        return [1.0] * experts
    if len(weights) != experts:
        raise UserError(f"merging: weights has {len(weights)} entries for {experts} models")
    return [float(weight) for weight in weights]


def _divisor(weights: list[float]) -> float:
    total = sum(weights)
    if abs(total) < 1e-8:
        raise UserError(f"merging: weights {weights} add up to 0 and cannot be normalised")
    return total
