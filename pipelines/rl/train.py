"""THE LOOP: sample problems -> generate groups -> verify -> reward -> advantage -> update -> log -> checkpoint.

The loop knows no algorithm: a recipe's slots decide what a reward, an advantage and a loss are (objective.py). Everything
random is keyed by (seed, stage, step), so a checkpoint of weights, optimiser and step resumes exactly.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.config.rl import RlStage
from pipelines.generation import TorchGenerator
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.optimisation import make_optimiser, schedule, update
from pipelines.models.scoring import token_logp
from pipelines.progress import Journal
from pipelines.records import Outcome, Problem, Rollout
from pipelines.rl.batch import Batch
from pipelines.rl.data import Clock, draw, rollouts, tensors
from pipelines.rl.objective import advantages, objective, route
from pipelines.rl.recipe import Recipe
from pipelines.store import write_rollouts
from pipelines.verifiers import VerifierPool


def train(
    policy: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    recipe: Recipe,
    settings: RlStage,
    *,
    stage: str,
    seed: int,
    journal: Journal,
    checkpoints: Checkpoints,
    rollout_folder: Path,
    reference: Any | None = None,
) -> dict[str, float]:
    """Train `policy` in place, from its newest checkpoint if there is one. Returns the summary of the run."""
    optimiser = make_optimiser(policy, settings.optimiser)
    step = checkpoints.restore(policy, optimiser)
    journal.cut(step)
    _forget_rollouts(rollout_folder, step)
    if step:
        journal.say(f"resuming after step {step} of {settings.steps}")
    generator = TorchGenerator(policy, tokenizer, settings.generation)
    policy.eval()  # no dropout: the behaviour and the training policy are one
    with VerifierPool() as pool:
        while step < settings.steps:
            step += 1
            clock = Clock()
            chosen = draw(problems, settings.prompts_per_step, seed, stage, step)
            generator.version = step - 1
            made = rollouts(generator, pool, chosen, settings.group_size, seed, stage, step, clock)
            ids_BT, score_BT, batch = tensors(made, policy.device)
            batch = route(recipe, score_old(policy, reference, recipe, settings, ids_BT, score_BT, batch))
            batch = replace(batch, advantage_BT=advantages(recipe, batch))
            clock.lap("score")
            share = schedule(settings.optimiser, step, settings.steps)
            figures = optimise(policy, optimiser, recipe, settings, share, ids_BT, score_BT, batch)
            clock.lap("update")
            write_rollouts(rollout_folder / f"step-{step:06d}.parquet", made)
            if step % settings.checkpoint_every == 0 and step < settings.steps:
                checkpoints.save(step, policy, optimiser)
            clock.lap("other")
            report(journal, step, settings.steps, made, batch, figures | {"lr": share * settings.optimiser.lr}, clock)
    return summary(journal)


def score_old(policy: Any, reference: Any | None, recipe: Recipe, settings: RlStage, ids_BT: Tensor, score_BT: Tensor, batch: Batch) -> Batch:
    """Log-probabilities before the update: of the training engine, and of the reference where the recipe needs it.

    With one optimiser step per batch the training engine's own first forward gives them (the ratio is then 1 by
    construction), so the extra pass is spared.
    """
    names = {"logp_old_BT": policy} if settings.minibatches > 1 else {}
    if recipe.needs_reference:
        names["logp_ref_BT"] = reference
    with torch.no_grad():
        scored = {name: _logp(model, settings, ids_BT, score_BT) for name, model in names.items()}
    return replace(batch, **scored)


def _logp(model: Any, settings: RlStage, ids_BT: Tensor, score_BT: Tensor) -> Tensor:
    parts = zip(ids_BT.split(settings.micro_batch), score_BT.split(settings.micro_batch), strict=True)
    return torch.cat([token_logp(model, ids, score, settings.generation.temperature)[0] for ids, score in parts])


def optimise(
    policy: Any, optimiser: torch.optim.Optimizer, recipe: Recipe, settings: RlStage, share: float, ids_BT: Tensor, score_BT: Tensor, batch: Batch
) -> dict[str, float]:
    """`minibatches` optimiser steps over one batch of rollouts; denominators are global over each step. Returns what to log."""
    sums: dict[str, float] = defaultdict(float)
    for rows in minibatch_rows(batch.group_B, settings.minibatches):
        part = replace(batch.rows(rows), total=None)
        for micro in length_buckets(score_BT[rows], settings.micro_batch):
            here = rows[micro]
            width = int(score_BT[here].nonzero()[:, 1].max()) + 1
            ids, score = ids_BT[here, :width], score_BT[here, :width]
            logp, entropy = token_logp(policy, ids, score, settings.generation.temperature, with_entropy=True)
            piece = part.rows(micro).narrow(width)
            if settings.minibatches == 1:
                piece = replace(piece, logp_old_BT=logp.detach())
            loss, figures = objective(recipe, piece, logp)
            loss.backward()
            assert entropy is not None
            figures |= gaps(piece, logp.detach()) | {"loss": float(loss.detach()), "entropy": float((entropy * piece.mask_BT).sum())}
            for name, value in figures.items():
                sums[name] += value
        sums["grad_norm"] += update(policy, optimiser, share, settings.optimiser.max_grad_norm)
    tokens = max(sums["tokens"], 1.0)
    means = {name: sums[name] / tokens for name in ("ratio", "clipped", "entropy", "mismatch_k1", "mismatch_k3", "mismatch_outside")}
    return means | {name: sums[name] / settings.minibatches for name in ("loss", "grad_norm")}


def minibatch_rows(group_B: Tensor, minibatches: int) -> list[Tensor]:
    """Row indices of each optimiser step: whole groups, in order."""
    groups = torch.unique(group_B)
    return [torch.isin(group_B, some).nonzero()[:, 0] for some in groups.tensor_split(minibatches) if len(some)]


def length_buckets(score_BT: Tensor, micro_batch: int) -> list[Tensor]:
    """Row indices of each micro-batch: sequences of like length together, which wastes the least padding."""
    ends = (score_BT * torch.arange(score_BT.shape[1], device=score_BT.device)).amax(-1)
    return list(ends.argsort(stable=True).split(micro_batch))


def gaps(piece: Batch, logp_BT: Tensor) -> dict[str, float]:
    """Sums over tokens that measure how far the generation engine is from the training engine: d = log pi - log mu."""
    mask = piece.mask_BT.bool()
    assert piece.logp_roll_BT is not None
    d = (logp_BT - piece.logp_roll_BT)[mask]
    ratio = d.exp()
    return {
        "mismatch_k1": float(-d.sum()),
        "mismatch_k3": float((ratio - 1 - d).sum()),
        "mismatch_outside": float(((ratio < 0.5) | (ratio > 2)).sum()),
    }


def report(journal: Journal, step: int, total: int, made: Sequence[Rollout], batch: Batch, figures: dict[str, float], clock: Clock) -> None:
    """One row of the journal."""
    n = len(made)
    tokens = sum(len(r.response_ids) for r in made)
    outcomes = Counter(r.outcome for r in made)
    per_group: dict[int, set[float]] = {}
    for r in made:
        per_group.setdefault(r.group_id, set()).add(r.reward)
    reward = sum(r.reward for r in made) / n
    seconds = sum(clock.seconds.values())
    journal.log(
        step, total, f"reward {reward:.3f}  length {tokens / n:.0f}  entropy {figures['entropy']:.2f}  {tokens / seconds:,.0f} tokens/s",
        reward=reward, pass_rate=outcomes[Outcome.CORRECT] / n, length=tokens / n,
        truncated=sum(r.finish_reason == "length" for r in made) / n,
        working=sum(_has_working(r.response) for r in made) / n,
        informative_groups=sum(len(rewards) > 1 for rewards in per_group.values()) / len(per_group),
        advantage_abs=float(batch.advantage_BT.abs().sum() / batch.mask_BT.sum().clamp(min=1)) if batch.advantage_BT is not None else 0.0,
        tokens_per_second=tokens / seconds, **figures,
        **{f"outcome_{outcome.value}": outcomes[outcome] / n for outcome in Outcome},
        **{f"seconds_{phase}": value for phase, value in clock.seconds.items()},
    )  # fmt: skip


def _has_working(response: str) -> bool:
    """Whether anything stands between the think tags."""
    return bool(response.partition("</think>")[0].removeprefix("<think>").strip())


def summary(journal: Journal) -> dict[str, float]:
    """First and last reward, each a mean over ten steps."""
    rows = journal.rows()
    means = {"steps": float(len(rows))}
    for name in ("reward", "length", "entropy"):
        for when, part in (("first", rows[:10]), ("last", rows[-10:])):
            means[f"{name}_{when}"] = sum(row[name] for row in part) / len(part)
    return means


def _forget_rollouts(folder: Path, step: int) -> None:
    """Remove rollouts of steps that are about to be done again."""
    if step == 0:
        shutil.rmtree(folder, ignore_errors=True)
    for path in folder.glob("step-*.parquet"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
