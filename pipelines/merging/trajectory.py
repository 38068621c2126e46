"""Where a training was going: rules whose experts are the kept steps of one run, and whose base is what it started from.

RELEX (arXiv 2605.21468). For each tensor the rows M_t = theta_t - theta_0 of the kept steps are taken apart, M = U S V^T. The coefficients of the
first `rank` right directions, c_r = M V_r = S_r U_r, lie nearly on lines; each gets a least-squares line over the steps, which is read at step
`target`: theta = theta_0 + sum_r c_r(target) V_r^T.

No V is ever made. A least-squares line read at `target` is a weighted sum of its points, with weights h that the steps alone decide, and V_r^T =
U_r^T M / S_r, so theta = theta_0 + sum_t w_t M_t with w = U_r U_r^T h: the weights of the line, projected on the leading directions of the T x T
matrix M M^T. So two walks over the tensor do, one for M M^T and one for the sum, and `line`, where every entry goes on along its own line, is the
same without the projection. Differences: rows are kept steps, not all of them, and the line is over their numbers; nothing is rounded to fp16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipelines.errors import UserError
from pipelines.merging.tensors import Group

Floats = NDArray[np.float64]
NEGLIGIBLE = 1e-6
"""A direction whose singular value is at most this share of the first is left out."""


def relex(group: Group, *, target: float, steps: Sequence[float] | None = None, rank: int = 1, window: int | None = None) -> Iterator[Tensor]:
    """The tensor at step `target`. steps: number of each expert's step, rising; left out: 1, 2, ... window: the last so many steps decide the line;
    left out: all. Tells `explained`, the share of |M|^2 in the first `rank` directions, and what `line` tells, of their coefficients."""
    at = positions(steps, group.experts)
    h = line_weights(at, target, window)
    gram = products(group)
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    leading = vectors[:, :rank][:, np.sqrt(values[:rank]) > np.sqrt(values[0]) * NEGLIGIBLE] if values[0] > 0 else vectors[:, :0]
    projected = leading @ leading.T
    total = float(values.sum())
    explained = float(values[: leading.shape[1]].sum()) / total if total else 0.0
    group.tell({"explained": explained, **told(projected @ gram @ projected, float(gram[-1, -1]), at, h, window)})
    yield from weighted(group, projected @ h)


def line(group: Group, *, target: float, steps: Sequence[float] | None = None, window: int | None = None) -> Iterator[Tensor]:
    """Every entry at step `target` of its least-squares line over the last `window` steps. `window` 1 is the line through the base and the last step:
    theta_0 + target / last * (theta_last - theta_0), as in ExPO (arXiv 2404.16792). Tells `fit`, the share of the variance over the steps that lies
    on the lines (R^2), `length` = |theta - theta_0| / |theta_last - theta_0|, and `update` = |theta_last - theta_0|^2."""
    at = positions(steps, group.experts)
    h = line_weights(at, target, window)
    gram = products(group)
    group.tell(told(gram, float(gram[-1, -1]), at, h, window))
    yield from weighted(group, h)


def positions(steps: Sequence[float] | None, experts: int) -> Floats:
    """
    Raises:
        UserError: not one step for each model, rising and above 0.
    """
    at = np.arange(1.0, experts + 1) if steps is None else np.array(steps, float)
    if len(at) != experts or bool((np.diff(at) <= 0).any()) or at[0] <= 0:
        raise UserError(f"merging: steps {list(steps or ())} must be rising numbers above 0, one for each of {experts} models")
    return at


def line_weights(at: Floats, target: float, window: int | None = None) -> Floats:
    """The weight of each step's value in that of the least-squares line at `target`, over the last `window` steps:
    1/W + (target - mean) (at - mean) / sum (at - mean)^2. Of one step alone the line goes through the base.

    Raises:
        UserError: fewer steps than the window.
    """
    count = len(at) if window is None else window
    if not 1 <= count <= len(at):
        raise UserError(f"merging: a window of {count} steps, and there are {len(at)}")
    weights, last = np.zeros(len(at)), at[-count:]
    if count == 1:
        weights[-1] = target / last[0]
        return weights
    centred = last - last.mean()
    weights[-count:] = 1 / count + (target - last.mean()) * centred / (centred @ centred)
    return weights


def products(group: Group) -> Floats:
    """M M^T in float64, rows M_t = theta_t - theta_0."""
    gram = np.zeros((group.experts, group.experts))
    for chunk in group.chunks():
        rows = np.stack([delta.numpy() for delta in chunk.deltas()]).astype(np.float64)
        gram += np.einsum("in,jn->ij", rows, rows)  # one thread, whatever the machine has
    return gram


def told(gram: Floats, update: float, at: Floats, weights: Floats, window: int | None) -> dict[str, float]:
    """What `line` tells of rows with these products. update: |theta_last - theta_0|^2."""
    count = len(at) if window is None else window
    last, x = gram[-count:, -count:], at[-count:] - at[-count:].mean()
    centring = np.eye(count) - 1 / count
    variance = float(np.trace(centring @ last @ centring))
    on_line = float(x @ last @ x) / float(x @ x) if count > 1 else 0.0
    moved = max(float(weights @ gram @ weights), 0.0)
    return {"fit": on_line / variance if variance > 0 else 0.0, "length": float(np.sqrt(moved / update)) if update > 0 else 0.0, "update": update}


def weighted(group: Group, weights: Floats) -> Iterator[Tensor]:
    """theta_0 + sum_t w_t (theta_t - theta_0), chunk by chunk."""
    for chunk in group.chunks():
        assert chunk.base is not None
        merged = chunk.base.clone()
        for weight, delta in zip(weights.tolist(), chunk.deltas(), strict=True):
            if weight:
                merged.add_(delta, alpha=weight)
        yield merged
