"""From a batch with advantages to new weights: optimiser steps over whole groups, in micro-batches.

Denominators are of the whole optimiser step, over all ranks, so neither the size of a micro-batch nor the number of processes
changes a loss.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipelines.config.learning import LearningStage
from pipelines.models import ranks
from pipelines.models.optimisation import keep_batch, update
from pipelines.models.packing import SHARING, pack
from pipelines.models.sharding import spread
from pipelines.rl import score
from pipelines.rl.batch import Batch, present
from pipelines.rl.gathering import add_up
from pipelines.rl.inputs.step import Actor
from pipelines.rl.objective import aggregates, objective, of_aggregates, weigh
from pipelines.rl.objectives.pairwise import ranked
from pipelines.rl.recipe import Recipe
from pipelines.rl.tensors import TENSORS, When

BY_TOKEN = ("ratio", "clipped", "entropy", "kl_reference", "mismatch_k1", "mismatch_k3", "mismatch_outside")
"""Figures that are sums over tokens."""
BY_PAIR = ("pair_accuracy", "pair_margin")
"""Figures that are sums over pairs."""


def optimise(
    actor: Actor,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    settings: LearningStage,
    share: float,
    ids_BT: Tensor,
    score_BT: Tensor,
    batch: Batch,
    groups: Sequence[Sequence[int]],
    folder: Path,
) -> dict[str, float]:
    """`epochs` passes over `groups`, the ids of each optimiser step's groups on all ranks, of which `batch` holds this rank's.

    Returns what to log: means over tokens, over optimiser steps, the largest difference between the engines.

    Raises:
        UserError: a loss or gradient is not finite; its batch is kept in `folder`.
    """
    updates = len(groups) * settings.epochs
    sums: dict[str, float] = defaultdict(float, dict.fromkeys(_figures(recipe, batch), 0.0))
    largest = {"mismatch_max": 0.0} if "logp_roll_BT" in batch else {}
    norm = 0.0
    held: dict[str, float] = defaultdict(float)
    parts = [_Part.of(actor, recipe, settings, ids_BT, score_BT, batch, group_ids) for group_ids in groups]
    if not settings.on_policy:
        with torch.no_grad():
            parts = [replace(part, old=[part.old_of(live) for _, live in part.forward()]) for part in parts]
        spread(actor.policy)
    for number in range(updates):
        part = parts[number % len(parts)]
        if sums_of_batch := recipe.having(When.SUM):
            with torch.no_grad():
                totals = [aggregates(recipe, piece, live) for piece, live in part.forward()]
            part = replace(part, batch=part.batch.having(**add_up(sums_of_batch, totals, part.batch.mask_BT)))
            for name, value in of_aggregates(recipe, part.batch).items():
                held[name] += value / updates
        before = sums["loss"]
        for piece, live in part.forward():
            if actor.warming:
                live = {name: value if TENSORS[name].head else value.detach() for name, value in live.items()}
            entropy, logp_BT = live["entropy_BT"].detach(), live.pop("logp_BT")
            loss, figures = objective(recipe, piece, logp_BT, live)
            if loss.requires_grad:
                loss.backward()
            figures |= {"loss": float(loss.detach()), "entropy": float((entropy * piece.mask_BT).sum())}
            before_BT = logp_BT.detach() if score.anchored_to_behaviour(recipe, settings) else piece.logp_old_BT
            apart, furthest = gaps(piece, before_BT)
            if "pairs" in recipe.needs:
                figures |= ranked(piece, logp_BT.detach())
            for name, value in (figures | apart).items():
                sums[name] += value
            largest = {name: max(value, furthest) for name, value in largest.items()}
        spread(actor.policy)
        for p in actor.policy.parameters():
            if p.requires_grad and p.grad is None and not actor.warming:  # no row had a gradient: it is 0, which momentum does not stop at
                p.grad = torch.zeros_like(p)
        whole = ranks.total({"loss": sums["loss"] - before})["loss"]
        norm += update(actor.policy, optimiser, share, settings.optimiser.max_grad_norm, whole, functools.partial(part.keep, folder)) / updates
    sums, largest = ranks.total(sums), ranks.largest(largest)
    tokens = max(sums["tokens"], 1.0)
    means = {name: sums[name] / tokens for name in BY_TOKEN if name in sums}
    means |= {name: sums[name] / max(sums["pairs"], 1.0) for name in BY_PAIR if name in sums}
    return means | largest | {"loss": sums["loss"] / updates, "grad_norm": norm} | held


def _figures(recipe: Recipe, batch: Batch) -> list[str]:
    """Names of the sums that an update counts, the same on all ranks, which may have no row that trains."""
    unknown = {name for name in BY_TOKEN if name.startswith("mismatch") and "logp_roll_BT" not in batch}
    unknown |= set() if "logp_ref_BT" in batch else {"kl_reference"}
    return ["tokens", "loss", *(name for name in BY_TOKEN if name not in unknown), *(("pairs", *BY_PAIR) if "pairs" in recipe.needs else ())]


@dataclass(frozen=True)
class _Part:
    """This rank's rows of one optimiser step. old: by micro-batch, what the policy before the update says of its tokens; None where that is what
    the update's own forward pass says.

    Old and new are scored in the same micro-batches: a matrix product of another shape rounds otherwise, and a policy that has not changed must
    have a ratio of 1.
    """

    actor: Actor
    recipe: Recipe
    settings: LearningStage
    ids_BT: Tensor
    score_BT: Tensor
    idle: tuple[Tensor, Tensor]
    batch: Batch
    old: Sequence[dict[str, Tensor]] | None = None

    @classmethod
    def of(
        cls, actor: Actor, recipe: Recipe, settings: LearningStage, ids_BT: Tensor, score_BT: Tensor, batch: Batch, groups: Sequence[int]
    ) -> _Part:
        rows = torch.isin(batch.group_B, torch.tensor(groups, device=batch.group_B.device)).nonzero()[:, 0]
        weighed = weigh(recipe, batch.rows(rows))
        return cls(actor, recipe, settings, ids_BT[rows], score_BT[rows], (ids_BT[:1], score_BT[:1]), weighed)

    def forward(self) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        """(slice, its live tensors) of each micro-batch in turn, cut to its longest response. Rows that do not train are left out.

        Rows whose loss has no gradient, for want of an advantage, run without one: they count in the figures alone. Sharded weights need
        every rank at every pass, so a rank that has fewer runs the `idle` row, to no effect.
        """
        needs = {name: TENSORS[name] for name in self.recipe.needs}
        names = {name for name, declared in needs.items() if declared.when is When.LIVE} | {d.live for d in needs.values() if d.live}
        live = functools.partial(score.live, self.actor, self.settings, inputs=self.recipe.slots["inputs"])
        beside = {other for declared in needs.values() if declared.when is When.LIVE for other in declared.with_}
        idles = next(name for name in sorted(names) if TENSORS[name].head) if self.actor.warming else "logp_BT"
        number = 0
        for rows, graph in zip(_moving(self.recipe, self.batch), (contextlib.nullcontext, torch.no_grad), strict=True):
            micros = _micro_batches(self.recipe, self.batch, rows, self.ids_BT, self.score_BT, self.settings.micro_batch)
            missing = ranks.most(len(micros)) - len(micros)
            for micro in micros:
                width = int(self.score_BT[micro].nonzero()[:, 1].max()) + 1
                piece = self.batch.rows(micro).narrow(width)
                along = {name: piece[name] for name in beside if name in piece}
                with graph():
                    now = live(names | {"logp_BT"}, ids_BT=self.ids_BT[micro, :width], score_BT=self.score_BT[micro, :width], along=along)
                yield piece.having(**(self.old_of(now) if self.old is None else self.old[number])), now
                number += 1
            for _ in range(missing):
                with graph():
                    said = live({idles}, ids_BT=self.idle[0], score_BT=self.idle[1], along={})[idles]
                if said.requires_grad:
                    (0 * said.sum()).backward()

    def old_of(self, live: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the policy says of a slice, as what an unchanged one said before the update."""
        needed = {"logp_old_BT"} if score.anchored_to_behaviour(self.recipe, self.settings) else set()
        return {old: live[d.live].detach() for old, d in TENSORS.items() if d.live and old not in needed and d.live in live}

    def keep(self, folder: Path) -> Path:
        """Write the rows to a file in `folder`."""
        name = f"not-finite-{int(self.batch['step']):08d}" + (f"-rank-{ranks.rank()}" if ranks.world() > 1 else "")
        return keep_batch(folder / f"{name}.pt", {"ids_BT": self.ids_BT, "score_BT": self.score_BT, **self.batch.tensors()})


def _moving(recipe: Recipe, part: Batch) -> tuple[Tensor, Tensor]:
    """Indices of the rows that train: (those whose loss may have a gradient, those whose advantage is 0 where nothing else has one)."""
    rows = present(part.mask_BT)
    if not recipe.follows_advantage or "advantage_BT" not in part:
        return rows.nonzero()[:, 0], rows.new_zeros(0, dtype=torch.long)
    moves = ((part["advantage_BT"] * part.mask_BT) != 0).any(1)
    return (rows & moves).nonzero()[:, 0], (rows & ~moves).nonzero()[:, 0]


def _micro_batches(recipe: Recipe, part: Batch, rows: Tensor, ids_BT: Tensor, score_BT: Tensor, size: int) -> list[Tensor]:
    """Of `rows`, the indices of each micro-batch: those of like length, or whole groups where the loss couples them, or groups one after another
    where `SHARING` times fewer tokens run, since a micro-batch runs each prompt once."""
    if not len(rows):
        return []
    group_B, scored_BT = part.group_B[rows], score_BT[rows]
    if recipe.grouped:
        return [rows[bucket] for bucket in group_buckets(group_B, scored_BT, size)]
    by_length, by_group = length_buckets(scored_BT, size), prompt_buckets(group_B, scored_BT, size)
    saves = laid_down(ids_BT[rows], scored_BT, by_group) * SHARING <= laid_down(ids_BT[rows], scored_BT, by_length)
    return [rows[bucket] for bucket in (by_group if saves else by_length)]


def length_buckets(score_BT: Tensor, micro_batch: int) -> list[Tensor]:
    """Row indices of each micro-batch: responses of like length together, so that attention meets little padding."""
    return list(_stretch(score_BT).argsort(stable=True).split(micro_batch))


def prompt_buckets(group_B: Tensor, score_BT: Tensor, micro_batch: int) -> list[Tensor]:
    """Row indices of each micro-batch: one group after another, those of like longest row together."""
    stretch_B = _stretch(score_BT)
    longest_B = torch.zeros_like(stretch_B)
    _, group_B = group_B.unique(return_inverse=True)
    longest_B = longest_B.scatter_reduce(0, group_B, stretch_B, "amax")[group_B]
    order = group_B.argsort(stable=True)
    return list(order[longest_B[order].argsort(stable=True)].split(micro_batch))


def laid_down(ids_BT: Tensor, score_BT: Tensor, buckets: Sequence[Tensor]) -> int:
    """Tokens that these micro-batches run."""
    return sum(len(pack(ids_BT[bucket], score_BT[bucket]).ids_N) for bucket in buckets)


def _stretch(score_BT: Tensor) -> Tensor:
    """Tokens from each row's first to its last scored one."""
    return (score_BT * torch.arange(score_BT.shape[1], device=score_BT.device)).amax(-1) - score_BT.int().argmax(-1)


def group_buckets(group_B: Tensor, score_BT: Tensor, micro_batch: int) -> list[Tensor]:
    """Row indices of each micro-batch: whole groups of like longest row, as many as fit (at least one)."""
    stretch_B = _stretch(score_BT)
    groups = [(group_B == group).nonzero()[:, 0] for group in torch.unique(group_B)]
    buckets: list[Tensor] = []
    for rows in sorted(groups, key=lambda rows: int(stretch_B[rows].max())):
        if buckets and len(buckets[-1]) + len(rows) <= micro_batch:
            buckets[-1] = torch.cat([buckets[-1], rows])
        else:
            buckets.append(rows)
    return buckets


def gaps(piece: Batch, before_BT: Tensor) -> tuple[dict[str, float], float]:
    """Sums over tokens of how far the policy that answered is from the one that trains, d = log pi - log mu with pi = `before_BT`, where mu is known
    (where that could say only some tokens, among these), and the policy from its reference (estimator k3, Schulman 2020); and the largest |d|."""
    mask, sums, d = piece.mask_BT.bool(), dict[str, float](), before_BT.new_zeros(0)
    if "logp_roll_BT" in piece:
        d = (piece.tensors().get("logp_allowed_old_BT", before_BT) - piece["logp_roll_BT"])[mask]
        ratio = d.exp()
        sums = {
            "mismatch_k1": float(-d.sum()),
            "mismatch_k3": float((ratio - 1 - d).sum()),
            "mismatch_outside": float(((ratio < 0.5) | (ratio > 2)).sum()),
        }
    if "logp_ref_BT" in piece:
        away = (piece["logp_ref_BT"] - before_BT)[mask]
        sums["kl_reference"] = float((away.exp() - 1 - away).sum())
    return sums, float(d.abs().max()) if len(d) else 0.0
