"""Deltas thinned out before they are added: TIES, DARE, DELLA, Breadcrumbs. Rules over one tensor, see tensors.py.

Each is one way to thin the deltas and one way to add them: a plain weighted sum, or the sum of those that agree with the elected sign.
How a thinned delta makes up for what it lost (`rescale`) follows the papers: DARE and DELLA divide what they keep by the probability
of keeping it, so that the expectation is the delta; TIES and Breadcrumbs do nothing, and `rescale` gives the delta its L1 norm back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.merging.soups import divisor_of
from pipelines.merging.tensors import Chunk, Group, PerModel, per_model, ranked, total

Thin = Callable[[int, Tensor, Chunk], Tensor]
"""(number of the expert, its delta, the chunk) -> what is kept of the delta, written over it."""


def ties(
    group: Group, *, weight: PerModel = 1.0, density: PerModel = 1.0, normalize: bool = True, rescale: bool = False, lambda_: float = 1.0
) -> Iterator[Tensor]:
    """Trim, elect sign, merge (arXiv 2306.01708).

    Each tau_i keeps its `density` share of largest magnitudes in the tensor, one entry at least; entries equal to the smallest that
    is kept are all kept, so memory order has no say. s = sign(sum w_i tau_i), + where that is 0; entries that agree with s are
    averaged by weight (`normalize`) or summed. The paper trims to 0.2; the default keeps all, as mergekit's does.
    """
    thin = _between(group, [_kept(group, share, 0.0) for share in _densities("ties", density, group.experts)], rescale)
    return _add(group, thin, weight, normalize, lambda_, elect=True)


def breadcrumbs(
    group: Group,
    *,
    weight: PerModel = 1.0,
    density: PerModel = 1.0,
    gamma: PerModel = 0.01,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Iterator[Tensor]:
    """Model Breadcrumbs (arXiv 2312.06795): the `gamma` share of largest magnitudes goes, then the smallest until `density` remains.

    Where gamma + density is above 1, fewer of the largest go. Density 1 keeps all.
    """
    return _add(group, _crumbs("breadcrumbs", group, density, gamma, rescale), weight, normalize, lambda_, elect=False)


def breadcrumbs_ties(
    group: Group,
    *,
    weight: PerModel = 1.0,
    density: PerModel = 1.0,
    gamma: PerModel = 0.01,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Iterator[Tensor]:
    """Breadcrumbs, added as in TIES."""
    return _add(group, _crumbs("breadcrumbs_ties", group, density, gamma, rescale), weight, normalize, lambda_, elect=True)


def dare_linear(
    group: Group, *, weight: PerModel = 1.0, density: PerModel = 1.0, normalize: bool = False, rescale: bool = True, lambda_: float = 1.0
) -> Iterator[Tensor]:
    """DARE (arXiv 2311.03099): every entry of tau_i stays with probability `density` and is divided by it."""
    return _add(group, _random("dare_linear", group, density, rescale), weight, normalize, lambda_, elect=False)


def dare_ties(
    group: Group, *, weight: PerModel = 1.0, density: PerModel = 1.0, normalize: bool = False, rescale: bool = True, lambda_: float = 1.0
) -> Iterator[Tensor]:
    """DARE, added as in TIES."""
    return _add(group, _random("dare_ties", group, density, rescale), weight, normalize, lambda_, elect=True)


def della(
    group: Group,
    *,
    weight: PerModel = 1.0,
    density: PerModel = 1.0,
    epsilon: PerModel = 0.15,
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
) -> Iterator[Tensor]:
    """DELLA (arXiv 2406.11617): an entry stays with a probability that grows with its rank by magnitude in its row.

    p runs from density - epsilon at the smallest to density + epsilon at the largest; what stays is divided by its p. A row of one entry
    has p = density. Added as in TIES.
    """
    return _add(group, _magnitude_pruned("della", group, density, epsilon, rescale), weight, normalize, lambda_, elect=True, rows=True)


def della_linear(
    group: Group,
    *,
    weight: PerModel = 1.0,
    density: PerModel = 1.0,
    epsilon: PerModel = 0.15,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
) -> Iterator[Tensor]:
    """DELLA, added without the election of signs."""
    return _add(group, _magnitude_pruned("della_linear", group, density, epsilon, rescale), weight, normalize, lambda_, elect=False, rows=True)


def _add(group: Group, thin: Thin, weight: PerModel, normalize: bool, lambda_: float, *, elect: bool, rows: bool = False) -> Iterator[Tensor]:
    """theta_0 + lambda * the sum of thinned, weighted deltas; with `elect`, of those that have the sign of that sum."""
    weights = per_model("weight", weight, group.experts)
    scale = lambda_ / divisor_of(weights) if normalize and not elect else lambda_
    for chunk in group.rows() if rows else group.chunks():
        taus = [thin(i, tau, chunk).mul_(w) for i, (tau, w) in enumerate(zip(chunk.deltas(), weights, strict=True))]
        merged = taus[0].clone()
        for tau in taus[1:]:
            merged.add_(tau)
        if elect:
            sign = merged.ge_(0).mul_(2).sub_(1)  # times it, a delta is positive exactly where its sign is the elected one
            merged, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
            for w, tau in zip(weights, taus, strict=True):
                merged.add_(tau.mul_(sign).clamp_(min=0))
                divisor.add_(tau.sign_(), alpha=w)
            if normalize:
                merged.div_(divisor.add_(divisor == 0))
            merged.mul_(sign)
        assert chunk.base is not None
        yield chunk.base.add_(merged, alpha=scale)


def _kept(group: Group, density: float, gamma: float) -> tuple[int, int] | None:
    """Ranks of the smallest and the largest magnitude that stay; None keeps all."""
    keep = max(1, math.floor(round(density * group.size, 6)))
    if keep >= group.size:
        return None
    lowest = max(0, group.size - keep - math.floor(round(gamma * group.size, 6)))
    return lowest, lowest + keep - 1


def _crumbs(method: str, group: Group, density: PerModel, gamma: PerModel, rescale: bool) -> Thin:
    shares = zip(_densities(method, density, group.experts), per_model("gamma", gamma, group.experts), strict=True)
    return _between(group, [_kept(group, share, top) for share, top in shares], rescale)


def _between(group: Group, ranks: Sequence[tuple[int, int] | None], rescale: bool) -> Thin:
    """Keep magnitudes between two ranks, whose values a walk over the tensor finds. `rescale` restores the L1 norm."""
    values = ranked(group, [pair or () for pair in ranks]) if any(ranks) else []

    def thin(i: int, tau: Tensor, chunk: Chunk) -> Tensor:
        if (pair := ranks[i]) is None:
            return tau
        magnitude, (low, high) = tau.abs(), values[i]
        if pair[1] < group.size - 1:
            tau.mul_(magnitude <= high)
        return tau.mul_(magnitude.ge_(low))

    if not rescale or not any(ranks):
        return thin
    before, after = [0.0] * group.experts, [0.0] * group.experts
    for chunk in group.chunks():
        for i, tau in enumerate(chunk.deltas()):
            before[i] += total(tau.abs())
            after[i] += total(thin(i, tau, chunk).abs_())
    factors = [b / a if a > 0 else 1.0 for b, a in zip(before, after, strict=True)]
    return lambda i, tau, chunk: thin(i, tau, chunk).mul_(factors[i])


def _random(method: str, group: Group, density: PerModel, rescale: bool) -> Thin:
    densities = _densities(method, density, group.experts)

    def thin(i: int, tau: Tensor, chunk: Chunk) -> Tensor:
        if densities[i] >= 1:
            return tau
        tau.mul_(group.uniform(i, chunk).lt_(densities[i]))
        return tau.div_(densities[i]) if rescale else tau

    return thin


def _magnitude_pruned(method: str, group: Group, density: PerModel, epsilon: PerModel, rescale: bool) -> Thin:
    densities, spreads = _densities(method, density, group.experts), per_model("epsilon", epsilon, group.experts)
    for share, spread in zip(densities, spreads, strict=True):
        if share < 1 and not (0 <= spread < share and share + spread <= 1):
            raise UserError(f"merge method '{method}': density - epsilon to density + epsilon must lie in (0, 1], got {share} and {spread}")

    def thin(i: int, tau: Tensor, chunk: Chunk) -> Tensor:
        if densities[i] >= 1:
            return tau
        width = tau.shape[-1]
        order = tau.abs().argsort(dim=-1, stable=True)
        keep = torch.full_like(tau, densities[i])
        if width > 1:
            steps = torch.linspace(densities[i] - spreads[i], densities[i] + spreads[i], width)
            keep.scatter_(-1, order, steps.expand_as(order))
        del order
        tau.mul_(group.uniform(i, chunk).lt_(keep))
        return tau.div_(keep) if rescale else tau

    return thin


def _densities(method: str, density: PerModel, experts: int) -> list[float]:
    found = per_model("density", density, experts)
    for share in found:
        if not 0.0 < share <= 1.0:
            raise UserError(f"merge method '{method}': density must lie in (0, 1], got {share}")
    return found
