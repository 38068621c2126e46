"""base: a folder or hub id brought in as it is, or a tiny model with its own tokenizer trained on the `base` split."""

from __future__ import annotations

from pipelines import paths
from pipelines.config.training import BaseSettings
from pipelines.errors import UserError
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.loading import hub_commit, load_policy, save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.sft.examples import corpus_examples, document, document_prompts
from pipelines.sft.goal import Goal, hold_out
from pipelines.sft.train import train
from pipelines.stages import Context
from pipelines.stages.identity import identity
from pipelines.store import read_problems

TOKENIZER_DOCUMENTS = 5000
"""Documents that the tokenizer is trained on; more change no merge of a small vocabulary."""


def run(context: Context) -> dict[str, float]:
    """Write data/models/base."""
    settings: BaseSettings = context.settings
    target = context.root / paths.BASE
    if settings.model is not None:
        local = context.root / settings.model
        commit = None if local.is_dir() else hub_commit(settings.model, settings.revision)
        if commit:
            context.commits["model"] = commit
        model, tokenizer = load_policy(local if local.is_dir() else settings.model, revision=commit or settings.revision, dtype="auto")
        save_policy(target, model, tokenizer)
        return {"parameters": float(model.num_parameters()), "steps": 0.0}
    problems = [problem for problem in read_problems(context.root / paths.SPLITS["base"]) if problem.solution is not None]
    if not problems:
        raise UserError("base: the `base` split holds no worked solution to train on; raise curation.splits.base or name a base.model")
    problems, held_out = hold_out(problems, settings.train.goal)
    tokenizer = train_tokenizer((document(problem) for problem in problems[:TOKENIZER_DOCUMENTS]), settings.architecture.vocab_size)
    model = tiny_model(settings.architecture, tokenizer, context.seed, context.device)
    longest = min(settings.train.max_tokens, settings.architecture.context)
    examples, left_out = corpus_examples(tokenizer, problems, longest, settings.loss)
    if not examples:
        raise UserError(f"base: all {left_out} documents are longer than {longest} tokens (base.train.max_tokens, base.architecture.context)")
    checkpoints = Checkpoints(
        context.resume, identity(context, __name__, data=paths.SPLITS["base"]), context.on_change, stage=context.stage
    )  # fmt: skip
    if note := checkpoints.prepare():
        context.journal.say(note)
    goal = Goal(settings.train.goal, held_out, tokenizer, document_prompts(tokenizer, held_out)) if settings.train.goal else None
    summary = train(
        model, examples, settings.train, seed=context.seed, purpose="base", journal=context.journal, checkpoints=checkpoints, goal=goal
    )  # fmt: skip
    if goal:
        for missed in goal.missing(summary):
            context.notice(f"the goal of its training was not reached in {goal.settings.rounds} rounds: {missed}")
    save_policy(target, model, tokenizer)
    context.accepted.extend(checkpoints.accepted())
    return summary | {"parameters": float(model.num_parameters()), "too_long": float(left_out)}
