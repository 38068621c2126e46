"""Kind reward_model: the model that `init` names learns what responses are worth, from pairs, verdicts or scores, and is measured and calibrated."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

from pipelines import paths
from pipelines.config.reward_model import RewardModelStage
from pipelines.config.stage import BOUND
from pipelines.models import ranks
from pipelines.models.adapters import add_adapters, plain_weights
from pipelines.models.exactness import deterministic
from pipelines.models.loading import load_tokenizer
from pipelines.models.reward_model import HEAD, Form, Record, begin, form_of, save
from pipelines.reward_model.examples import IDLE_MARKED, IDLE_PAIR, marked_loss, pair_loss, split
from pipelines.sft.examples import hold_out
from pipelines.sft.objectives import Objective
from pipelines.sft.train import train
from pipelines.stages import Context
from pipelines.stages.judgements import Reader
from pipelines.stages.measured import measure
from pipelines.stages.trained import opened
from pipelines.store import read_json


def run(context: Context) -> dict[str, float]:
    """Write data/models/<NAME>: a reward model with its reward_model.json. Returns what was measured, and how it was trained.

    Raises:
        UserError: a row is of no use to the loss, or there is too little to train and to measure on.
    """
    settings: RewardModelStage = context.settings
    init = context.root / paths.model(settings.init)
    with ranks.joined(context.device) as device:
        tokenizer = load_tokenizer(init, chat=False)
        room = read_json(init / "config.json").get("max_position_embeddings", math.inf)
        read = Reader(context, tokenizer, form_of(settings, tokenizer, int(min(settings.train.max_tokens, room))))
        examples, form = read.examples(device), read.form
        training, measuring, fitting = split(examples, settings.held_out, settings.calibration, context.seed, context.stage)
        training, choosing = hold_out(training, settings.train.held_out, context.seed, context.stage)
        model = begin(init, form, device, context.seed, context.stage)
        if settings.lora:
            add_adapters(model, settings.lora, context.seed, context.stage, whole=[HEAD] if form.answers is None else ())
        inputs = {"init": paths.model(settings.init), "judges": map(paths.model, settings.reward_models_read)}
        checkpoints = opened(context, __name__, data=map(paths.rows, settings.rows_read), **inputs)
        summary, best = train(
            model, training, settings.train, seed=context.seed, purpose=context.stage, journal=context.journal, checkpoints=checkpoints,
            objective=_objective(form, settings), held_out=choosing,
        )  # fmt: skip
        last = plain_weights(model)
        if not context.first:
            return summary
        kept = settings.train.held_out
        model = begin(init, form, device)
        model.load_state_dict(best if best and kept and kept.keep == "best" else last)
        with deterministic(device):
            fitted, measured = measure(context, model.eval(), form, measuring, fitting)
    save(context.root / paths.model(context.stage), model, tokenizer, Record(form=form, calibration=fitted, measured=measured))
    if read.read_of_feedback:
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in read.read_of_feedback)
        (context.root / paths.model(context.stage) / paths.PRINCIPLES).write_text(rows)
    _tell(context, int(summary["steps"]), measured)
    context.accepted.extend(checkpoints.accepted())
    return summary | measured | {"too_long": float(read.too_long), "principles": float(len(read.read_of_feedback))}


def _objective(form: Form, settings: RewardModelStage) -> Objective[Any]:
    if settings.paired:
        return Objective(functools.partial(pair_loss, form=form, settings=settings), IDLE_PAIR, "pairs")
    return Objective(functools.partial(marked_loss, form=form), IDLE_MARKED, "responses")


def _tell(context: Context, step: int, measured: dict[str, float]) -> None:
    """What was measured, in a row of the journal behind those of training, and wherever the stage is looked at."""
    context.measured.update(measured)
    context.journal.record(step + 1, measured, {})
    share, low, high = (measured[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))
    told = f"of {measured['pairs']:.0f} held-out pairs {share:.3f} [{low:.3f}, {high:.3f}] are ordered rightly"
    context.journal.say(f"{told}; ECE {measured['ece']:.3f}, {measured['ece_before']:.3f} before temperature {measured['temperature']:.2f}")
    if low < BOUND:
        context.notice(f"{told}: the interval begins below {BOUND:g}, so a stage that names it refuses it unless its `bound` is lower")
