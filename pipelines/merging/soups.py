"""Weighted means and sums: linear, task arithmetic, Model Stock. Rules over one tensor, see tensors.py.

Keyword-only arguments are the settings, named as in mergekit; `lambda_` is written `lambda` in files.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.merging.tensors import Group, PerModel, per_model, product, require_experts


def linear(group: Group, *, weight: PerModel = 1.0, normalize: bool = True) -> Iterator[Tensor]:
    """Model soup: sum w_i theta_i, divided by sum w_i unless `normalize` is off (arXiv 2203.05482). The base takes no part."""
    weights = per_model("weight", weight, group.experts)
    divisor = divisor_of(weights) if normalize else 1.0
    for chunk in group.chunks():
        merged = chunk.experts[0].mul_(weights[0])
        for w, expert in zip(weights[1:], chunk.experts[1:], strict=True):
            merged.add_(expert, alpha=w)
        yield merged.div_(divisor)


def task_arithmetic(group: Group, *, weight: PerModel = 1.0, normalize: bool = False, lambda_: float = 1.0) -> Iterator[Tensor]:
    """theta_0 + lambda * sum w_i tau_i (arXiv 2212.04089); `normalize` divides by sum w_i."""
    weights = per_model("weight", weight, group.experts)
    scale = lambda_ / divisor_of(weights) if normalize else lambda_
    for chunk in group.chunks():
        assert chunk.base is not None
        first, *others = chunk.deltas()
        merged = first.mul_(weights[0])
        for w, tau in zip(weights[1:], others, strict=True):
            merged.add_(tau, alpha=w)
        yield chunk.base.add_(merged, alpha=scale)


def model_stock(group: Group, *, filter_wise: bool = False) -> Iterator[Tensor]:
    """Model Stock (arXiv 2403.19522): t * mean(theta_i) + (1 - t) * theta_0, t = N c / (1 + (N - 1) c).

    c is the mean cosine between the deltas of two experts, over the whole tensor or, `filter_wise`, over each row. It does not depend on
    the deltas' size. An expert that changed nothing has cosine 0 with every other; where the denominator vanishes t is 0.
    """
    require_experts("model_stock", group.experts)
    pairs = [(i, j) for i in range(group.experts) for j in range(i + 1, group.experts)]
    if filter_wise and len(group.shape) > 1:
        for chunk in group.rows():
            taus = chunk.deltas()
            gram = {(i, j): product(taus[i], taus[j], axis=-1) for i in range(len(taus)) for j in range(i, len(taus))}
            share = torch.from_numpy(_share(gram, pairs, group.experts)).float().unsqueeze(-1)
            assert chunk.base is not None
            yield chunk.base.add_(_mean(taus).mul_(share))
        return
    sums = {(i, j): 0.0 for i in range(group.experts) for j in range(i, group.experts)}
    for chunk in group.chunks():
        taus = chunk.deltas()
        for i, j in sums:
            sums[i, j] += float(product(taus[i], taus[j]))
    share = float(_share({pair: np.array(value) for pair, value in sums.items()}, pairs, group.experts))
    for chunk in group.chunks():
        assert chunk.base is not None
        yield chunk.base.add_(_mean(chunk.deltas()), alpha=share)


def _share(gram: dict[tuple[int, int], np.ndarray], pairs: list[tuple[int, int]], experts: int) -> np.ndarray:
    """t from the inner products of the deltas."""
    cosines = []
    for i, j in pairs:
        norms = np.sqrt(gram[i, i]) * np.sqrt(gram[j, j])
        cosines.append(np.clip(np.divide(gram[i, j], norms, out=np.zeros_like(norms), where=norms > 0), -1.0, 1.0))
    cosine = np.mean(cosines, axis=0)
    denominator = 1.0 + (experts - 1) * cosine
    return np.divide(experts * cosine, denominator, out=np.zeros_like(denominator), where=np.abs(denominator) >= 1e-6)


def _mean(taus: list[Tensor]) -> Tensor:
    first, *others = taus
    for tau in others:
        first.add_(tau)
    return first.div_(len(taus))


def divisor_of(weights: list[float]) -> float:
    """Sum of the weights.

    Raises:
        UserError: it is 0.
    """
    divisor = sum(weights)
    if abs(divisor) < 1e-8:
        raise UserError(f"merging: weights {weights} add up to 0 and cannot be normalised")
    return divisor
