"""What training did to the weights: two checkpoints compared tensor by tensor (arXiv 2511.08567).

Both are seen in bfloat16, the precision they are served in. An entry is unchanged iff |a - b| <= eta max(|a|, |b|), eta = 1e-3.
    sparsity       share of unchanged entries (RLVR typically .36 to .92, SFT .006 to .19)
    drift          ||sigma(W+) - sigma(W0)|| / ||sigma(W0)|| over all singular values (about 1e-5 for RLVR, 1e-3 for SFT)
    rotation       principal angles between the leading k singular subspaces, left and right, in degrees: cos = sigma_i(U0_k' U+_k)
                   (below .5 for RLVR, above 10 for SFT)
    stable rank    ||D||_F^2 / ||D||_2^2 of the update D
    overlap        share of the changed entries that are among the alpha largest of W0's leading reconstruction (`principal`), or the alpha
                   smallest of |W0| (`low`); a random update gives alpha (RLVR .73 for `low`)

k is at most half of the smaller side: the space of a full basis cannot rotate. Matrices whose smaller side is at most `exact` are decomposed
as they are, larger ones, for speed, through the eigenvectors of their smaller Gram matrix: singular values are then wrong by at most 1e-7
of the largest. Randomised subspace iteration is not used: with k as large as here it is slower than that, and on a flat spectrum it does
not settle. All of it runs on the CPU in float64, as near-equal matrices need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.models.tensors import Stored, stored_tensors

ETA = 1e-3
RECONSTRUCTION = 64
"""Rank of the reconstruction of W0 whose largest entries are the principal ones."""
BLOCK = 2**22
"""Entries that are widened to float64 at once."""


@dataclass(frozen=True)
class Settings:
    """How to look. dtype: `bfloat16`, or `stored` for the values as they are. rank: k. exact: largest smaller side that is decomposed in full."""

    dtype: Literal["bfloat16", "stored"] = "bfloat16"
    rank: int = 512
    exact: int = 1024
    alpha: float = 0.5


@dataclass(frozen=True)
class Change:
    """One tensor. What needs a matrix is None for vectors and zeros, what needs an update is None without one. left, right: mean angles, degrees."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    sparsity: float
    update_norm: float
    norm: float
    drift: float | None = None
    rank: int | None = None
    left: float | None = None
    right: float | None = None
    largest: float | None = None
    stable_rank: float | None = None
    principal: float | None = None
    low: float | None = None


def compare(before: Path, after: Path, settings: Settings | None = None, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """The summary over all floating-point tensors, and `tensors`, one mapping each in order of name.

    sparsity is weighted by parameters; drift, rotation, stable rank and overlaps are means (stable rank: the median) over matrices.

    Raises:
        UserError: the checkpoints do not hold the same tensors, or one is not finite.
    """
    settings = settings or Settings()
    changes = list(_changes(before, after, settings, progress))
    if not changes:
        raise UserError(f"{before}: holds no floating-point tensor")
    parameters = sum(change.parameters for change in changes)

    def over(name: str, mean: Callable[[Sequence[float]], float] = fmean) -> float | None:
        values = [value for change in changes if (value := getattr(change, name)) is not None]
        return float(mean(values)) if values else None

    return {
        "parameters": parameters,
        "sparsity": sum(change.sparsity * change.parameters for change in changes) / parameters,
        "relative_update": _norm(changes, "update_norm") / max(_norm(changes, "norm"), 1e-300),
        **{name: over(name) for name in ("drift", "left", "right", "principal", "low")},
        "largest": over("largest", max),
        "stable_rank": over("stable_rank", median),
        "matrices": sum(change.left is not None for change in changes),
        "alpha": settings.alpha,
        "dtype": settings.dtype,
        "tensors": [asdict(change) for change in changes],
    }


def _norm(changes: Sequence[Change], name: str) -> float:
    return math.hypot(*(getattr(change, name) for change in changes))


def _changes(before: Path, after: Path, settings: Settings, progress: Callable[[int, int], None] | None) -> Iterator[Change]:
    ours, theirs = stored_tensors(before), stored_tensors(after)
    for name in sorted(ours.keys() ^ theirs.keys()):
        has, lacks = (before, after) if name in ours else (after, before)
        raise UserError(f"{lacks}: tensor '{name}' is missing, {has} has it")
    for done, name in enumerate(sorted(ours), 1):
        if ours[name].shape != theirs[name].shape:
            raise UserError(f"{after}: tensor '{name}' has shape {list(theirs[name].shape)}, expected {list(ours[name].shape)} as in {before}")
        first, second = (_seen(stored, settings) for stored in (ours[name], theirs[name]))
        if first is not None and second is not None and first.numel():
            yield change(name, first, second, settings)
        if progress:
            progress(done, len(ours))


def _seen(stored: Stored, settings: Settings) -> Tensor | None:
    """The tensor in float32 after the precision looked at; None for integers."""
    tensor = stored.read()
    if not tensor.is_floating_point():
        return None
    if not all(bool(extreme.isfinite()) for extreme in (tensor.aminmax() if tensor.numel() else ())):
        raise UserError(f"{stored.file}: tensor '{stored.name}' holds NaN or inf")
    return (tensor.to(torch.bfloat16) if settings.dtype == "bfloat16" else tensor).float()


def change(name: str, before: Tensor, after: Tensor, settings: Settings) -> Change:
    """Everything of one float32 tensor; more than two dimensions are seen as a matrix of the first by the rest."""
    update = after - before
    changed = update.abs() > ETA * torch.maximum(before.abs(), after.abs())
    seen = Change(
        name=name,
        shape=tuple(before.shape),
        parameters=before.numel(),
        sparsity=1.0 - float(changed.double().mean()),
        update_norm=float(torch.linalg.vector_norm(update, dtype=torch.float64)),
        norm=float(torch.linalg.vector_norm(before, dtype=torch.float64)),
    )
    if before.ndim < 2 or min(before.shape[0], before[0].numel()) < 2:
        return seen
    first, second, update, changed = (t.reshape(before.shape[0], -1) for t in (before, after, update, changed))
    wide = first.shape[0] < first.shape[1]
    if wide:
        first, second, update, changed = first.T, second.T, update.T, changed.T
    k = max(1, min(settings.rank, first.shape[1] // 2))
    whole = first.shape[1] <= settings.exact
    (u0, s0, v0), (u1, s1, v1) = (decompose(matrix, k, whole) for matrix in (first, second))
    found: dict[str, Any] = {}
    if seen.norm > 0:
        sides = angles(u0, u1), angles(v0, v1)
        left, right = reversed(sides) if wide else sides
        found |= {"drift": float(torch.linalg.vector_norm(s1 - s0) / torch.linalg.vector_norm(s0)), "rank": k}
        found |= {"left": float(left.mean()), "right": float(right.mean()), "largest": float(torch.maximum(left.max(), right.max()))}
    if seen.update_norm > 0:
        found["stable_rank"] = (seen.update_norm / float(singular_values(update, whole)[0])) ** 2
    if bool(changed.any()):
        leading = v0[:, : min(k, RECONSTRUCTION)]
        rebuilt = torch.cat([((rows.double() @ leading) @ leading.T).float() for rows in _rows(first)])
        found["principal"] = overlap(-rebuilt.abs(), changed, settings.alpha)
        found["low"] = overlap(first.abs(), changed, settings.alpha)
    return Change(**{**vars(seen), **found})


def angles(first: Tensor, second: Tensor) -> Tensor:
    """Principal angles (k,) in degrees between the spaces of two orthonormal bases (n, k)."""
    return torch.rad2deg(torch.arccos(torch.linalg.svdvals(first.T @ second).clamp(0.0, 1.0)))


def overlap(key: Tensor, changed: Tensor, alpha: float) -> float:
    """Share of the changed entries that are among the alpha share with the smallest keys; entries tied at the limit count in part."""
    values, hit = key.reshape(-1), changed.reshape(-1)
    wanted = max(1, round(alpha * len(values)))
    limit = values.kthvalue(wanted).values
    below, tied = values < limit, values == limit
    part = (wanted - int(below.sum())) / int(tied.sum())
    return float((int((below & hit).sum()) + part * int((tied & hit).sum())) / int(hit.sum()))


def decompose(matrix: Tensor, k: int, whole: bool) -> tuple[Tensor, Tensor, Tensor]:
    """k leading left directions (m, k), all singular values (n,), falling, and k right directions (n, k) of a tall matrix (m, n).

    whole: by a decomposition of the matrix itself, else of its Gram matrix.
    """
    if whole:
        u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
        return u[:, :k], s, vh[:k].T
    squares, vectors = torch.linalg.eigh(_gram(matrix))
    right = vectors.flip(1)[:, :k]
    return torch.linalg.qr(torch.cat([rows.double() @ right for rows in _rows(matrix)])).Q, squares.clamp(min=0.0).sqrt().flip(0), right


def singular_values(matrix: Tensor, whole: bool) -> Tensor:
    """All singular values, falling, of a tall matrix."""
    if whole:
        return torch.linalg.svdvals(matrix.double())
    return torch.linalg.eigvalsh(_gram(matrix)).clamp(min=0.0).sqrt().flip(0)


def _gram(matrix: Tensor) -> Tensor:
    """matrix.T @ matrix (n, n), summed over blocks of rows."""
    total = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for rows in _rows(matrix):
        total.addmm_(rows.double().T, rows.double())
    return total


def _rows(matrix: Tensor) -> Sequence[Tensor]:
    """Blocks of rows of about BLOCK entries."""
    return matrix.split(max(1, BLOCK // matrix.shape[1]))
