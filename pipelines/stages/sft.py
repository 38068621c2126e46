"""sft: the cold start, on the `sft` split in the chat template."""

from __future__ import annotations

from pipelines import paths, prompting
from pipelines.config.training import SftSettings
from pipelines.errors import UserError
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.loading import load_policy, save_policy
from pipelines.sft.examples import chat_examples
from pipelines.sft.goal import Goal, hold_out
from pipelines.sft.train import train
from pipelines.stages import Context
from pipelines.stages.identity import identity
from pipelines.store import read_problems


def run(context: Context) -> dict[str, float]:
    """Write data/models/sft."""
    settings: SftSettings = context.settings
    model, tokenizer = load_policy(context.root / paths.BASE, context.device)
    longest = min(settings.train.max_tokens, model.config.max_position_embeddings)
    problems, held_out = hold_out(read_problems(context.root / paths.SPLITS["sft"]), settings.train.goal)
    examples, left_out = chat_examples(tokenizer, problems, longest, settings.prompt)
    if not examples:
        raise UserError(f"sft: no example to train on: the `sft` split has {left_out} worked solutions, all longer than {longest} tokens")
    if left_out:
        context.journal.say(f"{left_out} examples longer than {longest} tokens are left out")
    checkpoints = Checkpoints(
        context.resume, identity(context, __name__, data=paths.SPLITS["sft"], base=paths.BASE), context.on_change, stage=context.stage
    )  # fmt: skip
    if note := checkpoints.prepare():
        context.journal.say(note)
    prompts = [prompting.prompt_ids(tokenizer, problem, settings.prompt) for problem in held_out]
    goal = Goal(settings.train.goal, held_out, tokenizer, prompts) if settings.train.goal else None
    summary = train(
        model, examples, settings.train, seed=context.seed, purpose="sft", journal=context.journal, checkpoints=checkpoints, goal=goal
    )  # fmt: skip
    if goal:
        for missed in goal.missing(summary):
            context.notice(f"the goal of its training was not reached in {goal.settings.rounds} rounds: {missed}")
    save_policy(context.root / paths.SFT, model, tokenizer)
    context.accepted.extend(checkpoints.accepted())
    return summary | {"too_long": float(left_out)}
