"""Which entries of a model's matrices an optimiser may move (Zhu et al.: The Path Not Taken, arXiv 2511.08567).

    principal   the largest share of |W_k|, W_k the reconstruction of rank k of the weights W0 that a stage starts from
    low         the smallest share of |W0|
    safe        low, or not principal: off the directions that carry W0, where RLVR was found to work
    random      as many as safe has, drawn

Masks act after the optimiser's step, so neither its momentum nor weight decay moves an entry that is held. Embeddings, the head, vectors and a value
head move as usual. `pipelines/evaluation/weights.py` says how far an update that was free kept to these masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipelines import seeding
from pipelines.config.common import UpdateMaskSettings
from pipelines.errors import UserError
from pipelines.models.adapters import VALUE_HEAD
from pipelines.models.spectra import decompose, rebuilt, tall

EXACT = 128
"""Smaller side up to which a matrix is decomposed as it is."""


def mask_of(weight: Tensor, settings: UpdateMaskSettings, name: str) -> Tensor:
    """The entries (bool) of a matrix that may move; of equal ones the first in order count as smaller. name: what the draw of `random` depends on."""
    matrix = tall(weight)
    seen = rebuilt(matrix, decompose(matrix, min(settings.rank, matrix.shape[1]), EXACT).right)
    through = (seen if matrix.shape == weight.shape else seen.T).reshape(weight.shape)
    principal, low = smallest(-through.abs(), settings.share), smallest(weight.abs(), settings.share)
    if settings.kind == "principal":
        return principal
    if settings.kind == "low":
        return low
    safe = low | ~principal
    if settings.kind == "safe":
        return safe
    order = torch.randperm(safe.numel(), generator=torch.Generator().manual_seed(seeding.key("update mask", name)))
    return torch.zeros(safe.numel(), dtype=torch.bool).index_fill(0, order[: int(safe.sum())], True).view(safe.shape)


def smallest(key: Tensor, share: float) -> Tensor:
    """The entries with the ceil(share n) smallest keys, the first in order where several are equal."""
    order = key.flatten().sort(stable=True).indices
    chosen = order[: math.ceil(share * len(order))]
    return torch.zeros(len(order), dtype=torch.bool).index_fill(0, chosen, True).view(key.shape)


def hold(optimiser: torch.optim.Optimizer, matrices: Mapping[str, Tensor], settings: UpdateMaskSettings, *, sharded: bool) -> None:
    """Have every step of `optimiser` leave the other entries of these matrices, by name, as they are now.

    Raises:
        UserError: they are spread over processes (`sharded`), or adapters train in their place.
    """
    if sharded:
        raise UserError("optimiser.mask needs whole matrices, which several processes do not have: set processes 1")
    if adapter := next((name for name in matrices if "lora_" in name), None):
        raise UserError(f"optimiser.mask is of the weights themselves, and adapters train here ({adapter}): leave `lora` or the mask out")
    held: list[tuple[Tensor, Tensor, Tensor]] = []
    for name, p in matrices.items():
        if not name.startswith(VALUE_HEAD):
            stays = ~mask_of(p.detach().cpu().float(), settings, name).to(p.device)
            held.append((p, stays, p.detach()[stays].clone()))

    @torch.no_grad()
    def put_back(*_: Any) -> None:
        for p, stays, values in held:
            p.masked_scatter_(stays, values)

    optimiser.register_step_post_hook(put_back)
