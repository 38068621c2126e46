"""Optimisers and their schedule, as params name them.

Muon (Jordan et al. 2024; arXiv 2502.16982): the momentum of each hidden matrix is replaced by its nearest
semi-orthogonal matrix, found by five Newton-Schulz steps, so that every direction moves at the same rate. Embeddings, norms
and the head stay with AdamW. torch.optim.Muon computes in bfloat16, which a CPU without bf16 units emulates some
fifty times slower; this one computes in float32 and batches matrices of one shape.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.config.common import ClasspSettings, OptimiserSettings
from pipelines.errors import UserError
from pipelines.models.sharding import is_sharded
from pipelines.models.update_masks import hold
from pipelines.store import replacing

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `muon: True` take orthogonalised momentum steps instead."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever passed
        matrices = [group for group in self.param_groups if group.get("muon")]
        hidden: list[tuple[Tensor, Tensor | None]] = []
        for group in matrices:
            self._orthogonal_step(group)
            hidden += [(p, p.grad) for p in group["params"]]
            for p in group["params"]:
                p.grad = None  # AdamW passes over parameters without gradient
        super().step()
        for p, gradient in hidden:
            p.grad = gradient

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                if not self.state[p]:  # AdamW expects to find a step count when state is loaded
                    self.state[p].update(step=torch.tensor(0.0), momentum=torch.zeros_like(p))
                self.state[p]["step"] += 1
                momentum = self.state[p]["momentum"]
                momentum.lerp_(p.grad, 1 - MOMENTUM)
                by_shape[tuple(p.shape)].append((p, p.grad.lerp(momentum, MOMENTUM)))
        for (rows, columns), pairs in by_shape.items():
            updates = orthogonal(torch.stack([update for _, update in pairs]))
            for (p, _), direction in zip(pairs, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(direction, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices (N, R, C), roughly: singular values land within about 0.7 to 1.2."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Classp(torch.optim.Optimizer):
    """CLASSP (arXiv 2405.09637), for learning one task after another: where |g|^p is above a threshold, G <- G + |g|^p and
    w <- w - lr g / (eps + G)^(1/p); the other weights stay, and so does their G."""

    def __init__(self, params: Any, lr: float, settings: ClasspSettings) -> None:
        super().__init__(params, {"lr": lr})
        self.settings = settings

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever passed
        how = self.settings
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                summed = self.state[p].setdefault("summed", torch.zeros_like(p, dtype=torch.float32))
                gradient = p.grad.float()
                size = gradient.abs() ** how.power
                if how.variant == "released":
                    moves = (gradient != 0).any().expand_as(gradient)
                    size = gradient.abs()
                else:
                    moves = size > (_quantile(size, how.threshold) if how.quantile else how.threshold)
                summed.add_(torch.where(moves, size, 0.0))
                change = gradient / (how.eps + summed) ** (1 / how.power)
                p.sub_(torch.where(moves, group["lr"] * change, 0.0))


def _quantile(values: Tensor, share: float) -> Tensor:
    """The smallest value that `share` of the values do not exceed."""
    return values.flatten().kthvalue(max(1, math.ceil(share * values.numel()))).values


def make_optimiser(model: Any, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), Muon for hidden matrices with AdamW for the rest, or CLASSP. Weight decay acts on matrices only. With a mask
    `model` must hold the weights that the stage starts from.

    Raises:
        UserError: see `update_masks.hold`.
    """
    optimiser = _unmasked(model, settings)
    if settings.mask:
        hold(optimiser, hidden_matrices(model), settings.mask, sharded=is_sharded(model))
    return optimiser


def hidden_matrices(model: Any) -> dict[str, Tensor]:
    """By name the matrices that train, but for embeddings and head."""
    head = model.get_output_embeddings() or model.score  # of a reward model
    outer = {id(p) for module in (model.get_input_embeddings(), head) for p in module.parameters()}
    return {name: p for name, p in model.named_parameters() if p.requires_grad and p.ndim == 2 and id(p) not in outer}


def _unmasked(model: Any, settings: OptimiserSettings) -> torch.optim.Optimizer:
    if settings.name == "classp":
        optimiser = Classp([p for p in model.parameters() if p.requires_grad], settings.lr, settings.classp)
        optimiser.param_groups[0]["peak"] = settings.lr
        return optimiser
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = list(hidden_matrices(model).values()) if settings.name == "muon" else []
    taken = {id(p) for p in hidden}
    groups: list[dict[str, Any]] = [
        {"params": [p for _, p in trained if p.ndim >= 2 and id(p) not in taken], "weight_decay": settings.weight_decay},
        {"params": [p for _, p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    if hidden:
        groups.append({"params": hidden, "weight_decay": settings.weight_decay, "muon": True})
    optimiser = (Muon if hidden else torch.optim.AdamW)([g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas, fused=True)
    for group in optimiser.param_groups:
        group["peak"] = settings.muon_lr if group.get("muon") else settings.lr
    return optimiser


def keep_batch(path: Path, batch: Mapping[str, Any]) -> Path:
    """Write the tensors and plain values of a batch that must be looked at, for `torch.load`."""
    with replacing(path) as temporary:
        torch.save(dict(batch), temporary)
    return path


def schedule(settings: OptimiserSettings, step: int, total: int) -> float:
    """Share of the peak rate at step 1 .. total: linear warm-up from 0, then constant or cosine down to `final_share`."""
    warm = max(1, round(settings.warmup * total))
    if step <= warm:
        return step / warm
    if settings.schedule == "constant":
        return 1.0
    done = (step - warm) / max(1, total - warm)
    return settings.final_share + (1 - settings.final_share) * 0.5 * (1 + math.cos(math.pi * done))


def update(model: Any, optimiser: torch.optim.Optimizer, share: float, max_grad_norm: float, loss: float, keep: Callable[[], Path]) -> float:
    """Clip the gradients, take one step at `share` of the peak rates, clear the gradients. Returns the norm before clipping.

    loss: of the whole step, the same on every process.

    Raises:
        UserError: the loss or the norm is not finite. No weight has been changed, and `keep` has written the batch to a file.
    """
    norm = float(torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], max_grad_norm))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise UserError(
            f"the loss is {loss:g} and the norm of its gradient {norm:g}, which must be finite: no weight was changed, and the batch is kept in "
            f"{keep()}; lower optimiser.lr, or look at what the batch holds"
        )
    for group in optimiser.param_groups:
        group["lr"] = share * group["peak"]
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm
