"""THE LOOP: sample problems -> generate groups -> verify -> reward -> advantage -> update -> log -> checkpoint.

The loop knows no algorithm: a recipe's slots decide what a reward, an advantage and a loss are (objective.py), and name the
tensors that they read; `score.fill` gets those and no others. Everything random is keyed by (seed, stage, step), so a
checkpoint of weights, optimiser and step resumes exactly. Several processes run the same loop, each on its share of the groups.
"""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pipelines.config.rl import KlControl, RlStage
from pipelines.errors import InfrastructureError, UserError
from pipelines.generation import TorchGenerator
from pipelines.models import precision
from pipelines.models.adapters import plain_weights
from pipelines.models.checkpoints import Checkpoints, Numbers, Pace
from pipelines.models.exactness import deterministic
from pipelines.models.optimisation import make_optimiser, schedule
from pipelines.models.sharding import gathered, shard, weights
from pipelines.progress import Journal
from pipelines.records import Problem, Rollout
from pipelines.rl import online, ranks
from pipelines.rl.account import ROUTED, STALE, leave_out, place, training
from pipelines.rl.batch import Batch, present
from pipelines.rl.data import Clock, fresh, judged, tensors
from pipelines.rl.inputs.step import Actor, Step
from pipelines.rl.journal import report, summary
from pipelines.rl.objective import masked, routes, with_advantages
from pipelines.rl.recipe import Recipe, inputs_of
from pipelines.rl.roles import ROLES, roles_of
from pipelines.rl.sampling import Sampler, engine_of
from pipelines.rl.score import fill
from pipelines.rl.tensors import TENSORS
from pipelines.rl.update import optimise
from pipelines.rl.validation import Validation, hold_out
from pipelines.store import forget_torn, write_rollouts
from pipelines.verifiers import VerifierPool


@dataclass
class Trained:
    """What a run leaves beside the policy's last weights: its summary, and the best weights where it was validated."""

    summary: dict[str, float]
    best: dict[str, Any] | None


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
) -> Trained:
    """Train `policy` in place, from its newest checkpoint if there is one.

    `frozen` holds the policies of `roles_of` that do not follow the trained one.
    """
    problems, held_out = hold_out(problems, settings.validation, (seed, stage))
    actor = make_actor(policy, tokenizer, recipe, settings, frozen or {})
    behaviour = copy.deepcopy(policy).requires_grad_(False) if settings.asynchronous else None
    if ranks.world() > 1:
        shard(policy)
    optimiser = make_optimiser(policy, settings.optimiser)
    held = Numbers()
    moving = [name for name, role in roles_of(recipe).items() if role.source == "copy" or (name == "ref" and settings.reset_reference)]
    history = online.History(rollout_folder)
    generator = engine_of(policy if behaviour is None else behaviour, tokenizer, settings.generation, checkpoints.folder / "serving")
    eligible = functools.partial(_eligible, recipe, history) if recipe.lists["tasks"] else None
    speaking = {name: TorchGenerator(actor.frozen[name], tokenizer, settings.generation) for name in actor.frozen if ROLES[name].speaks}
    by_id = {problem.problem_id: problem for problem in problems}
    validation = Validation(settings.validation, held_out, checkpoints, held) if settings.validation else None
    with (
        deterministic(policy.device),
        VerifierPool() as pool,
        Sampler(generator, pool, problems, settings, (seed, stage), policy, behaviour, eligible) as sampler,
    ):
        state = {"held": held, **{role: actor.frozen[role] for role in moving}, **sampler.state()}
        step = _resume(policy, optimiser, state, checkpoints, journal, rollout_folder, settings.steps)
        history.read()
        pace = Pace(settings.checkpoint_every, settings.checkpoint_minutes, ranks.longest)
        while step < settings.steps and not (validation and validation.over):
            step += 1
            clock = Clock()
            rollouts = sampler.take(step, clock)
            for change in recipe.lists["recompose"]:
                more = functools.partial(sampler.draw, step, clock)
                others = [speaking[name] for name, _ in inputs_of(change) if name in speaking]
                rollouts = change(rollouts, online.Recomposition(step, (seed, stage), by_id, history, pool, more), *others)
            history.add(step, rollouts)
            if step < settings.steps:
                sampler.ahead(step + 1)
            rollouts, ages = fresh(judged(rollouts), step, settings.max_staleness, settings.stale)
            groups = minibatches(training(rollouts), settings.minibatches)
            now = make_step(actor, recipe, settings, share_of(training(rollouts), groups), by_id, history, held, (seed, stage), step)
            with gathered(policy):
                filled = fill(recipe, now)
                kept = routes(recipe, filled)
                batch = with_advantages(recipe, masked(filled, kept))
            rollouts = leave_out(rollouts, left_out(now.rollouts, filled, kept))
            hold(held, {name: float(batch[name]) for name, declared in TENSORS.items() if declared.held and name in batch})
            follow(actor, recipe, "scored")
            clock.lap("score")
            share = schedule(settings.optimiser, step, settings.steps)
            figures = optimise(actor, optimiser, recipe, settings, share, now.ids_BT, now.score_BT, batch, groups, checkpoints.folder)
            hold(held, {name: figures[declared.held_of] for name, declared in TENSORS.items() if declared.held_of in figures})
            follow(actor, recipe, "updated")
            if step in settings.reset_reference and "ref" in actor.frozen:
                actor.frozen["ref"].load_state_dict(plain_weights(policy, everywhere=True))
            if settings.kl_control:
                figures["kl_scale"] = held.get("kl_scale", 1.0)
                held["kl_scale"] = figures["kl_scale"] * kl_factor(settings.kl_control, figures["kl_reference"])
            clock.lap("update")
            if validation:
                figures |= validation.measure(step, settings.steps, sampler, policy)
                clock.lap("validate")
            if ranks.rank() == 0:
                write_rollouts(rollout_folder / f"step-{step:06d}.parquet", rollouts)
            clock.lap("other")
            report(journal, step, settings.steps, rollouts, batch, ages | figures | {"lr": share * settings.optimiser.lr}, clock)
            over = step == settings.steps or (validation is not None and validation.over)
            if pace.due(step) or over:  # last: what resumes here finds all that this step left
                checkpoints.save(step, policy, optimiser, state)
    if validation and step < settings.steps:
        journal.say(f"stopped after step {step}: {settings.validation.patience} measurements without a new best")  # type: ignore[union-attr]
    if actor.value_head is not None:
        del policy.value_head
    if validation is None:
        return Trained(summary(journal), None)
    best = {"best_step": float(validation.best_step), "best_validation": held["best_rate"]}
    return Trained(summary(journal) | best, checkpoints.best(validation.best_step))


def _resume(
    policy: Any,
    optimiser: torch.optim.Optimizer,
    state: Mapping[str, Any],
    checkpoints: Checkpoints,
    journal: Journal,
    rollout_folder: Path,
    steps: int,
) -> int:
    """Load the newest checkpoint, and forget what was logged after it. Returns its step.

    What the checkpoint lacks, because the settings were others then, starts afresh: copies of the policy as the policy stands.
    """

    def afresh(part: str) -> None:
        journal.say(f"the checkpoint has no {part} for these settings: it starts afresh")
        if part == "behaviour" or (part in ROLES and ROLES[part].source == "copy"):
            state[part].load_state_dict(weights(policy), strict=False)

    step = checkpoints.restore(policy, optimiser, state, afresh)
    journal.cut(step)
    if step:
        journal.say(f"resuming after step {step} of {steps}")
    if ranks.rank() == 0:
        _forget_rollouts(rollout_folder, step)
    ranks.most(step)  # nobody reads the rollouts before that is done
    return step


def minibatches(kept: Sequence[Rollout], count: int) -> list[list[int]]:
    """Ids of the groups of each optimiser step, in order."""
    ids = sorted({rollout.group_id for rollout in kept})
    return [part.tolist() for part in torch.tensor(ids).tensor_split(count) if len(part)]


def left_out(rollouts: Sequence[Rollout], batch: Batch, kept: Mapping[str, torch.Tensor]) -> dict[tuple[int, int], str]:
    """Place -> reason of the rollouts of all ranks that no token trains of. batch, kept: of this rank's `rollouts`, before and by routing."""
    fresh_B = present(batch.mask_BT).tolist()
    keeps = {name: keep_B.tolist() for name, keep_B in kept.items()}
    reasons = [
        STALE if not fresh_B[row] else next((f"{ROUTED} {name}" for name, keep in keeps.items() if not keep[row]), "") for row in range(len(rollouts))
    ]
    return dict(ranks.collect([(place(rollout), reason) for rollout, reason in zip(rollouts, reasons, strict=True) if reason]))


def share_of(kept: Sequence[Rollout], groups: Sequence[Sequence[int]]) -> list[Rollout]:
    """This rank's rollouts: every `world`-th group of each optimiser step.

    Raises:
        InfrastructureError: there are fewer groups than processes.
    """
    mine = {group for some in groups for group in some[ranks.rank() :: ranks.world()]}
    if len(groups[0]) < ranks.world():
        raise InfrastructureError(f"{len(groups[0])} groups are left for {ranks.world()} processes: lower `processes` or `minibatches`")
    return [rollout for rollout in kept if rollout.group_id in mine]


def make_actor(policy: Any, tokenizer: Any, recipe: Recipe, settings: RlStage, frozen: Mapping[str, Any]) -> Actor:
    """The policy with what the recipe needs beside it: frozen policies, copies that follow it, a value head that starts at 0."""
    if settings.kl_control and "kl_scale" not in recipe.read:
        raise UserError(f"kl_control steers KL terms to the reference, and recipe '{recipe.name}' has none: add one, or leave kl_control out")
    precision.chosen(policy.device, settings.precision)  # refused before anything is sampled
    if settings.gradient_checkpointing:
        policy.gradient_checkpointing_enable()
    policy.eval()  # no dropout: the behaviour and the training policy are one
    models = {}
    for name, role in roles_of(recipe).items():
        if role.source == "copy":
            models[name] = copy.deepcopy(policy).eval().requires_grad_(False)
        elif name not in frozen:
            raise UserError(f"recipe '{recipe.name}' needs a policy as '{name}': name it under `{role.source}`")
        else:
            models[name] = frozen[name]
    if "value_BT" in recipe.needs:
        policy.value_head = torch.nn.Linear(policy.config.hidden_size, 1, device=policy.device)
        torch.nn.init.zeros_(policy.value_head.weight)
        torch.nn.init.zeros_(policy.value_head.bias)
    return Actor(policy, tokenizer, models, getattr(policy, "value_head", None))


def hold(held: Numbers, figures: Mapping[str, float]) -> None:
    """Keep what the first step showed, for later ones to compare with."""
    for name, value in figures.items():
        held.setdefault(name, value)


def follow(actor: Actor, recipe: Recipe, moment: Literal["scored", "updated"]) -> None:
    """Policies beside the trained one move as their roles say."""
    for name, role in roles_of(recipe).items():
        if (how := role.scored if moment == "scored" else role.updated) is not None:
            how(actor.frozen[name], weights(actor.policy), recipe)


def kl_factor(control: KlControl, kl: float) -> float:
    """What the coefficients of KL terms are multiplied by after a step whose KL was that."""
    return 1.0 + control.rate * min(max(kl / control.target - 1.0, -0.2), 0.2)


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
    ids_BT, score_BT, batch = tensors(kept, actor.policy.device, step, settings.generation.max_new_tokens, settings.max_staleness)
    names = [name for name, declared in TENSORS.items() if declared.held and name in held and name in recipe.read]
    anchors = {name: torch.tensor(held[name], device=ids_BT.device) for name in names}
    rows = [by_id[r.problem_id] for r in kept]
    return Step(step, actor, settings, seed, rows, kept, ids_BT, score_BT, batch.having(**anchors), history.rewards_by_part)


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
