"""What one run of a stage that learns by a recipe holds, and what each verb of the loop (train.py) does with it."""

from __future__ import annotations

import copy
import functools
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.config.learning import KlControl, LearningStage
from pipelines.config.rl import SamplingStage, ValidationSettings
from pipelines.errors import UserError
from pipelines.generation import Generator, TorchGenerator
from pipelines.models import ranks
from pipelines.models.adapters import plain_weights
from pipelines.models.checkpoints import Best, Checkpoints, Numbers, Pace, Stateful
from pipelines.models.exactness import deterministic
from pipelines.models.kept import Kept
from pipelines.models.optimisation import make_optimiser, schedule
from pipelines.models.reward_model import RewardModel
from pipelines.models.sharding import gathered, shard, weights
from pipelines.progress import Journal
from pipelines.records import Problem, Trajectory
from pipelines.rl.account import leave_out, of_policy, training
from pipelines.rl.actor import follow, make_actor
from pipelines.rl.adopting import Adopting
from pipelines.rl.answering import Answering
from pipelines.rl.batch import Batch
from pipelines.rl.clock import Clock
from pipelines.rl.collate import left_out, make_step, minibatches, share_of
from pipelines.rl.critic_warmup import DONE, explained_variance, warms
from pipelines.rl.explore import samples
from pipelines.rl.guidance import none
from pipelines.rl.history import History
from pipelines.rl.inputs.probes import foreseen
from pipelines.rl.inputs.step import Actor, Step
from pipelines.rl.ledger import Ledger
from pipelines.rl.multiplier import Multiplier, costs_of
from pipelines.rl.objective import masked, routes, with_advantages
from pipelines.rl.play import Answer
from pipelines.rl.recipe import Recipe, inputs_of
from pipelines.rl.recompose import Recomposition
from pipelines.rl.recompose.demonstrations import judged
from pipelines.rl.resets import Resets, forget, resets_of
from pipelines.rl.rewards import Judges, Rewards
from pipelines.rl.roles import ROLES, roles_of
from pipelines.rl.schedule import Sampled, Schedule, Source, Stored, engine_of, schedule_of
from pipelines.rl.score import before, fill
from pipelines.rl.tasks import Draw, draw
from pipelines.rl.tensors import TENSORS
from pipelines.rl.update import optimise
from pipelines.rl.validation import Validation, hold_out
from pipelines.store import forget_torn, write_trajectories
from pipelines.verifiers import VerifierPool


@dataclass(frozen=True)
class Scored:
    """A step's batch, ready for the update. groups: ids of the groups of each optimiser step. costs: of all that the step was answered."""

    now: Step
    batch: Batch
    groups: list[list[int]]
    costs: list[float]


@dataclass
class Run:
    """The parts of a run. state: what a checkpoint keeps beside weights and optimiser. held: numbers of it, which move or which step 1 showed."""

    recipe: Recipe
    settings: LearningStage
    steps: int
    seed: tuple[int, str]
    actor: Actor
    optimiser: torch.optim.Optimizer
    problems: dict[str, Problem]
    plan: Schedule
    history: History
    ledger: Ledger
    speaking: Mapping[str, Generator]
    validation: Validation | None
    resets: Resets | None
    multiplier: Multiplier | None
    checkpoints: Checkpoints
    journal: Journal
    rollout_folder: Path
    held: Numbers
    state: Mapping[str, Stateful]
    pace: Pace
    kept: Kept | None

    @property
    def over(self) -> bool:
        """Validation has seen no new best for so long that the stage ends."""
        return self.validation is not None and self.validation.best.over

    def resume(self) -> int:
        """Load the newest checkpoint, and forget what was told after it. Returns its step.

        What the checkpoint lacks, because the settings were others then, starts afresh: copies of the policy as the policy stands.
        """

        def afresh(part: str) -> None:
            self.journal.say(f"the checkpoint has no {part} for these settings: it starts afresh")
            if part == "behaviour" or (part in ROLES and ROLES[part].source == "copy"):
                self.state[part].load_state_dict(weights(self.actor.policy), strict=False)  # type: ignore[call-arg]  # a module

        step = self.checkpoints.restore(self.actor.policy, self.optimiser, self.state, afresh)
        self.journal.cut(step)
        if self.kept:
            self.kept.cut(step)
        if step:
            self.journal.say(f"resuming after step {step} of {self.steps}")
        if ranks.rank() == 0:
            _forget_trajectories(self.rollout_folder, step)
        ranks.most(step)  # nobody reads them before that is done
        self.history.read(self.plan.learn)
        return step

    def recompose(self, step: int, trajectories: list[Trajectory], clock: Clock) -> list[Trajectory]:
        """What the recipe makes of a step's answers before they train; stored ones stand as they are."""
        if isinstance(self.plan, Stored):
            return trajectories
        more, answering = functools.partial(self.plan.source.further, step, clock), self.plan.source.answering
        foresee = functools.partial(foreseen, self.actor, self.settings)
        adopting = Adopting(step, answering, self.settings.answered.limit, self.ledger, functools.partial(self._tokens, step, "logp_old_BT"))
        at = Recomposition(
            step, self.seed, self.problems, self.history, answering.rewards, more, answering.asking, foresee, adopting,
            functools.partial(self.plan.source.continued, step, clock), functools.partial(self._tokens, step), self.held,
        )  # fmt: skip
        for change in self.recipe.lists["recompose"]:
            beside = {**self.actor.frozen, **self.speaking}
            others = [beside[name] for name, _ in inputs_of(change) if name in beside]
            trajectories = change(trajectories, at, *others)
        return trajectories

    def _tokens(self, step: int, name: str, trajectories: list[Trajectory]) -> list[list[float]]:
        """The tensor `name` of the policy that the step trains, for each token of the responses."""
        now = make_step(self.actor, self.recipe, self.settings, trajectories, self.problems, self.history, self.held, self.seed, step)
        with gathered(self.actor.policy):
            values_BT = before(now, [name], {})[name]
        return [row[where].tolist() for row, where in zip(values_BT, now.score_BT, strict=True)]

    def score(self, step: int, trajectories: list[Trajectory]) -> tuple[list[Trajectory], Scored]:
        """This process' share as a batch with its advantages, and the trajectories, of which those that routing leaves out are dropped."""
        trained = training(trajectories)
        groups = minibatches(trained, self.settings.minibatches)
        now = make_step(self.actor, self.recipe, self.settings, share_of(trained, groups), self.problems, self.history, self.held, self.seed, step)
        with gathered(self.actor.policy):
            filled = fill(self.recipe, now)
            routed = routes(self.recipe, filled)
            batch = with_advantages(self.recipe, masked(filled, routed))
        self._hold({name: float(batch[name]) for name, declared in TENSORS.items() if declared.held and name in batch})
        follow(self.actor, self.recipe, "scored", step)
        costs = costs_of(judged(of_policy(trajectories)), **self.recipe.settings("cost_B")) if self.multiplier else []
        return leave_out(trajectories, left_out(now.rollouts, filled, routed)), Scored(now, batch, groups, costs)

    def update(self, step: int, scored: Scored) -> dict[str, float]:
        """The optimiser steps of a batch, and what moves with the policy. Returns figures for the journal."""
        settings, now = self.settings.model_copy(update={"epochs": self.settings.passes(step)}), scored.now
        explained = explained_variance(scored.batch) if "return_BT" in scored.batch else None
        self.actor.warming = warms(self.recipe, step, explained, self.held)
        if self.actor.warming:
            settings, share = settings.model_copy(update={"epochs": self.recipe.setting("value_old_BT", "epochs")}), 1.0
        else:
            before = int(self.held.get(DONE, 0))
            share = schedule(settings.optimiser, step - before, self.steps - before)
        figures = optimise(
            self.actor, self.optimiser, self.recipe, settings, share, now.ids_BT, now.score_BT, scored.batch, scored.groups, self.checkpoints.folder
        )
        self._hold({name: figures[declared.held_of] for name, declared in TENSORS.items() if declared.held_of in figures})
        follow(self.actor, self.recipe, "updated", step)
        figures |= {} if explained is None else {"explained_variance": explained}
        if settings.kl_control and not self.actor.warming:
            figures["kl_scale"] = self.held.get("kl_scale", 1.0)
            self.held["kl_scale"] = figures["kl_scale"] * kl_factor(settings.kl_control, figures["kl_reference"])
        if self.multiplier and scored.costs and not self.actor.warming:
            value = self.held["multiplier"]
            self.held["multiplier"] = self.multiplier.after(value, scored.costs)
            capped = float(self.held["multiplier"] == self.multiplier.cap)
            figures |= {"multiplier": value, "cost": self.multiplier.cost, "multiplier_capped": capped}
        return figures | {"lr": share * settings.optimiser.lr}

    def reset(self, step: int, figures: Mapping[str, float]) -> dict[str, float]:
        """At the steps that params name the reference becomes the policy; where the stage's `reset` calls for it, the optimiser forgets its moments
        too. Returns what to log: whether it did."""
        why = self.resets.why(figures) if self.resets else ""
        if why:
            forget(self.optimiser)
            self.journal.say(f"reference and optimiser are reset after step {step}: {why}")
        if (why or step in self.settings.reset_reference) and "ref" in self.actor.frozen:
            self.actor.frozen["ref"].load_state_dict(plain_weights(self.actor.policy, everywhere=True))
        return {"reset": float(bool(why))} if self.resets else {}

    def keep(self, step: int, trajectories: list[Trajectory]) -> None:
        """Write what was answered, and what became of it, where later steps and other stages find it, if it is a stage that leaves rollouts."""
        if ranks.rank() == 0 and self.settings.leaves_rollouts:
            write_trajectories(self.rollout_folder / f"step-{step:06d}.parquet", trajectories)

    def checkpoint(self, step: int) -> None:
        """Save what a resumed run needs, if it is time or the last step. Last of a step: what resumes here finds all that the step left."""
        if self.kept:
            self.kept.add(step, self.actor.policy)
        if self.pace.due(step) or step == self.steps or self.over:
            self.checkpoints.save(step, self.actor.policy, self.optimiser, self.state)
            self.ledger.forget(self.checkpoints.oldest())

    def _hold(self, figures: Mapping[str, float]) -> None:
        """Keep what the first step showed, for later ones to compare with."""
        for name, value in figures.items():
            self.held.setdefault(name, value)


@contextmanager
def begun(
    policy: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    recipe: Recipe,
    settings: LearningStage,
    *,
    stage: str,
    seed: int,
    journal: Journal,
    checkpoints: Checkpoints,
    rollout_folder: Path,
    frozen: Mapping[str, Any],
    kept: Kept | None,
    stored: Sequence[Sequence[Trajectory]] | None,
    judges: Judges,
) -> Iterator[Run]:
    """The parts, made of the settings; at the end the engine is closed. See `train.train`."""
    wanted = settings.validation if isinstance(settings, SamplingStage) else None
    problems, held_out = hold_out(problems, wanted, (seed, stage))
    actor = make_actor(policy, tokenizer, recipe, settings, frozen)
    behaviour = copy.deepcopy(policy).requires_grad_(False) if stored is None and settings.answered.earlier else None
    if ranks.world() > 1:
        shard(policy)
    optimiser = make_optimiser(policy, settings.optimiser)
    held, key, by_id = Numbers(), (seed, stage), {problem.problem_id: problem for problem in problems}
    history, ledger = History(rollout_folder), Ledger(checkpoints.folder / "ledger")
    answers: AbstractContextManager[Schedule]
    if stored is None:
        assert isinstance(settings, SamplingStage)
        generator = engine_of(policy if behaviour is None else behaviour, tokenizer, settings.generation, checkpoints.folder / "serving")
        if "allowed_BTK" in recipe.needs:
            _restrict(generator, actor, recipe, settings)
        drawn = tasks_of(recipe, problems, settings.prompts_per_step, key, history)
        speaking = {name: TorchGenerator(actor.frozen[name], tokenizer, settings.generation) for name in actor.frozen if ROLES[name].speaks}
        source = functools.partial(Source, problems=by_id, draw=drawn, settings=settings, seed=key, ledger=ledger)
        answers = _sampling(recipe, generator, source, policy, behaviour, judges, settings.steps)
        steps = settings.steps
    else:
        answers = plan = Stored(stored, settings.prompts_per_step, key)
        speaking = dict[str, Generator]()
        steps = settings.steps or plan.one_pass
    resets = resets_of(settings, recipe, held)
    multiplier = Multiplier(**recipe.settings("multiplier")) if "multiplier" in recipe.needs else None
    moving = [name for name, role in roles_of(recipe).items() if role.source == "copy" or (name == "ref" and (settings.reset_reference or resets))]
    validation = _validation(wanted, held_out, checkpoints, held)
    pace = Pace(settings.checkpoint_every, settings.checkpoint_minutes, ranks.longest)
    with deterministic(policy.device), answers as plan:
        moved = {"multiplier": multiplier} if multiplier else {}
        state = {"held": held, **moved, **{role: actor.frozen[role] for role in moving}, **plan.state()}
        yield Run(
            recipe, settings, steps, key, actor, optimiser, by_id, plan, history, ledger, speaking, validation, resets, multiplier, checkpoints,
            journal, rollout_folder, held, state, pace, kept,
        )  # fmt: skip


def _restrict(generator: Generator, actor: Actor, recipe: Recipe, settings: SamplingStage) -> None:
    """Have the policy say only what its lagged copy allows.

    Raises:
        UserError: the engine does not know how, or would answer beside updates, when the lagged copy moves; or a setting is out of range.
    """
    if not isinstance(generator, TorchGenerator) or settings.schedule.kind != "synchronous":
        raise UserError(
            f"recipe '{recipe.name}' lets the policy say only what a lagged copy of it finds likely: that needs generation.engine torch and "
            f"schedule.kind synchronous, got {settings.generation.engine} and {settings.schedule.kind}"
        )
    actions = recipe.settings("allowed_BTK")
    if actions.pop("every") < 1:
        raise UserError(f"recipe '{recipe.name}': inputs.allowed_BTK.every must be at least 1 step")
    generator.restrict(actor.frozen["lagged"], **actions)


def _validation(settings: ValidationSettings | None, problems: Sequence[Problem], checkpoints: Checkpoints, held: Numbers) -> Validation | None:
    return Validation(settings, problems, Best(checkpoints, held, settings.patience)) if settings else None


@contextmanager
def _sampling(
    recipe: Recipe, generator: Generator, source: Callable[..., Source], policy: Any, behaviour: Any, judges: Judges, steps: int
) -> Iterator[Sampled]:
    """The schedule of a policy that answers. source: makes one of what answers problems that train and held-out ones."""
    with VerifierPool(judge=judges.verifier) as pool:
        answering = source(*answerers(recipe, generator, pool, judges.reward_models, steps))
        with schedule_of(answering, policy, behaviour) as plan:
            yield plan


def tasks_of(recipe: Recipe, problems: Sequence[Problem], count: int, seed: tuple[int, str], history: History) -> Callable[[int, int], list[Problem]]:
    """(step, number) -> the problems of the step's own draw 0, and of further ones."""
    samplers = [make() for make in recipe.lists["tasks"]]
    return lambda step, number: draw(problems, samplers, Draw(count, seed, step, number, history))


def answerers(
    recipe: Recipe, generator: Generator, pool: VerifierPool, reward_models: Mapping[str, RewardModel] | None = None, steps: float = math.inf
) -> tuple[Answering, Answering]:
    """What answers the problems that train, and what answers held-out ones: in the same environment, without help, so many times as asked.
    steps: that the run has; inf where nobody says."""
    environment = recipe.single["environment"]()
    rewards = Rewards(pool, recipe.lists["parts"], recipe.single["combine"], generator.settings.max_new_tokens, reward_models, steps)
    return (
        Answering(generator, rewards, recipe.single["play"](), environment, recipe.single["guidance"], recipe.single["explore"]),
        Answering(generator, rewards, Answer(), environment, none, samples),
    )


def kl_factor(control: KlControl, kl: float) -> float:
    """What the coefficients of KL terms are multiplied by after a step whose KL was that."""
    return 1.0 + control.rate * min(max(kl / control.target - 1.0, -0.2), 0.2)


def _forget_trajectories(folder: Path, step: int) -> None:
    """Remove those of steps that are about to be done again."""
    if step == 0:
        shutil.rmtree(folder, ignore_errors=True)
    forget_torn(folder)
    for path in folder.glob("step-*.parquet"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
