"""base: a folder, GGUF file, known model or hub id brought in, or a tiny model with its own tokenizer trained on the `base` split."""

from __future__ import annotations

from pathlib import Path

from pipelines import paths
from pipelines.config.training import BaseSettings
from pipelines.errors import UserError
from pipelines.lineage.external import at_commit
from pipelines.models.bringing import bring_in
from pipelines.models.known import KnownModel, meaning
from pipelines.models.loading import hub_commit, load_policy, save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.sft.examples import corpus_examples, document, document_prompts, hold_out
from pipelines.sft.goal import Goal, set_aside
from pipelines.sft.train import train
from pipelines.stages import Context
from pipelines.stages.trained import opened
from pipelines.store import read_problems, replacing_folder

TOKENIZER_DOCUMENTS = 5000
"""Documents that the tokenizer is trained on; more change no merge of a small vocabulary."""


def run(context: Context) -> dict[str, float]:
    """Write data/models/base."""
    settings: BaseSettings = context.settings
    target = context.root / paths.BASE
    if settings.model is not None:
        return {"parameters": float(_brought_in(context, settings.model, target)), "steps": 0.0}
    problems = [problem for problem in read_problems(context.root / paths.SPLITS["base"]) if problem.solution is not None]
    if not problems:
        raise UserError("base: the `base` split holds no worked solution to train on; raise curation.splits.base or name a base.model")
    problems, solving = set_aside(problems, settings.train.goal)
    tokenizer = train_tokenizer((document(problem) for problem in problems[:TOKENIZER_DOCUMENTS]), settings.architecture.vocab_size)
    model = tiny_model(settings.architecture, tokenizer, context.seed, context.device)
    longest = min(settings.train.max_tokens, settings.architecture.context)
    examples, left_out = corpus_examples(tokenizer, problems, longest, settings.loss)
    if not examples:
        raise UserError(f"base: all {left_out} documents are longer than {longest} tokens (base.train.max_tokens, base.architecture.context)")
    examples, unseen = hold_out(examples, settings.train.held_out, context.seed, context.stage)
    checkpoints = opened(context, __name__, data=paths.SPLITS["base"])
    goal = Goal(settings.train.goal, solving, tokenizer, document_prompts(tokenizer, solving)) if settings.train.goal else None
    summary, best = train(
        model, examples, settings.train, seed=context.seed, purpose="base", journal=context.journal, checkpoints=checkpoints, goal=goal,
        held_out=unseen,
    )  # fmt: skip
    if goal:
        for missed in goal.missing(summary):
            context.notice(f"the goal of its training was not reached in {goal.settings.rounds} rounds: {missed}")
    if best and settings.train.held_out and settings.train.held_out.keep == "best":
        model.load_state_dict(best)
    save_policy(target, model, tokenizer)
    context.accepted.extend(checkpoints.accepted())
    return summary | {"parameters": float(model.num_parameters()), "too_long": float(left_out)}


def _brought_in(context: Context, model: str, target: Path) -> int:
    """Write the model that params name into `target`, and tell the manifest where it came from. Returns its number of parameters."""
    named = meaning(context.root, model)
    if isinstance(named, KnownModel) or (isinstance(named, Path) and named.is_file()):
        with replacing_folder(target) as folder:
            brought = bring_in(named, folder, context.settings.accept_licence, show=context.journal.show, say=context.journal.say)
        context.origins["model"] = brought.origin
        return brought.parameters
    revision = context.settings.revision
    if isinstance(named, str) and (commit := hub_commit(named, revision)):
        context.origins["model"], revision = at_commit(named, commit), commit
    policy, tokenizer = load_policy(named, revision=revision, dtype="auto")
    save_policy(target, policy, tokenizer)
    return policy.num_parameters()
