"""Reinforced Agent Merging, RAM and RAM+ (arXiv 2601.13572). Rules over one tensor, see tensors.py.

Deltas of RL are sparse and mostly disjoint, so dividing by N, as soups and TIES without trimming do, would shrink what only one
expert has learnt by N. RAM divides each entry by the number of experts that changed it; RAM+ also makes up, at the entries that one
expert alone changed, for what averaging takes from it elsewhere.

What counts as a change is a share of the weight (models/changes.py), not the paper's distance of 1e-5, which at small learning rates and in
float32 leaves out all that was learnt; `absolute` takes `changed_above` for such a distance, as mergekit's files do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from pipelines.merging.tensors import Chunk, Group
from pipelines.models.changes import SHARE, changed


def ram(group: Group, *, changed_above: float = SHARE, absolute: bool = False) -> Iterator[Tensor]:
    """An entry counts as changed by expert i where |tau_i| > `changed_above` * max(|theta_i|, |theta_0|); `absolute`: |tau_i| > `changed_above`.

    Changed by none: the base; by one: that expert's value, unscaled; by several: the mean over those that changed it.

    The mean runs over theta, not tau, and is updated expert by expert, so that equal experts come out to the last bit.
    """
    for chunk in group.chunks():
        yield _ram(chunk, changed_above, absolute)[0]


def ram_plus(
    group: Group,
    *,
    r: float | None = None,
    alpha: float | None = None,
    changed_above: float = SHARE,
    absolute: bool = False,
    scaling: Literal["paper", "script"] = "paper",
    scope: Literal["model", "tensor"] = "model",
) -> Iterator[Tensor]:
    """RAM whose unique entries of expert i grow by lambda_i, which counts of its unique, shared and changed entries give.

    scaling `paper`: lambda_i = 1 + r * clip(shared / unique, 0, alpha), r = 0.1, alpha = 0.2; without unique entries the ratio is alpha.
    `script`, as in the authors' code: lambda_i = 1 + (r - 1) * clip(shared / changed, 0, alpha), r = 1.2, alpha = 1.
    scope `model` counts over the whole model, as both do; `tensor` over this tensor alone, as mergekit's ramplus_tl does.
    """
    counts = overlap(group, changed_above=changed_above, absolute=absolute) if scope == "tensor" or group.whole is None else group.whole
    growth = []
    for unique, shared in counts.tolist():
        if scaling == "paper":
            most = 0.2 if alpha is None else alpha
            ratio = shared / unique if unique else most
            growth.append((0.1 if r is None else r) * min(ratio, most))
        else:
            ratio = shared / (unique + shared) if unique + shared else 0.0
            growth.append(((1.2 if r is None else r) - 1.0) * min(ratio, 1.0 if alpha is None else alpha))
    for chunk in group.chunks():
        merged, masks, count = _ram(chunk, changed_above, absolute)
        alone = (count == 1).float()
        for extra, tau, mask in zip(growth, chunk.deltas(), masks, strict=True):
            merged.add_(tau.mul_(mask.mul_(alone)), alpha=extra)
        yield merged


def ramplus_tl(
    group: Group, *, r: float = 0.1, alpha: float = 0.2, changed_above: float = SHARE, absolute: bool = False
) -> Iterator[Tensor]:
    """RAM+ by the paper's scaling with the counts of each tensor, under mergekit's name for it."""
    return ram_plus(group, r=r, alpha=alpha, changed_above=changed_above, absolute=absolute, scope="tensor")


def overlap(group: Group, *, changed_above: float = SHARE, absolute: bool = False) -> Tensor:
    """Entries of each expert that it alone changed and that others changed too: int64, experts x (unique, shared)."""
    counts = torch.zeros(group.experts, 2, dtype=torch.int64)
    for chunk in group.chunks():
        assert chunk.base is not None
        counts += tally([counted(expert, chunk.base, changed_above, absolute) for expert in chunk.experts])
    return counts


def tally(masks: list[Tensor]) -> Tensor:
    """(unique, shared) of each expert from its mask of 1 and 0: int64, experts x 2."""
    alone = sum(masks[1:], masks[0]).eq(1).float()
    # exact: a chunk has fewer elements than fp32 counts
    pairs = [(int(torch.dot(mask, alone)), int(mask.sum())) for mask in masks]
    return torch.tensor([[unique, changed - unique] for unique, changed in pairs])


def _ram(chunk: Chunk, changed_above: float, absolute: bool) -> tuple[Tensor, list[Tensor], Tensor]:
    """The merged chunk; per expert 1 where it changed the base, else 0; and how many did."""
    assert chunk.base is not None
    masks, count = [], torch.zeros_like(chunk.base)
    merged = chunk.base
    for expert in chunk.experts:
        masks.append(counted(expert, chunk.base, changed_above, absolute))
        count.add_(masks[-1])
        # a running mean with weights 1, 1/2, ...; lerp gives its ends exactly
        merged = torch.lerp(merged, expert, masks[-1] / count.clamp(min=1.0))
    return merged, masks, count


def counted(expert: Tensor, base: Tensor, changed_above: float = SHARE, absolute: bool = False) -> Tensor:
    """1 where the expert changed the base, else 0, as floats: arithmetic on them is several times as fast as on booleans."""
    return (expert - base).abs_().gt_(changed_above) if absolute else changed(base, expert, changed_above).float()
