"""Advantages and the policy-gradient objective: the slots of a recipe, composed. Losses are minimised.

R' = reward(R);  A = scale(centre(R'));  x = ratio(logp);  l_t = clip(x, A) * mismatch + regularisers;  L = aggregate(l)
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pipelines.rl.batch import Batch
from pipelines.rl.recipe import Recipe


def route(recipe: Recipe, batch: Batch) -> Batch:
    """The batch with the rows that the recipe does not train on masked out entirely."""
    rows_B = recipe.bound["routing"](batch)
    return replace(batch, mask_BT=batch.mask_BT * rows_B[:, None].to(batch.mask_BT))


def advantages(recipe: Recipe, batch: Batch) -> Tensor:
    """advantage_BT, detached; 0 where the mask is 0. Needs whole groups."""
    shaped_B = recipe.bound["reward"](batch.reward_B, batch)
    centred_B = recipe.bound["center"](shaped_B, batch)
    scaled_B = recipe.bound["scale"](centred_B, shaped_B, batch)
    return (scaled_B[:, None] * batch.mask_BT).detach()


def objective(recipe: Recipe, batch: Batch, logp_BT: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The loss of `batch` (a share of the loss of `batch.whole` when it is a slice) and what to log.

    Reads batch.advantage_BT, which `advantages` fills. Gradient flows through `logp_BT` (B, T) only.
    """
    if batch.advantage_BT is None:
        raise ValueError("batch.advantage_BT is empty: call advantages(recipe, batch) on the whole batch first")
    x_BT = recipe.bound["ratio"](logp_BT, batch)
    loss_BT = recipe.bound["clip"](x_BT, batch.advantage_BT, logp_BT)
    if batch.logp_roll_BT is not None:
        gap_BT = (batch.logp_old_BT - batch.logp_roll_BT) * batch.mask_BT
        loss_BT = loss_BT * recipe.bound["mismatch"](gap_BT, batch)
    for coefficient, term in recipe.terms:
        loss_BT = loss_BT + coefficient * term(logp_BT, batch)
    loss = recipe.bound["aggregation"](loss_BT, batch)
    return loss, _metrics(recipe, batch, x_BT.detach())


def _metrics(recipe: Recipe, batch: Batch, x_BT: Tensor) -> dict[str, float]:
    """Sums over this slice's tokens that the loop divides by `tokens`."""
    mask = batch.mask_BT.bool()
    ratio = x_BT.exp()[mask]
    clip = recipe.slots["clip"]
    low, high = 1 - clip.get("low", torch.inf), 1 + clip.get("high", torch.inf)
    positive = batch.advantage_BT[mask] > 0  # type: ignore[index]  # objective has checked it
    clipped = ((positive & (ratio > high)) | (~positive & (ratio < low))) if clip["name"] == "ppo" else torch.zeros_like(positive)
    return {"tokens": float(mask.sum()), "ratio": float(ratio.sum()), "clipped": float(clipped.sum())}
