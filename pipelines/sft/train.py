"""THE LOOP of supervised training: batches -> loss -> update -> journal -> checkpoint, for the base model and for SFT.

The loss is the mean negative log-likelihood per scored token of the batch, in nats. With a goal, training goes on by rounds until held-out
problems show that it is reached, or the rounds are used up.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pipelines.config.training import LanguageModellingSettings
from pipelines.models.checkpoints import Checkpoints, Numbers, Pace
from pipelines.models.exactness import deterministic
from pipelines.models.optimisation import keep_batch, make_optimiser, schedule, update
from pipelines.models.precision import autocast
from pipelines.models.scoring import pad, token_logp
from pipelines.progress import Journal
from pipelines.sft.examples import Example, batches
from pipelines.sft.goal import Goal


def train(
    model: Any,
    examples: Sequence[Example],
    settings: LanguageModellingSettings,
    *,
    seed: int,
    purpose: str,
    journal: Journal,
    checkpoints: Checkpoints,
    goal: Goal | None = None,
) -> dict[str, float]:
    """Train `model` in place, from its newest checkpoint if there is one. Returns the summary of the run, with what the goal last measured."""
    per_epoch = -(-len(examples) // settings.batch_size)
    per_round = max(1, round(per_epoch * settings.epochs))
    most = per_round * (goal.settings.rounds if goal else 1)
    optimiser = make_optimiser(model, settings.optimiser)
    measured = Numbers()
    step = checkpoints.restore(model, optimiser, {"measured": measured})
    journal.cut(step)
    if step:
        journal.say(f"resuming after step {step} of {_end_of_round(step, per_round)}")
    pace = Pace(settings.checkpoint_every, settings.checkpoint_minutes)
    model.train()
    with deterministic(model.device):
        over = step > 0 and step % per_round == 0 and (goal is None or not goal.missing(measured))
        for batch in () if over else _from(examples, settings.batch_size, seed, purpose, per_epoch, step, most):
            began = time.monotonic()
            step += 1
            share = schedule(settings.optimiser, (step - 1) % per_round + 1, per_round)
            loss, scored = gradients(model, batch, settings)
            rows = {part: [getattr(example, part) for example in batch] for part in ("ids", "start", "without")}
            keep = functools.partial(keep_batch, checkpoints.folder / f"not-finite-{step:08d}.pt", rows)
            norm = update(model, optimiser, share, settings.optimiser.max_grad_norm, loss, keep)
            speed = sum(len(e.ids) for e in batch) / (time.monotonic() - began)
            ended = step % per_round == 0
            if goal and ended:
                measured.update(goal.measure(model))
            journal.log(
                step, _end_of_round(step, per_round), f"loss {loss:.3f}  {speed:,.0f} tokens/s",
                clock={"tokens_per_second": speed}, loss=loss, lr=share * settings.optimiser.lr, grad_norm=norm, scored_tokens=float(scored),
                **(measured if ended else {}),
            )  # fmt: skip
            over = step == most or (ended and goal is not None and not goal.missing(measured))
            if pace.due(step) or over:
                checkpoints.save(step, model, optimiser, {"measured": measured})
            if over:
                break
    model.eval()
    tail = [row["loss"] for row in journal.rows()[-20:]]
    return {"steps": float(step), "examples": float(len(examples)), "final_loss": sum(tail) / len(tail), **measured}


def _end_of_round(step: int, per_round: int) -> int:
    """The last step of the round that `step` belongs to."""
    return -(-step // per_round) * per_round


def gradients(model: Any, batch: Sequence[Example], settings: LanguageModellingSettings) -> tuple[float, int]:
    """Add the gradient of the batch's mean loss; returns that loss and the number of scored tokens."""
    count = sum(example.scored for example in batch)
    total = 0.0
    for first in range(0, len(batch), settings.micro_batch):
        micro = batch[first : first + settings.micro_batch]
        ids = pad([example.ids for example in micro], device=model.device)
        score = torch.zeros_like(ids, dtype=torch.bool)
        for row, example in enumerate(micro):
            score[row, example.start : len(example.ids)] = True
            for begin, end in example.without:
                score[row, begin:end] = False
        with autocast(model.device, settings.precision):
            loss = -token_logp(model, ids, score).sum() / count
        loss.backward()
        total += float(loss.detach())
    return total, count


def _from(examples: Sequence[Example], batch_size: int, seed: int, purpose: str, per_epoch: int, step: int, total: int) -> Iterator[list[Example]]:
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
