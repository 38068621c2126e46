"""THE LOOP of supervised training: batches -> loss -> update -> journal -> checkpoint, for the base model and for SFT.

The loss is the mean negative log-likelihood per scored token of the batch, in nats.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pipelines.config.training import LanguageModellingSettings
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.exactness import deterministic
from pipelines.models.optimisation import keep_batch, make_optimiser, schedule, update
from pipelines.models.scoring import pad, token_logp
from pipelines.progress import Journal
from pipelines.sft.examples import Example, batches


def train(
    model: Any,
    examples: Sequence[Example],
    settings: LanguageModellingSettings,
    *,
    seed: int,
    purpose: str,
    journal: Journal,
    checkpoints: Checkpoints,
) -> dict[str, float]:
    """Train `model` in place, from its newest checkpoint if there is one. Returns the summary of the run."""
    per_epoch = -(-len(examples) // settings.batch_size)
    total = max(1, round(per_epoch * settings.epochs))
    optimiser = make_optimiser(model, settings.optimiser)
    step = checkpoints.restore(model, optimiser)
    journal.cut(step)
    if step:
        journal.say(f"resuming after step {step} of {total}")
    model.train()
    with deterministic(model.device):
        for batch in _from(examples, settings.batch_size, seed, purpose, per_epoch, step, total):
            began = time.monotonic()
            step += 1
            share = schedule(settings.optimiser, step, total)
            loss, scored = gradients(model, batch)
            rows = {"ids": [example.ids for example in batch], "start": [example.start for example in batch]}
            keep = functools.partial(keep_batch, checkpoints.folder / f"not-finite-{step:08d}.pt", rows)
            norm = update(model, optimiser, share, settings.optimiser.max_grad_norm, loss, keep)
            speed = sum(len(e.ids) for e in batch) / (time.monotonic() - began)
            journal.log(
                step, total, f"loss {loss:.3f}  {speed:,.0f} tokens/s",
                clock={"tokens_per_second": speed}, loss=loss, lr=share * settings.optimiser.lr, grad_norm=norm, scored_tokens=float(scored),
            )  # fmt: skip
            if step % settings.checkpoint_every == 0 or step == total:
                checkpoints.save(step, model, optimiser)
    model.eval()
    tail = [row["loss"] for row in journal.rows()[-20:]]
    return {"steps": float(total), "examples": float(len(examples)), "final_loss": sum(tail) / len(tail)}


def gradients(model: Any, batch: Sequence[Example]) -> tuple[float, int]:
    """Add the gradient of the batch's mean loss; returns that loss and the number of scored tokens."""
    ids = pad([example.ids for example in batch], device=model.device)
    score = torch.zeros_like(ids, dtype=torch.bool)
    for row, example in enumerate(batch):
        score[row, example.start : len(example.ids)] = True
    logp = token_logp(model, ids, score)
    count = int(score.sum())
    loss = -logp.sum() / count
    loss.backward()
    return float(loss.detach()), count


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
