"""Kind sft: a model trained on worked solutions in the chat template, such as the cold start."""

from __future__ import annotations

from pipelines import paths, prompting
from pipelines.config.training import SftStage
from pipelines.errors import UserError
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.loading import load_policy, save_policy
from pipelines.sft.examples import chat_examples
from pipelines.sft.goal import Goal, hold_out
from pipelines.sft.train import train
from pipelines.stages import Context, rows
from pipelines.stages.identity import identity


def run(context: Context) -> dict[str, float]:
    """Write data/models/<NAME>.

    Raises:
        UserError: no row has a worked solution that is short enough.
    """
    settings: SftStage = context.settings
    model, tokenizer = load_policy(context.root / paths.model(settings.init), context.device)
    longest = min(settings.train.max_tokens, model.config.max_position_embeddings)
    problems, held_out = hold_out(rows.read(context, settings), settings.train.goal)
    examples, left_out = chat_examples(tokenizer, problems, longest, settings.prompt)
    if not examples:
        raise UserError(f"{context.stage}: no example to train on: its rows have {left_out} worked solutions, all longer than {longest} tokens")
    if left_out:
        context.journal.say(f"{left_out} examples longer than {longest} tokens are left out")
    checkpoints = Checkpoints(
        context.resume,
        identity(context, __name__, data=map(paths.rows, settings.rows_read), init=paths.model(settings.init)),
        context.on_change,
        stage=context.stage,
    )  # fmt: skip
    if note := checkpoints.prepare():
        context.journal.say(note)
    prompts = [prompting.prompt_ids(tokenizer, problem, settings.prompt) for problem in held_out]
    goal = Goal(settings.train.goal, held_out, tokenizer, prompts) if settings.train.goal else None
    summary = train(
        model, examples, settings.train, seed=context.seed, purpose=context.stage, journal=context.journal, checkpoints=checkpoints, goal=goal
    )  # fmt: skip
    if goal:
        for missed in goal.missing(summary):
            context.notice(f"the goal of its training was not reached in {goal.settings.rounds} rounds: {missed}")
    save_policy(context.root / paths.model(context.stage), model, tokenizer)
    context.accepted.extend(checkpoints.accepted())
    return summary | {"too_long": float(left_out)}
