"""Kind sft: a model trained on worked solutions in the chat template, such as the cold start, on conversations, refusals, or answers of rollouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines import paths, prompting
from pipelines.config.stage import FILES, ROLLOUTS, Rows
from pipelines.config.training import SftStage
from pipelines.errors import UserError
from pipelines.models.loading import same_vocabulary
from pipelines.sft import conversations, refusals
from pipelines.sft.examples import Example, accepted_examples, chat_examples, weighed
from pipelines.sft.goal import set_aside
from pipelines.sft.objectives import NEXT_TOKENS, confident
from pipelines.stages import Context, rows, supervised
from pipelines.stages.supervised import Read
from pipelines.store import read_trajectories, to_problems


def run(context: Context) -> dict[str, float]:
    """Write data/models/<NAME>. See `supervised.run`."""
    return supervised.run(context, __name__, _read, chat=True)


def _read(context: Context, tokenizer: Any, longest: int) -> Read:
    """Worked solutions, then conversations and refusals, then answers of rollouts, each by their references; written down as seen."""
    settings: SftStage = context.settings
    talks = {name: conversations.read(context.root / paths.rows(name)) for name in _files(context, conversations.holds, "conversations")}
    refused = {name: _refusals(context, name, tokenizer) for name in _files(context, refusals.holds, "pairs")}
    sampled = {name: _sampled(context, name, tokenizer, longest) for name in settings.rows_read if name.endswith(ROLLOUTS)}
    tables = rows.select(context, settings, {*talks, *refused, *sampled})
    rows.see(
        context,
        {name: rows.ids(table) for name, table in tables.items()}
        | {name: [each.of for each in found] for name, found in {**talks, **refused}.items()}
        | {name: list(by_problem) for name, (by_problem, _) in sampled.items()},
    )
    times = _times(tables, settings, context.stage)
    solutions, to_solve = set_aside([problem for table in tables.values() for problem in to_problems(table)], settings.train.goal)
    worked, too_long = chat_examples(tokenizer, solutions, longest, settings.prompt, settings.answer_weight)
    weights = {problem: settings.weights.get(name, 1.0) for name, table in tables.items() for problem in rows.ids(table)}
    examples = [weighed(example, weights[example.of]) for example in worked for _ in range(times.get(example.of, 1))]
    renderer = conversations.Renderer(tokenizer, settings.roles)
    written = {name: [example for talk in found for example in renderer.examples(talk)] for name, found in talks.items()}
    if settings.refusals:
        for name, pairs in refused.items():
            written[name] = refusals.examples(tokenizer, pairs, settings.refusals, settings.prompt, (context.seed, context.stage, name))
    for name, rendered in written.items():
        fitting = [example for example in rendered if len(example.ids) <= longest]
        too_long += len(rendered) - len(fitting)
        examples += [weighed(example, settings.weights.get(name, 1.0)) for example in fitting]
    for name, (by_problem, longer) in sampled.items():
        too_long += longer
        examples += [weighed(example, settings.weights.get(name, 1.0)) for accepted in by_problem.values() for example in accepted]
    prompts = [prompting.prompt_ids(tokenizer, problem, settings.prompt) for problem in to_solve]
    return Read(examples, too_long, to_solve, prompts, confident(settings.confidence) if settings.confidence else NEXT_TOKENS)


def _times(tables: dict[str, Any], settings: SftStage, stage: str) -> dict[str, int]:
    """Problem id -> how often its worked solution stands in an epoch, where that is more than once."""
    found: dict[str, int] = {}
    for place, duplicate in enumerate(settings.duplicate):
        for table in tables.values():
            for problem in rows.ids(rows.meeting(table, duplicate.where, f"{stage}: duplicate.{place}.where")):
                found[problem] = max(found.get(problem, 1), duplicate.times)
    return found


def _files(context: Context, holds: Callable[[Path], bool], what: str) -> list[str]:
    """References to files that hold this.

    Raises:
        UserError: such a reference has conditions, which are on problems.
    """
    settings: SftStage = context.settings
    found = [name for name in settings.rows_read if name.endswith(FILES) and holds(context.root / paths.rows(name))]
    for name in found:
        if settings.data[name] != Rows():
            raise UserError(f"{context.stage}: data: {name} holds {what}, which take neither where nor share; `weights` weighs them")
    return found


def _refusals(context: Context, reference: str, tokenizer: Any) -> list[refusals.Refusal]:
    """
    Raises:
        UserError: nobody said that the pairs are refusals, or a row cannot be read.
    """
    settings: SftStage = context.settings
    if settings.refusals is None:
        told = "say `refusals: {}` where they are such, or train on them by kind preference"
        raise UserError(f"{context.stage}: data: {reference} holds pairs: {told}")
    return refusals.read(context.root / paths.rows(reference), tokenizer)


def _sampled(context: Context, reference: str, tokenizer: Any, longest: int) -> tuple[dict[str, list[Example]], int]:
    """Problem id -> examples of its accepted answers in rollouts; and how many were too long.

    Raises:
        UserError: the ids of the rollouts mean other text to the model that is trained.
    """
    settings: SftStage = context.settings
    if not same_vocabulary(context.root / paths.rows(reference), tokenizer):
        raise UserError(f"{context.stage}: {reference} was sampled with another tokenizer than that of {settings.init}")
    answered = (t for path in sorted((context.root / paths.rows(reference)).glob("*.parquet")) for t in read_trajectories(path))
    return accepted_examples(answered, settings.accept, longest, (context.seed, context.stage, reference))
