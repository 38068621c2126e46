"""Kind sft: a model trained on worked solutions in the chat template, such as the cold start, on conversations, or on right answers of rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines import paths, prompting
from pipelines.config.stage import FILES, ROLLOUTS, Rows
from pipelines.config.training import SftStage
from pipelines.errors import UserError
from pipelines.models import ranks
from pipelines.models.adapters import add_adapters
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.loading import load_policy, load_tokenizer
from pipelines.records import Problem
from pipelines.sft import conversations
from pipelines.sft.examples import Example, accepted_examples, chat_examples, hold_out, weighed
from pipelines.sft.goal import Goal, set_aside
from pipelines.sft.train import train
from pipelines.stages import Context, rows
from pipelines.stages.identity import identity
from pipelines.stages.trained import save
from pipelines.store import read_trajectories, to_problems


def run(context: Context) -> dict[str, float]:
    """Write data/models/<NAME>.

    Raises:
        UserError: no row has a worked solution that is short enough.
    """
    with ranks.joined(context.device) as device:
        return _run(context, device)


def _run(context: Context, device: str) -> dict[str, float]:
    settings: SftStage = context.settings
    init = context.root / paths.model(settings.init)
    model, tokenizer = load_policy(init, device)
    if settings.lora:
        add_adapters(model, settings.lora, context.seed, context.stage)
    longest = min(settings.train.max_tokens, model.config.max_position_embeddings)
    read = _read(context, tokenizer, longest)
    if not read.examples:
        raise UserError(f"{context.stage}: no example to train on: {read.too_long} answers and conversations, all longer than {longest} tokens")
    if read.too_long:
        context.journal.say(f"{read.too_long} examples longer than {longest} tokens are left out")
    examples, held_out = hold_out(read.examples, settings.train.held_out, context.seed, context.stage)
    checkpoints = Checkpoints(
        context.resume,
        identity(context, __name__, data=map(paths.rows, settings.rows_read), init=paths.model(settings.init)),
        context.on_change,
        writes=context.first,
        stage=context.stage,
    )
    if context.first and (note := checkpoints.prepare()):
        context.journal.say(note)
    ranks.wait()
    prompts = [prompting.prompt_ids(tokenizer, problem, settings.prompt) for problem in read.to_solve]
    goal = Goal(settings.train.goal, read.to_solve, tokenizer, prompts) if settings.train.goal else None
    summary, best = train(
        model, examples, settings.train, seed=context.seed, purpose=context.stage, journal=context.journal, checkpoints=checkpoints, goal=goal,
        held_out=held_out,
    )  # fmt: skip
    if goal:
        for missed in goal.missing(summary):
            context.notice(f"the goal of its training was not reached in {goal.settings.rounds} rounds: {missed}")
    save(context, init, model, tokenizer, best, settings.train.held_out.keep if settings.train.held_out else "last")
    context.accepted.extend(checkpoints.accepted())
    return summary | {"too_long": float(read.too_long)}


@dataclass(frozen=True)
class _Read:
    """What a stage trains on. too_long: examples left out. to_solve: problems that its goal is measured on."""

    examples: list[Example]
    too_long: int
    to_solve: list[Problem]


def _read(context: Context, tokenizer: Any, longest: int) -> _Read:
    """Worked solutions, then conversations, then right answers of rollouts, each by their references; written down as seen."""
    settings: SftStage = context.settings
    talks = {name: found for name in settings.rows_read if (found := _conversations(context, name)) is not None}
    sampled = {name: _sampled(context, name, tokenizer, longest) for name in settings.rows_read if name.endswith(ROLLOUTS)}
    tables = rows.select(context, settings, {*talks, *sampled})
    rows.see(
        context,
        {name: rows.ids(table) for name, table in tables.items()}
        | {name: [talk.of for talk in found] for name, found in talks.items()}
        | {name: list(by_problem) for name, (by_problem, _) in sampled.items()},
    )
    times = _times(tables, settings, context.stage)
    solutions, to_solve = set_aside([problem for table in tables.values() for problem in to_problems(table)], settings.train.goal)
    worked, too_long = chat_examples(tokenizer, solutions, longest, settings.prompt, settings.answer_weight)
    weights = {problem: settings.weights.get(name, 1.0) for name, table in tables.items() for problem in rows.ids(table)}
    examples = [weighed(example, weights[example.of]) for example in worked for _ in range(times.get(example.of, 1))]
    renderer = conversations.Renderer(tokenizer, settings.roles)
    for name, found in talks.items():
        rendered = [example for talk in found for example in renderer.examples(talk)]
        fitting = [example for example in rendered if len(example.ids) <= longest]
        too_long += len(rendered) - len(fitting)
        examples += [weighed(example, settings.weights.get(name, 1.0)) for example in fitting]
    for name, (by_problem, longer) in sampled.items():
        too_long += longer
        examples += [weighed(example, settings.weights.get(name, 1.0)) for accepted in by_problem.values() for example in accepted]
    return _Read(examples, too_long, to_solve)


def _times(tables: dict[str, Any], settings: SftStage, stage: str) -> dict[str, int]:
    """Problem id -> how often its worked solution stands in an epoch, where that is more than once."""
    found: dict[str, int] = {}
    for place, duplicate in enumerate(settings.duplicate):
        for table in tables.values():
            for problem in rows.ids(rows.meeting(table, duplicate.where, f"{stage}: duplicate.{place}.where")):
                found[problem] = max(found.get(problem, 1), duplicate.times)
    return found


def _conversations(context: Context, reference: str) -> Sequence[conversations.Conversation] | None:
    """The conversations of a file that holds some.

    Raises:
        UserError: a row is none, or the reference has conditions, which are on problems.
    """
    path = context.root / paths.rows(reference)
    if not reference.endswith(FILES) or not conversations.holds(path):
        return None
    if context.settings.data[reference] != Rows():
        raise UserError(f"{context.stage}: data: {reference} holds conversations, which take neither where nor share; `weights` weighs them")
    return conversations.read(path)


def _sampled(context: Context, reference: str, tokenizer: Any, longest: int) -> tuple[dict[str, list[Example]], int]:
    """Problem id -> examples of its right answers in rollouts; and how many were too long.

    Raises:
        UserError: the ids of the rollouts mean other text to the model that is trained.
    """
    settings: SftStage = context.settings
    maker = reference.removesuffix(ROLLOUTS)
    if load_tokenizer(context.root / paths.model(maker)).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"{context.stage}: {reference} was sampled with another tokenizer than that of {settings.init}")
    answered = (t for path in sorted((context.root / paths.rows(reference)).glob("*.parquet")) for t in read_trajectories(path))
    return accepted_examples(answered, settings.accept, longest, (context.seed, context.stage, reference))
