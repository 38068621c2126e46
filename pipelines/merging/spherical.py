"""Two models along the arc between them instead of the chord: SLERP and NuSLERP. Rules over one tensor, see tensors.py."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipelines.merging.tensors import Group, PerModel, per_model, product, require_experts

COLLINEAR = 0.9995
"""|cosine| above which SLERP takes the chord."""


def slerp(group: Group, *, t: float) -> Iterator[Tensor]:
    """Spherical interpolation from the base (t = 0) to the one model (t = 1), by the angle between the two tensors laid out flat.

    sin((1-t) w) / sin w * theta_0 + sin(t w) / sin w * theta_1; nearly parallel or opposite tensors are interpolated along the chord.
    """
    require_experts("slerp", group.experts)
    dots = np.zeros(3)
    for chunk in group.chunks():
        assert chunk.base is not None
        dots += _dots(chunk.base, chunk.experts[0])
    start, end = (float(share) for share in _arc(dots, t, COLLINEAR))
    for chunk in group.chunks():
        assert chunk.base is not None
        yield chunk.base.mul_(start).add_(chunk.experts[0], alpha=end)


def nuslerp(group: Group, *, weight: PerModel = 1.0, nuslerp_flatten: bool = True, nuslerp_row_wise: bool = False) -> Iterator[Tensor]:
    """Spherical interpolation between two models, or between their deltas where there is a base; t = w_2 / (w_1 + w_2).

    The angle is that of the whole tensor (`nuslerp_flatten`), else of each row as it is stored; `nuslerp_row_wise`, named for the
    transposed matrix, is that of each column.
    """
    require_experts("nuslerp", group.experts)
    first, second = per_model("weight", weight, 2)
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
    whole = nuslerp_flatten or len(group.shape) < 2
    by_row, by_column = not whole and not nuslerp_row_wise, not whole and nuslerp_row_wise
    width = math.prod(group.shape[1:]) if by_column else group.width
    shares = None
    if not by_row:
        dots = np.zeros((3, width) if by_column else 3)
        for _, a, b in _pairs(group, width if by_column else None):
            dots += _dots(a, b, 0 if by_column else None)
        shares = _arc(dots, t, 1.0)
    for base, a, b in _pairs(group, width if by_row or by_column else None):
        start, end = shares if shares is not None else _arc(_dots(a, b, -1), t, 1.0)[..., None]
        merged = a.mul_(torch.as_tensor(start, dtype=torch.float32)).add_(b.mul_(torch.as_tensor(end, dtype=torch.float32)))
        yield merged if base is None else base.add_(merged)


def _pairs(group: Group, width: int | None) -> Iterator[tuple[Tensor | None, Tensor, Tensor]]:
    """(base, first, second) chunk by chunk; first and second are deltas where there is a base."""
    for chunk in group.chunks() if width is None else group.rows(width):
        first, second = chunk.experts if chunk.base is None else chunk.deltas()
        yield chunk.base, first, second


def _dots(a: Tensor, b: Tensor, axis: int | None = None) -> np.ndarray:
    """|a|^2, |b|^2, a.b"""
    return np.stack([product(a, a, axis), product(b, b, axis), product(a, b, axis)])


def _arc(dots: np.ndarray, t: float, collinear: float) -> np.ndarray:
    """Shares of the two ends at `t`; a zero vector stands at a right angle to everything."""
    norms = np.sqrt(dots[0]) * np.sqrt(dots[1])
    cosine = np.clip(np.divide(dots[2], norms, out=np.zeros_like(norms), where=norms > 0), -1.0, 1.0)
    angle = np.arccos(cosine)
    sine = np.sin(angle)
    chord = (np.abs(cosine) > collinear) | (sine < 1e-7)
    safe = np.where(chord, 1.0, sine)
    return np.stack([np.where(chord, 1.0 - t, np.sin((1.0 - t) * angle) / safe), np.where(chord, t, np.sin(t * angle) / safe)])
