"""What training did to the weights: two checkpoints compared tensor by tensor (arXiv 2511.08567).

Both are seen in bfloat16, the precision they are served in. An entry is unchanged iff |a - b| <= eta max(|a|, |b|), eta = 1e-3.
    sparsity       share of unchanged entries (RLVR typically .36 to .92, SFT .006 to .19)
    drift          ||sigma(W+) - sigma(W0)|| / ||sigma(W0)|| over all singular values (about 1e-5 for RLVR, 1e-3 for SFT)
    rotation       principal angles between the leading k singular subspaces, left and right, in degrees: cos = sigma_i(U0_k' U+_k)
                   (below .5 for RLVR, above 10 for SFT)
    stable rank    ||D||_F^2 / ||D||_2^2 of the update D
    overlap        share of the changed entries that are among the alpha largest of W0's leading reconstruction (`principal`), or the alpha
                   smallest of |W0| (`low`); a random update gives alpha (RLVR .73 for `low`)

k is at most half of the smaller side: the space of a full basis cannot rotate. Sparsity, norms and the overlap `low` are of all tensors. The
others need a decomposition (models/spectra.py says how exact one is), which takes days for a large model; so only matrices whose nominal cost fits a
budget are decomposed, of each kind and at all depths (sampling.py), and means come with their standard error.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.evaluation import sampling
from pipelines.models.changes import changed
from pipelines.models.spectra import Spectrum, angles, decompose, largest, rebuilt, seconds, tall
from pipelines.models.tensors import Stored, stored_tensors

RECONSTRUCTION = 64
"""Rank of the reconstruction of W0 whose largest entries are the principal ones."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How to look. dtype: `bfloat16`, or `stored` for the values as they are. rank: k. exact: largest smaller side of a matrix that is decomposed
    as it is. budget: nominal seconds for the decompositions of a pair of checkpoints."""

    dtype: Literal["bfloat16", "stored"] = "bfloat16"
    rank: int = 512
    exact: int = 128
    alpha: float = 0.5
    budget: float = 15.0


@dataclass(frozen=True)
class Change:
    """One tensor. What needs a decomposition is None without one and for vectors and zeros, what needs an update is None where there is none.

    left, right: mean angles, degrees.
    """

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


def compare(before: Path, after: Path, settings: Settings | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """`compare_all` of one model."""
    return compare_all(before, [after], settings or Settings(), progress)[0]


def compare_all(before: Path, afters: Sequence[Path], settings: Settings, progress: Progress | None = None) -> list[dict[str, Any]]:
    """For each model its summary against `before`, whose matrices are decomposed once: over all floating-point tensors, and `tensors`, one
    mapping each in order of name.

    sparsity is weighted by parameters; `low` is a mean over matrices. drift, left, right and principal are means over matrices, estimated from
    the `decomposed` of them, and `errors` has their standard errors (None: unknown); stable_rank is the median and largest the maximum of
    the decomposed ones. left_out: kinds of which the budget takes none -> nominal seconds of one. progress(done, total): counts tensors.

    Raises:
        UserError: the checkpoints do not hold the same tensors, or one is not finite.
    """
    ours = stored_tensors(before)
    others = [_matching(before, ours, after) for after in afters]
    names = [name for name in sorted(ours) if ours[name].floating and math.prod(ours[name].shape)]
    if not names:
        raise UserError(f"{before}: holds no floating-point tensor")
    sides = {name: _sides(ours[name].shape) for name in names}
    costs = {name: seconds(*pair, _directions(pair[1], settings), settings.exact) for name, pair in sides.items() if pair[1] > 1}
    choice = sampling.choose(costs, settings.budget)
    changes: list[list[Change]] = [[] for _ in afters]
    for done, name in enumerate(names, 1):
        first = _seen(ours[name], settings)
        spectrum = functools.cache(functools.partial(leading, first, settings)) if name in choice.names else None
        for found, theirs in zip(changes, others, strict=True):
            found.append(change(name, first, _seen(theirs[name], settings), settings, spectrum))
        if progress:
            progress(done, len(names))
    return [_summary(found, choice, len(costs), settings) for found in changes]


def _summary(changes: Sequence[Change], choice: sampling.Choice, matrices: int, settings: Settings) -> dict[str, Any]:
    def values(name: str) -> dict[str, float]:
        return {change.name: value for change in changes if (value := getattr(change, name)) is not None}

    def over(name: str, figure: Callable[[Sequence[float]], float]) -> float | None:
        return float(figure(list(found.values()))) if (found := values(name)) else None

    means = {name: sampling.mean(values(name), _kinds(values(name), choice)) for name in ("drift", "left", "right", "principal")}
    parameters = sum(change.parameters for change in changes)
    return {
        "parameters": parameters,
        "sparsity": sum(change.sparsity * change.parameters for change in changes) / parameters,
        "relative_update": _norm(changes, "update_norm") / max(_norm(changes, "norm"), 1e-300),
        **{name: found and found[0] for name, found in means.items()},
        "errors": {name: found and found[1] for name, found in means.items()},
        "low": over("low", fmean),
        "largest": over("largest", max),
        "stable_rank": sampling.median(values("stable_rank"), _kinds(values("stable_rank"), choice)),
        "matrices": matrices,
        "decomposed": len(choice.names),
        "left_out": dict(choice.left_out),
        "alpha": settings.alpha,
        "dtype": settings.dtype,
        "tensors": [asdict(change) for change in changes],
    }


def _kinds(values: Mapping[str, float], choice: sampling.Choice) -> dict[str, list[str]]:
    """Kind -> its matrices that have such a figure or may have one: one that was looked at and has none does not count."""
    return {kind: [name for name in names if name in values or name not in choice.names] for kind, names in choice.kinds.items()}


def _norm(changes: Sequence[Change], name: str) -> float:
    return math.hypot(*(getattr(change, name) for change in changes))


def _matching(before: Path, ours: Mapping[str, Stored], after: Path) -> dict[str, Stored]:
    """The tensors of another model, which are the same by name and shape."""
    theirs = stored_tensors(after)
    for name in sorted(ours.keys() ^ theirs.keys()):
        has, lacks = (before, after) if name in ours else (after, before)
        raise UserError(f"{lacks}: tensor '{name}' is missing, {has} has it")
    for name, stored in sorted(theirs.items()):
        if stored.shape != ours[name].shape:
            raise UserError(f"{after}: tensor '{name}' has shape {list(stored.shape)}, expected {list(ours[name].shape)} as in {before}")
    return theirs


def _sides(shape: Sequence[int]) -> tuple[int, int]:
    """The longer and the shorter side of a tensor seen as a matrix of its first dimension by the rest; (n, 1) for a vector."""
    sides = sorted((shape[0], math.prod(shape[1:]))) if len(shape) > 1 else [1, math.prod(shape)]
    return sides[1], sides[0]


def _directions(side: int, settings: Settings) -> int:
    """k of a matrix with this smaller side."""
    return max(1, min(settings.rank, side // 2))


def _seen(stored: Stored, settings: Settings) -> Tensor:
    """The tensor in float32 after the precision looked at."""
    tensor = stored.read()
    if not all(bool(extreme.isfinite()) for extreme in tensor.aminmax()):
        raise UserError(f"{stored.file}: tensor '{stored.name}' holds NaN or inf")
    return (tensor.to(torch.bfloat16) if settings.dtype == "bfloat16" else tensor).float()


def leading(tensor: Tensor, settings: Settings) -> Spectrum:
    """The spectrum of a float32 tensor seen as a tall matrix."""
    matrix = tall(tensor)
    return decompose(matrix, _directions(matrix.shape[1], settings), settings.exact)


def change(name: str, before: Tensor, after: Tensor, settings: Settings, spectrum: Callable[[], Spectrum] | None) -> Change:
    """Everything of one float32 tensor; more than two dimensions are seen as a matrix of the first by the rest.

    spectrum: gives that of `before`; None leaves out what needs decompositions.
    """
    update, hit = after - before, changed(before, after)
    seen = Change(
        name=name,
        shape=tuple(before.shape),
        parameters=before.numel(),
        sparsity=1.0 - int(hit.sum()) / hit.numel(),
        update_norm=float(torch.linalg.vector_norm(update, dtype=torch.float64)),
        norm=float(torch.linalg.vector_norm(before, dtype=torch.float64)),
    )
    if _sides(before.shape)[1] < 2:
        return seen
    found: dict[str, Any] = {}
    if bool(hit.any()):
        found["low"] = overlap(before.abs(), hit, settings.alpha)
    if spectrum is not None:
        if seen.norm > 0:
            found |= _rotation(spectrum(), leading(after, settings), before.shape[0] < before[0].numel())
        if seen.update_norm > 0:
            found["stable_rank"] = (seen.update_norm / largest(tall(update))) ** 2
        if bool(hit.any()):
            right = spectrum().right[:, :RECONSTRUCTION]
            found["principal"] = overlap(rebuilt(tall(before), right).abs_().neg_(), tall(hit), settings.alpha)
    return Change(**{**vars(seen), **found})


def _rotation(first: Spectrum, second: Spectrum, wide: bool) -> dict[str, Any]:
    """Drift and rotation between the spectra of two matrices that are not zero. wide: left and right have changed places."""
    sides = angles(first.left, second.left), angles(first.right, second.right)
    left, right = reversed(sides) if wide else sides
    drift = torch.linalg.vector_norm(second.values - first.values) / torch.linalg.vector_norm(first.values)
    means = {"left": float(left.mean()), "right": float(right.mean()), "largest": float(torch.maximum(left.max(), right.max()))}
    return {"drift": float(drift), "rank": first.right.shape[1], **means}


def overlap(key: Tensor, changed: Tensor, alpha: float) -> float:
    """Share of the changed entries that are among the alpha share with the smallest keys; entries tied at the limit count in part."""
    values, hit = key.reshape(-1), changed.reshape(-1)
    wanted = max(1, round(alpha * len(values)))
    limit = torch.from_numpy(np.partition(values.numpy(), wanted - 1))[wanted - 1]
    below, tied = values < limit, values == limit
    part = (wanted - int(below.sum())) / int(tied.sum())
    return float((int((below & hit).sum()) + part * int((tied & hit).sum())) / int(hit.sum()))
