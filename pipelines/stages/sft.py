"""Kind sft: a model trained on worked solutions in the chat template, such as the cold start, or on right answers of a stage of RL."""

from __future__ import annotations

from typing import Any

from pipelines import paths, prompting
from pipelines.config.stage import ROLLOUTS
from pipelines.config.training import SftStage
from pipelines.errors import UserError
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.loading import load_policy, load_tokenizer, save_policy
from pipelines.sft.examples import Example, accepted_examples, chat_examples
from pipelines.sft.goal import Goal, hold_out
from pipelines.sft.train import train
from pipelines.stages import Context, rows
from pipelines.stages.identity import identity
from pipelines.store import read_trajectories


def run(context: Context) -> dict[str, float]:
    """Write data/models/<NAME>.

    Raises:
        UserError: no row has a worked solution that is short enough.
    """
    settings: SftStage = context.settings
    model, tokenizer = load_policy(context.root / paths.model(settings.init), context.device)
    longest = min(settings.train.max_tokens, model.config.max_position_embeddings)
    sampled, left_out = _sampled(context, tokenizer, longest)
    seen = {reference: list(by_problem) for reference, by_problem in sampled.items()}
    problems, held_out = hold_out(rows.read(context, settings, seen), settings.train.goal)
    examples, too_long = chat_examples(tokenizer, problems, longest, settings.prompt)
    examples += [example for by_problem in sampled.values() for accepted in by_problem.values() for example in accepted]
    left_out += too_long
    if not examples:
        raise UserError(f"{context.stage}: no example to train on: {left_out} worked solutions or right answers, all longer than {longest} tokens")
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


def _sampled(context: Context, tokenizer: Any, longest: int) -> tuple[dict[str, dict[str, list[Example]]], int]:
    """Reference to rollouts -> problem id -> examples of its right answers; and how many were too long.

    Raises:
        UserError: the ids of the rollouts mean other text to the model that is trained.
    """
    settings: SftStage = context.settings
    found: dict[str, dict[str, list[Example]]] = {}
    left_out = 0
    for reference in settings.rows_read:
        if reference.endswith(ROLLOUTS):
            maker = reference.removesuffix(ROLLOUTS)
            if load_tokenizer(context.root / paths.model(maker)).get_vocab() != tokenizer.get_vocab():
                raise UserError(f"{context.stage}: {reference} was sampled with another tokenizer than that of {settings.init}")
            answered = (t for path in sorted((context.root / paths.rows(reference)).glob("*.parquet")) for t in read_trajectories(path))
            key = (context.seed, context.stage, reference)
            found[reference], too_long = accepted_examples(answered, settings.accept, longest, key)
            left_out += too_long
    return found, left_out
