"""What kinds sft and pretrain share: a model that params name, trained on examples, measured, kept along the way and saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import paths
from pipelines.config.training import SupervisedStage
from pipelines.errors import UserError
from pipelines.models import ranks
from pipelines.models.adapters import add_adapters
from pipelines.models.loading import load_policy, save_policy
from pipelines.models.tokenizer import add_control_tokens
from pipelines.models.value_head import add_value_head
from pipelines.records import Problem
from pipelines.sft.examples import hold_out
from pipelines.sft.goal import Goal
from pipelines.sft.objectives import NEXT_TOKENS, Objective
from pipelines.sft.train import train
from pipelines.stages import Context
from pipelines.stages.trained import along, hand_over, opened, save
from pipelines.store import discard


@dataclass(frozen=True)
class Read:
    """What a stage trains on. too_long: examples left out. to_solve: problems that its goal is measured on, and `prompts` their token ids.
    objective: what is learnt of the examples. valued: whether it asks a value head, which is no part of the model that is left."""

    examples: Sequence[Any]
    too_long: int
    to_solve: Sequence[Problem]
    prompts: Sequence[Sequence[int]]
    objective: Objective[Any] = NEXT_TOKENS
    valued: bool = False


def run(context: Context, module: str, reader: Callable[[Context, Any, int], Read], *, chat: bool) -> dict[str, float]:
    """Write data/models/<NAME>. module: the stage's own, by its dotted name. reader(context, tokenizer, longest example in tokens). chat: a chat
    template is needed.

    Raises:
        UserError: there is no example that is short enough.
    """
    with ranks.joined(context.device) as device:
        settings: SupervisedStage = context.settings
        init = context.root / paths.model(settings.init)
        if settings.control_tokens:
            init = _with_tokens(context, init, settings.control_tokens, chat)
        model, tokenizer = load_policy(init, device, chat=chat)
        if settings.lora:
            add_adapters(model, settings.lora, context.seed, context.stage)
        longest = min(settings.train.max_tokens, model.config.max_position_embeddings)
        read = reader(context, tokenizer, longest)
        if not read.examples:
            raise UserError(f"{context.stage}: no example to train on: there are {read.too_long}, all longer than {longest} tokens")
        if read.too_long:
            context.journal.say(f"{read.too_long} examples longer than {longest} tokens are left out")
        if read.valued:
            add_value_head(model)
        examples, held_out = hold_out(read.examples, settings.train.held_out, context.seed, context.stage)
        checkpoints = opened(context, module, data=map(paths.rows, settings.rows_read), init=paths.model(settings.init))
        goal = Goal(settings.train.goal, read.to_solve, tokenizer, read.prompts) if settings.train.goal else None
        kept = along(context, init)
        summary, best = train(
            model, examples, settings.train, seed=context.seed, purpose=context.stage, journal=context.journal, checkpoints=checkpoints,
            objective=read.objective, goal=goal, held_out=held_out, kept=kept,
        )  # fmt: skip
        if goal:
            for missed in goal.missing(summary):
                context.notice(f"the goal of its training was not reached in {goal.settings.rounds} rounds: {missed}")
        save(context, init, model, tokenizer, best, settings.train.held_out.keep if settings.train.held_out else "last", chat=chat)
        summary |= hand_over(context, kept)
        if settings.control_tokens and context.first:
            discard(init)
        context.accepted.extend(checkpoints.accepted())
        return summary | {"too_long": float(read.too_long)}


def _with_tokens(context: Context, init: Path, tokens: Sequence[str], chat: bool) -> Path:
    """A folder with the model that the training starts from: it knows these tokens and never samples them."""
    folder = context.work / "start"
    if context.first:
        model, tokenizer = load_policy(init, chat=chat)
        add_control_tokens(model, tokenizer, tokens)
        save_policy(folder, model, tokenizer)
    ranks.wait()
    return folder
