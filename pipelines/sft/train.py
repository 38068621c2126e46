"""THE LOOP of supervised training: batches -> loss -> update -> journal -> checkpoint, for the base model, for SFT and for reward models.

What is learnt is an `Objective`: the loss of a batch is the mean of its examples' by their weights. Those of text are in objectives.py, those of
reward models in pipelines/reward_model. With a goal, training goes on by rounds until held-out problems show that it is reached, or the rounds are
used up. Several processes run the same loop, each on its share of every batch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from pipelines.config.training import TrainingSettings
from pipelines.models import ranks
from pipelines.models.checkpoints import Best, Checkpoints, Numbers, Pace
from pipelines.models.exactness import deterministic
from pipelines.models.kept import Kept
from pipelines.models.optimisation import keep_batch, make_optimiser, schedule, update
from pipelines.models.precision import autocast
from pipelines.models.sharding import gathered, shard, spread
from pipelines.progress import Journal
from pipelines.sft.examples import E, batches
from pipelines.sft.goal import Goal
from pipelines.sft.objectives import NEXT_TOKENS, Objective


def train(
    model: Any,
    examples: Sequence[E],
    settings: TrainingSettings,
    *,
    seed: int,
    purpose: str,
    journal: Journal,
    checkpoints: Checkpoints,
    objective: Objective[Any] = NEXT_TOKENS,
    goal: Goal | None = None,
    held_out: Sequence[E] = (),
    kept: Kept | None = None,
) -> tuple[dict[str, float], dict[str, Any] | None]:
    """Train `model` in place, from its newest checkpoint if there is one. Returns the summary of the run, with what the goal last measured, and the
    weights that were the best on `held_out`, where that is measured."""
    per_epoch = -(-len(examples) // settings.batch_size)
    measures = _Measures(settings, checkpoints, max(1, round(per_epoch * settings.epochs)), goal, objective, held_out)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if ranks.world() > 1:
        shard(model)
    optimiser = make_optimiser(model, settings.optimiser)
    step = checkpoints.restore(model, optimiser, measures.state)
    journal.cut(step)
    if kept:
        kept.cut(step)
    if step:
        journal.say(f"resuming after step {step} of {measures.end_of_round(step)}")
    pace = Pace(settings.checkpoint_every, settings.checkpoint_minutes, ranks.longest)
    model.train()
    with deterministic(model.device):
        remaining = _from(examples, settings.batch_size, seed, purpose, per_epoch, step, measures.most)
        while not measures.over(step):
            began = time.monotonic()
            step, batch = step + 1, next(remaining)
            share = schedule(settings.optimiser, (step - 1) % measures.per_round + 1, measures.per_round)
            loss = gradients(model, batch, settings, objective.after(min(1.0, (step - 1) / measures.per_round)))
            keep = functools.partial(_keep, checkpoints.folder / f"not-finite-{step:08d}.pt", batch)
            norm = update(model, optimiser, share, settings.optimiser.max_grad_norm, loss, keep)
            speed = sum(example.tokens for example in batch) / (time.monotonic() - began)
            figures = measures.take(step, model)
            journal.log(
                step, measures.end_of_round(step), f"loss {loss:.3f}  {speed:,.0f} tokens/s",
                clock={"tokens_per_second": speed}, loss=loss, lr=share * settings.optimiser.lr, grad_norm=norm,
                **{objective.scored: float(sum(example.scored for example in batch))}, **figures,
            )  # fmt: skip
            if kept:
                kept.add(step, model)
            if pace.due(step) or measures.over(step):
                checkpoints.save(step, model, optimiser, measures.state)
    model.eval()
    if measures.stopped(step):
        journal.say(f"stopped after step {step}: no better loss on what is held out")
    tail = [row["loss"] for row in journal.rows()[-20:]]
    summary = {"steps": float(step), "examples": float(len(examples)), "final_loss": sum(tail) / len(tail), **measures.summary()}
    return summary, measures.best.weights() if measures.best else None


class _Measures:
    """What is measured beside the loss of training, and what ends it: the loss on held-out examples, and at the end of a round the goal. per_round:
    steps of a round. most: of all rounds. state: numbers that a checkpoint keeps."""

    def __init__(
        self, settings: TrainingSettings, checkpoints: Checkpoints, per_round: int, goal: Goal | None, objective: Objective[E], held_out: Sequence[E]
    ) -> None:
        self._settings, self._goal, self._objective, self._held_out = settings, goal, objective, held_out
        self._measured, held = Numbers(), Numbers()
        self.best = Best(checkpoints, held, settings.held_out.patience) if settings.held_out else None
        self.per_round, self.most = per_round, per_round * (goal.settings.rounds if goal else 1)
        self.state = {"measured": self._measured, "held": held}

    def take(self, step: int, model: Any) -> dict[str, float]:
        """What to log after `step`; new best weights are kept. Of several processes all must call."""
        figures: dict[str, float] = {}
        ended, held = step % self.per_round == 0, self._settings.held_out
        if self.best and held and (ended or step % held.every == 0):
            figures["held_out_loss"] = mean_loss(model, self._held_out, self._settings, self._objective)
            self.best.offer(step, -figures["held_out_loss"], model)
        if self._goal and ended:
            with gathered(model):
                self._measured.update(self._goal.measure(model))
            figures |= self._measured
        return figures

    def over(self, step: int) -> bool:
        """Whether training ends after `step`."""
        reached = step > 0 and step % self.per_round == 0 and (self._goal is None or not self._goal.missing(self._measured))
        return step == self.most or reached or (self.best is not None and self.best.over)

    def stopped(self, step: int) -> bool:
        """Whether it ended early for want of a better loss."""
        return step < self.most and self.best is not None and self.best.over

    def end_of_round(self, step: int) -> int:
        """The last step of the round that `step` belongs to."""
        return -(-step // self.per_round) * self.per_round

    def summary(self) -> dict[str, float]:
        """What the goal last measured, and the best loss with its step."""
        best = {"best_step": float(self.best.step), "held_out_loss": -self.best.figure} if self.best else {}
        return {**self._measured, **best}


def _keep(path: Path, batch: Sequence[Any]) -> Path:
    return keep_batch(path, {part.name: [asdict(example)[part.name] for example in batch] for part in fields(batch[0])})


def gradients(model: Any, batch: Sequence[E], settings: TrainingSettings, objective: Objective[Any] = NEXT_TOKENS) -> float:
    """Add the gradient of the batch's mean loss; returns that loss, of all processes."""
    loss = _mean(model, batch, settings, objective)
    spread(model)
    return loss


def mean_loss(model: Any, examples: Sequence[E], settings: TrainingSettings, objective: Objective[Any] = NEXT_TOKENS) -> float:
    """The mean loss of all examples under the model as it stands, of all processes."""
    training = model.training
    model.eval()
    with torch.no_grad(), gathered(model):
        loss = _mean(model, examples, settings, objective)
    model.train(training)
    return loss


def _mean(model: Any, examples: Sequence[E], settings: TrainingSettings, objective: Objective[E]) -> float:
    """The loss, with its gradient where one is wanted; this process runs its share of the examples."""
    weight = sum(example.weight for example in examples)
    micros = micro_batches(examples[ranks.rank() :: ranks.world()], settings)
    total = 0.0
    for micro in [*micros, *[[objective.idle]] * (ranks.most(len(micros)) - len(micros))]:
        with autocast(model.device, settings.precision):
            loss = objective.loss(model, micro) / weight
        if torch.is_grad_enabled():
            loss.backward()
        total += float(loss.detach())
    return ranks.total({"loss": total})["loss"]


def micro_batches(examples: Sequence[E], settings: TrainingSettings) -> list[list[E]]:
    """Examples in order, cut where another would be one too many, or its tokens too many."""
    found: list[list[E]] = []
    room = 0.0
    for example in examples:
        if not found or len(found[-1]) == settings.micro_batch or example.tokens > room:
            found.append([])
            room = settings.micro_tokens or float("inf")
        found[-1].append(example)
        room -= example.tokens
    return found


def _from(examples: Sequence[E], batch_size: int, seed: int, purpose: str, per_epoch: int, step: int, total: int) -> Iterator[list[E]]:
    """The batches of steps step + 1 .. total."""
    while step < total:
        epoch, inside = divmod(step, per_epoch)
        for position, batch in enumerate(batches(examples, batch_size, seed, purpose, epoch)):
            if position < inside:
                continue
            yield batch
            step += 1
            if step == total:
                return
