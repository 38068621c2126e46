"""AdamW and its schedule, as params name them."""

from __future__ import annotations

import math
from typing import Any

import torch

from pipelines.config.common import OptimiserSettings


def make_optimiser(model: Any, settings: OptimiserSettings) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with weight decay on matrices only."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def learning_rate(settings: OptimiserSettings, step: int, total: int) -> float:
    """Rate of step 1 .. total: linear warm-up from 0, then constant or cosine down to `final_share` of the peak."""
    warm = max(1, round(settings.warmup * total))
    if step <= warm:
        return settings.lr * step / warm
    if settings.schedule == "constant":
        return settings.lr
    done = (step - warm) / max(1, total - warm)
    return settings.lr * (settings.final_share + (1 - settings.final_share) * 0.5 * (1 + math.cos(math.pi * done)))


def update(model: Any, optimiser: torch.optim.Optimizer, lr: float, max_grad_norm: float) -> float:
    """Clip the gradients, take one step at `lr`, clear the gradients. Returns the norm before clipping."""
    for group in optimiser.param_groups:
        group["lr"] = lr
    norm = float(torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], max_grad_norm))
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm
