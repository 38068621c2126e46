"""WIDEN (arXiv 2408.03092): weight disentanglement. A rule over one tensor, see tensors.py."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipelines.merging.tensors import Group, product

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
"""Matrices stored as (tokens, features), whose columns in the paper's sense are the rows."""
ROUNDING = 1e-12
"""1 - cos of two equal columns, as sums in float64 may give it."""


def widen(group: Group, *, ratio: float = 1.0, calibration: float = 1.0) -> Iterator[Tensor]:
    """theta_0 + sum_i s_ij tau_i: each expert's columns weighted by how far they moved, in magnitude and in direction.

    Of every column j of (out, in) matrices: m = |column|, D = column / m; dm = |m_i - m_0|, dd = 1 - cos(D_i, D_0). Within an expert
    columns are ranked, rank r in [0, 1); over experts softmax(r); where r is above `ratio` times the expert's mean rank the score is
    `calibration`. s is the mean of both scores; weights need not add up to 1. A column of zeros has no direction and counts as
    unturned. A vector is scored by |tau| alone, entry by entry, and held whole.
    """
    if len(group.shape) < 2:
        for chunk in group.rows():
            taus = chunk.deltas()
            scores = _scores(np.stack([tau.abs().numpy().reshape(-1) for tau in taus]), ratio, calibration)
            yield _sum(chunk.base, taus, [torch.from_numpy(score) for score in scores])
        return
    by_row = group.name.endswith(EMBEDDINGS)
    width = group.size // max(group.shape[0], 1)
    lengths = np.zeros((group.experts + 1, group.shape[0] if by_row else width))  # squared; the base comes first
    dots = np.zeros((group.experts, lengths.shape[1]))
    for chunk in group.rows(width):
        assert chunk.base is not None
        first = chunk.start // width
        part = slice(first, first + len(chunk.base)) if by_row else slice(None)
        axis = 1 if by_row else 0
        for i, tensor in enumerate([chunk.base, *chunk.experts]):
            lengths[i, part] += product(tensor, tensor, axis)
        for i, expert in enumerate(chunk.experts):
            dots[i, part] += product(chunk.base, expert, axis)
    magnitudes = np.sqrt(lengths)
    norms = magnitudes[:1] * magnitudes[1:]
    turned = 1.0 - np.divide(dots, norms, out=np.ones_like(norms), where=norms > 0)
    turned[turned < ROUNDING] = 0.0  # else the rounding of a sum would rank columns that nothing turned
    grown = np.abs(magnitudes[1:] - magnitudes[:1])
    scores = torch.from_numpy((_scores(grown, ratio, calibration) + _scores(turned, ratio, calibration)) / 2)
    for chunk in group.rows(width):
        first = chunk.start // width
        taus = chunk.deltas()
        yield _sum(chunk.base, taus, [score[first : first + len(taus[0]), None] if by_row else score for score in scores])


def _sum(base: Tensor | None, taus: list[Tensor], weights: list[Tensor]) -> Tensor:
    assert base is not None
    for tau, weight in zip(taus, weights, strict=True):
        base.add_(tau.mul_(weight.view(-1) if weight.dim() == 1 else weight))
    return base


def _scores(moved: np.ndarray, ratio: float, calibration: float) -> np.ndarray:
    """(experts, columns) -> weights, fp32: softmax over experts of each expert's ranks, `calibration` for the upper ones."""
    columns = moved.shape[1]
    places = np.empty(moved.shape, np.int64)
    for row, place in zip(moved, places, strict=True):
        place[np.argsort(row, kind="stable")] = np.arange(columns)
    exponentials = np.exp(places / max(columns, 1))
    scores = exponentials / exponentials.sum(axis=0, keepdims=True)
    # the mean of the ranks 0, 1/n, ... is (n - 1) / 2n; compared as places, so that rounding has no say in the middle
    return np.where(places > ratio * (columns - 1) / 2, calibration, scores).astype(np.float32)
