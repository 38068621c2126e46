"""What each expert brings to a merge, and how much of it can reach the result: the merge says so where that is little.

tau_i = theta_i - theta_0 is the update of expert i. Two things can lose it without a word: a rule that takes small changes for none
(RAM's, ram.py), and the result's dtype, in which theta_i and theta_0 may be the same number. What a rule does to updates on purpose
(weights, density, lambda) is not counted as a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipelines.merging.configs import MergeConfig
from pipelines.merging.methods import COUNTING
from pipelines.merging.ram import counted, tally
from pipelines.merging.tensors import Group

COLUMNS = 4
"""Of an account, per expert: entries that it alone changed, those that others changed too, |tau|^2, and the part of |tau|^2 that is kept."""
LITTLE = 0.5
"""An expert of whose update the merge keeps less than this share, as squared norm, is pointed at."""


def account(group: Group, method: str, settings: Mapping[str, Any], narrow: torch.dtype | None) -> Tensor:
    """One tensor: float64, experts x COLUMNS. settings: those of the rule. narrow: dtype of the result where it cannot tell all numbers
    of the inputs apart."""
    counting = method in COUNTING
    notion = {key: settings[key] for key in ("changed_above", "absolute") if counting and key in settings}
    found = torch.zeros(group.experts, COLUMNS, dtype=torch.float64)
    for chunk in group.chunks():
        assert chunk.base is not None
        masks = [counted(expert, chunk.base, **notion) for expert in chunk.experts]
        found[:, :2] += tally(masks)
        for row, expert, mask in zip(found, chunk.experts, masks, strict=True):
            shown = expert.to(narrow) != chunk.base.to(narrow) if narrow else None
            tau = expert.sub_(chunk.base)
            row[2] += (whole := float(torch.dot(tau, tau)))
            if counting or shown is not None:
                tau.mul_(mask if counting else 1.0).mul_(1.0 if shown is None else shown)
                whole = float(torch.dot(tau, tau))
            row[3] += whole
    return found


def notices(config: MergeConfig, sums: Tensor) -> tuple[str, ...]:
    """A sentence for each expert that equals the base, or of whose update little is kept. sums: the account of the whole model."""
    causes = []
    if config.method in COUNTING:
        causes.append("`changed_above` takes the rest for unchanged: lower it")
    if config.dtype not in (None, "float32"):
        causes.append(f"{config.dtype} stores the same as for the base: take `dtype: float32`")
    told = []
    for folder, (_, _, whole, kept) in zip(config.models, sums.tolist(), strict=True):
        if folder == config.base:
            continue
        if whole == 0:
            told.append(f"merging: expert '{folder.name}' equals the base bit for bit: it has learnt nothing")
        elif kept < LITTLE * whole:
            cause = "; or ".join(causes) or "the stored dtype does not show the rest"
            told.append(f"merging: the merge keeps {kept / whole:.2%} of the update of expert '{folder.name}' (squared norm); {cause}")
    return tuple(told)
