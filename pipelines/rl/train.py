"""THE LOOP: sample problems -> generate groups -> verify -> reward -> advantage -> update -> log -> checkpoint.

The loop knows no algorithm: a recipe's slots decide what a reward, an advantage and a loss are (objective.py), and name the
tensors that they read; `inputs.fill` gets those and no others. Everything random is keyed by (seed, stage, step), so a
checkpoint of weights, optimiser and step resumes exactly.
"""

from __future__ import annotations

import copy
import functools
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines import methods
from pipelines.config.rl import RlStage
from pipelines.errors import UserError
from pipelines.generation import TorchGenerator
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.optimisation import make_optimiser, schedule, update
from pipelines.progress import Journal
from pipelines.records import Problem, Rollout
from pipelines.rl import inputs, online
from pipelines.rl.batch import LIVE, Batch, present
from pipelines.rl.data import Clock, draw, judged, rollouts, tensors
from pipelines.rl.inputs import Actor, Step
from pipelines.rl.inputs.scores import FROZEN_ROLE
from pipelines.rl.inputs.teacher import teacher_topk
from pipelines.rl.journal import report, summary
from pipelines.rl.objective import aggregates, objective, route, weigh, with_advantages
from pipelines.rl.ranks import add_up
from pipelines.rl.recipe import Recipe
from pipelines.store import forget_torn, write_rollouts
from pipelines.verifiers import VerifierPool

HELD = ("entropy_anchor", "special_anchor")
"""Statistics of the first step that later steps compare with."""


class Held(dict[str, float]):
    """Numbers that a checkpoint keeps."""

    state_dict = dict.copy

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.update(state)


def frozen_roles(recipe: Recipe) -> dict[str, str]:
    """Policies beside the trained one: role -> where from: `init`, `reference` (what the stage names), or `copy` (follows the policy)."""
    source = {"ref": "reference", "sft": "init", "dpo": "reference", "guide": "reference", "prev": "copy", "teacher": "copy"}
    roles = {role for name, role in FROZEN_ROLE.items() if name in recipe.needs}
    if any(value["name"] == "inject" for value in recipe.slots["recompose"]):
        roles.add("guide")
    return {role: source[role] for role in sorted(roles)}


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
    frozen: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train `policy` in place, from its newest checkpoint if there is one. Returns the summary of the run.

    `frozen` holds the policies of `frozen_roles` that do not follow the trained one.
    """
    actor = make_actor(policy, tokenizer, recipe, frozen or {})
    optimiser = make_optimiser(policy, settings.optimiser)
    held = Held()
    moving = [role for role, source in frozen_roles(recipe).items() if source == "copy" or (role == "ref" and settings.reset_reference)]
    state: dict[str, Any] = {"held": held} | {role: actor.frozen[role] for role in moving}
    step = checkpoints.restore(policy, optimiser, state)
    journal.cut(step)
    _forget_rollouts(rollout_folder, step)
    if step:
        journal.say(f"resuming after step {step} of {settings.steps}")
    history = online.History.of(rollout_folder)
    generator = TorchGenerator(policy, tokenizer, settings.generation)
    guide = TorchGenerator(actor.frozen["guide"], tokenizer, settings.generation) if "guide" in actor.frozen else None
    by_id = {problem.problem_id: problem for problem in problems}
    policy.eval()  # no dropout: the behaviour and the training policy are one
    keep = functools.partial(_eligible, recipe, history) if recipe.lists["tasks"] else None
    with VerifierPool() as pool:

        def answer(step: int, clock: Clock, draws: int) -> list[Rollout]:
            """Judged responses to the step's problems, or to those of its further draw 1, 2, ..."""
            chosen = draw(problems, settings.prompts_per_step, seed, (stage, f"draw {draws}") if draws else stage, step, keep)
            return rollouts(generator, pool, chosen, settings.group_size, seed, stage, step, clock)

        while step < settings.steps:
            step += 1
            clock = Clock()
            generator.version = step - 1
            made = answer(step, clock, 0)
            for change in recipe.lists["recompose"]:
                more = functools.partial(answer, step, clock)
                made = change(made, online.Recomposition(step, (seed, stage), by_id, history, pool, more, guide))
            history.add(step, made)
            now = make_step(actor, recipe, settings, judged(made), by_id, history, held, (seed, stage), step)
            batch = with_advantages(recipe, route(recipe, inputs.fill(recipe, now)))
            for name in HELD:
                if name not in held and (value := getattr(batch, name)) is not None:
                    held[name] = float(value)
            if "prev" in actor.frozen:
                actor.frozen["prev"].load_state_dict(policy.state_dict(), strict=False)  # a value head is no part of it
            clock.lap("score")
            share = schedule(settings.optimiser, step, settings.steps)
            figures = optimise(actor, optimiser, recipe, settings, share, now.ids_BT, now.score_BT, batch)
            if "peak_entropy" in figures:
                held.setdefault("entropy_anchor", figures["peak_entropy"])
            follow(actor, recipe, settings, step)
            clock.lap("update")
            write_rollouts(rollout_folder / f"step-{step:06d}.parquet", made)
            if step % settings.checkpoint_every == 0 and step < settings.steps:
                checkpoints.save(step, policy, optimiser, state)
            clock.lap("other")
            report(journal, step, settings.steps, made, batch, figures | {"lr": share * settings.optimiser.lr}, clock)
    if actor.value_head is not None:
        del policy.value_head
    return summary(journal)


def make_actor(policy: Any, tokenizer: Any, recipe: Recipe, frozen: Mapping[str, Any]) -> Actor:
    """The policy with what the recipe needs beside it: frozen policies, copies that follow it, a value head that starts at 0."""
    models = {}
    for role, source in frozen_roles(recipe).items():
        if source == "copy":
            models[role] = copy.deepcopy(policy).eval().requires_grad_(False)
        elif role not in frozen:
            raise UserError(f"recipe '{recipe.name}' needs a policy as '{role}': name it under `{source}`")
        else:
            models[role] = frozen[role]
    if "value_BT" in recipe.needs:
        policy.value_head = torch.nn.Linear(policy.config.hidden_size, 1, device=policy.device)
        torch.nn.init.zeros_(policy.value_head.weight)
        torch.nn.init.zeros_(policy.value_head.bias)
    return Actor(policy, tokenizer, models, getattr(policy, "value_head", None))


def follow(actor: Actor, recipe: Recipe, settings: RlStage, step: int) -> None:
    """After the update: the teacher moves towards the policy, and the reference is reset to it where it is time."""
    if "teacher" in actor.frozen:
        rate = recipe.slots["inputs"].get("teacher_topk_BTK", {}).get("rate", methods.settings_of(teacher_topk)["rate"].default)
        with torch.no_grad():
            ours = dict(actor.policy.named_parameters())
            for name, theirs in actor.frozen["teacher"].named_parameters():
                theirs.lerp_(ours[name], rate)
    if step in settings.reset_reference and "ref" in actor.frozen:
        actor.frozen["ref"].load_state_dict(actor.policy.state_dict(), strict=False)


def make_step(
    actor: Actor,
    recipe: Recipe,
    settings: RlStage,
    kept: Sequence[Rollout],
    by_id: Mapping[str, Problem],
    history: online.History,
    held: Mapping[str, float],
    seed: tuple[object, ...],
    step: int,
) -> Step:
    """What the step knows, as tensors."""
    ids_BT, score_BT, batch = tensors(kept, actor.policy.device, step, settings.generation.max_new_tokens)
    anchors = {name: torch.tensor(held[name], device=ids_BT.device) for name in HELD if name in held and name in recipe.read}
    rows = [by_id[r.problem_id] for r in kept]
    return Step(step, actor, settings, seed, rows, kept, ids_BT, score_BT, replace(batch, **anchors), history.rewards_by_part)


def optimise(
    actor: Actor, optimiser: torch.optim.Optimizer, recipe: Recipe, settings: RlStage, share: float, ids_BT: Tensor, score_BT: Tensor, batch: Batch
) -> dict[str, float]:
    """`epochs` passes of `minibatches` optimiser steps over one batch; denominators are global over each step. Returns what to log."""
    updates = settings.minibatches * settings.epochs
    sums: dict[str, float] = defaultdict(float)
    for rows in minibatch_rows(batch.group_B, settings.minibatches) * settings.epochs:
        part = weigh(recipe, batch.rows(rows))
        forward = functools.partial(_forward, actor, recipe, settings, ids_BT=ids_BT[rows], score_BT=score_BT[rows])
        if recipe.aggregates:
            with torch.no_grad():
                totals = [aggregates(recipe, piece, live) for piece, live in forward(part)]
            part = replace(part, **add_up(recipe.aggregates, totals, part.mask_BT))
            if part.peak_sum is not None and part.peak_count is not None:
                sums["peak_entropy"] += float(part.peak_sum / part.peak_count.clamp(min=1)) / updates
        for piece, live in forward(part):
            entropy = live["entropy_BT"].detach()
            loss, figures = objective(recipe, piece, live.pop("logp_BT"), live)
            loss.backward()
            figures |= {"loss": float(loss.detach()), "entropy": float((entropy * piece.mask_BT).sum())}
            for name, value in (figures | gaps(piece)).items():
                sums[name] += value
        sums["grad_norm"] += update(actor.policy, optimiser, share, settings.optimiser.max_grad_norm)
    tokens = max(sums["tokens"], 1.0)
    means = {name: sums[name] / tokens for name in ("ratio", "clipped", "entropy", "mismatch_k1", "mismatch_k3", "mismatch_outside")}
    means |= {name: sums[name] / updates for name in ("loss", "grad_norm")}
    return means | {name: sums[name] for name in ("peak_entropy",) if name in sums}


def _forward(
    actor: Actor, recipe: Recipe, settings: RlStage, part: Batch, *, ids_BT: Tensor, score_BT: Tensor
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """(slice, its live tensors) of each micro-batch in turn, cut to its longest response. Rows that do not train are left out."""
    wanted = {name for name in LIVE if name in recipe.needs} | {"logp_BT"}
    for micro in _micro_batches(recipe, part, score_BT, settings.micro_batch):
        width = int(score_BT[micro].nonzero()[:, 1].max()) + 1
        piece = part.rows(micro).narrow(width)
        along = {} if piece.topk_BTK is None else {"topk_BTK": piece.topk_BTK}
        ids, score = ids_BT[micro, :width], score_BT[micro, :width]
        live = inputs.live(actor, wanted, recipe.slots["inputs"], ids, score, settings.generation.temperature, along)
        if settings.on_policy:
            own = {old: live[new].detach() for old, new in inputs.OLD_OF.items() if old not in recipe.before and new in live}
            piece = replace(piece, **own)
        yield piece, live


def _micro_batches(recipe: Recipe, part: Batch, score_BT: Tensor, size: int) -> list[Tensor]:
    """Row indices of each micro-batch, of rows that train: those of like length, or whole groups where the loss couples them."""
    rows = present(part.mask_BT).nonzero()[:, 0]
    if not len(rows):
        return []
    buckets = group_buckets(part.group_B[rows], score_BT[rows], size) if recipe.grouped else length_buckets(score_BT[rows], size)
    return [rows[bucket] for bucket in buckets]


def minibatch_rows(group_B: Tensor, minibatches: int) -> list[Tensor]:
    """Row indices of each optimiser step: whole groups, in order."""
    groups = torch.unique(group_B)
    return [torch.isin(group_B, some).nonzero()[:, 0] for some in groups.tensor_split(minibatches) if len(some)]


def length_buckets(score_BT: Tensor, micro_batch: int) -> list[Tensor]:
    """Row indices of each micro-batch: responses of like length together, which wastes the least padding where prompts are shared."""
    return list(_stretch(score_BT).argsort(stable=True).split(micro_batch))


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


def gaps(piece: Batch) -> dict[str, float]:
    """Sums over tokens that measure how far the generation engine is from the training engine: d = log pi_old - log mu."""
    mask = piece.mask_BT.bool()
    assert piece.logp_roll_BT is not None
    d = (piece.logp_old_BT - piece.logp_roll_BT)[mask]
    ratio = d.exp()
    return {
        "mismatch_k1": float(-d.sum()),
        "mismatch_k3": float((ratio - 1 - d).sum()),
        "mismatch_outside": float(((ratio < 0.5) | (ratio > 2)).sum()),
    }


def _eligible(recipe: Recipe, history: online.History, problem: Problem) -> bool:
    return all(keep(history.outcomes, problem) for keep in recipe.lists["tasks"])


def _forget_rollouts(folder: Path, step: int) -> None:
    """Remove rollouts of steps that are about to be done again."""
    if step == 0:
        shutil.rmtree(folder, ignore_errors=True)
    forget_torn(folder)
    for path in folder.glob("step-*.parquet"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
