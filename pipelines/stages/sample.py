"""Kind sample: a model or an endpoint answers rows; its answers are kept as rollouts, and right ones as solutions of the rows.

Writes data/rows/<NAME>/{problems, dropped}.parquet with ledger.json, with `outputs` also outputs.parquet, with
`reflect` reflections.parquet, and data/rollouts/<NAME>, each whole or not at all. A row keeps its id, source and licence; where the answer is a
program, the program becomes the row's answer, so the row is a new one whose parent is the row that was asked.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines import paths, seeding, verifiers
from pipelines.config.sampling import SampleStage
from pipelines.curation.difficulty import graded, pooled
from pipelines.errors import InfrastructureError, UserError
from pipelines.models.loading import write_vocabulary
from pipelines.records import Dropped, Outcome, Problem, Trajectory, one_turn, problem_id
from pipelines.stages import Context, rows
from pipelines.stages.answers import Answer, Policy, forget_others
from pipelines.stages.identity import identity
from pipelines.stages.outputs import Outputs
from pipelines.stages.reflections import Reflections
from pipelines.store import replacing_folder, write_dropped, write_json, write_problems, write_trajectories
from pipelines.verifiers.text import program, working

PART = 2048
"""Answers in a file of rollouts."""


@dataclass
class Account:
    """What became of the rows. asked: with their pass rates. chosen: ids of those with a right answer, and the one that is their solution. kept: what
    is handed on."""

    asked: list[Problem] = field(default_factory=list)
    chosen: dict[str, str] = field(default_factory=dict)
    kept: list[Problem] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    tokens: int = 0
    cut: int = 0


def run(context: Context) -> dict[str, float]:
    """Ask, judge, keep.

    Raises:
        UserError: no row to ask, or none got a right answer.
        InfrastructureError: verdicts cannot be had on this machine.
    """
    settings: SampleStage = context.settings
    problems = sorted(rows.read(context, settings), key=lambda problem: problem.problem_id)
    verifiers.require_sandbox_for(problems)
    models = (*settings.models_read, *settings.reward_models_read)
    work = identity(context, __name__, problems=map(paths.rows, settings.rows_read), models=map(paths.model, models))
    account = Account()
    with ExitStack() as stack:
        policy = stack.enter_context(Policy(context, settings.init, settings.generation, problems, work, settings.judge))
        problems, account.dropped = policy.fitting(problems)
        if not problems:
            raise UserError(f"{context.stage}: there is nothing to ask: the prompts of {len(account.dropped)} rows exceed the model's context")
        outputs = Outputs(context, policy) if settings.outputs else None
        reflections = Reflections(context) if settings.reflect else None
        of_rollouts = stack.enter_context(replacing_folder(context.root / paths.ROLLOUTS / context.stage))
        of_rows = stack.enter_context(replacing_folder(context.root / paths.ROWS / context.stage))
        _write_rollouts(of_rollouts, _answered(policy, problems, account, [*filter(None, (outputs, reflections))], context))
        write_vocabulary(of_rollouts, policy.tokenizer)
        policies = [policy]
        if reflections:
            policies += reflections.write(of_rows, stack, work, functools.partial(solved, settings=settings))
        _settle(account, reflections.corrected if reflections else {}, context)
        policies += outputs.write(of_rows, stack, work) if outputs else []
        write_problems(of_rows / paths.MADE, account.kept)
        write_dropped(of_rows / paths.DROPPED, account.dropped)
        write_json(of_rows / paths.LEDGER, _ledger(account, settings))
    if settings.generation.engine == "server":
        context.journal.say("an endpoint says no log-probabilities, so the rollouts have none; their ids are the text through the tokenizer of init")
    forget_others(context, policies)
    return _summary(account) | (outputs.figures() if outputs else {}) | (reflections.counts if reflections else {})


def _answered(
    policy: Policy, problems: Sequence[Problem], account: Account, takers: Sequence[Outputs | Reflections], context: Context
) -> Iterator[list[Trajectory]]:
    """The answers to each row as trajectories; the account is kept on the way."""
    settings: SampleStage = context.settings
    for place, (problem, answers) in enumerate(zip(problems, policy.answers(problems, settings.samples), strict=True)):
        _enter(account, problem, answers, context)
        for taker in takers:
            taker.take(problem, answers)
        asked = len(account.asked)
        context.journal.show(place + 1, len(problems), f"{len(account.chosen)} of {asked} rows solved" if asked else "")
        yield [_trajectory(policy, problem, place, answer, settings.init) for answer in answers]


def _enter(account: Account, problem: Problem, answers: Sequence[Answer], context: Context) -> None:
    settings: SampleStage = context.settings
    account.outcomes.update(answer.verdict.outcome for answer in answers)
    account.tokens += sum(len(answer.ids) for answer in answers)
    account.cut += sum(answer.finish_reason == "length" for answer in answers)
    judged = graded(problem, [answer.verdict for answer in answers])
    if isinstance(judged, Dropped):
        account.dropped.append(replace(judged, step=settings.kind))
        return
    account.asked.append(judged)
    right = [answer for answer in answers if answer.verdict.correct]
    if right:
        rank = {"shortest": lambda answer: len(answer.ids), "random": lambda _: 0}[settings.choose]
        chosen = min(right, key=lambda a: (rank(a), seeding.key(context.seed, context.stage, "choose", problem.problem_id, a.text)))
        account.chosen[problem.problem_id] = chosen.text


def solved(problem: Problem, text: str, settings: SampleStage) -> Problem:
    """The row with the working of a right answer as its solution, and its program as the answer where one is asked for."""
    template = settings.generation.prompt.response
    before = template.partition("{solution}")[0] if template and "{solution}" in template else ""
    solution = working(text).removeprefix(before).strip()
    source = program(text) if problem.answer_type == "program" else None
    if source is None or source.strip() == problem.answer.strip():
        return replace(problem, solution=solution)
    source = source.strip("\n")
    new = problem_id(problem.prompt, source)
    return replace(problem, problem_id=new, answer=source, solution=solution, parents=(*problem.parents, problem.problem_id))


def _trajectory(policy: Policy, problem: Problem, place: int, answer: Answer, model: str) -> Trajectory:
    versions = [0] * len(answer.ids) if answer.logp else []
    return Trajectory(
        problem_id=problem.problem_id,
        group_id=place,
        sample_id=answer.number,
        step=0,
        policy=model,
        segments=one_turn(policy.prompt(problem), answer.ids, answer.logp, versions),
        finish_reason=answer.finish_reason,
        response=answer.text,
        outcome=answer.verdict.outcome.value,
        extracted=answer.verdict.extracted,
        detail=answer.verdict.detail,
        reward=answer.verdict.score,
    )


def _write_rollouts(folder: Path, groups: Iterator[list[Trajectory]]) -> None:
    """Files of about PART answers, whole groups each."""
    part: list[Trajectory] = []
    number = 0
    for group in groups:
        part += group
        if len(part) >= PART:
            write_trajectories(folder / f"part-{number:06d}.parquet", part)
            part, number = [], number + 1
    if part:
        write_trajectories(folder / f"part-{number:06d}.parquet", part)


def _settle(account: Account, corrected: Mapping[str, str], context: Context) -> None:
    """What is handed on. corrected: right answers of a reflector to rows that the policy may not have solved."""
    settings: SampleStage = context.settings
    if not account.asked:
        raise InfrastructureError(f"{context.stage}: not one answer could be judged: {account.dropped[-1].detail}")
    texts = {**corrected, **account.chosen}
    for judged in account.asked:
        if judged.problem_id in texts:
            account.kept.append(solved(judged, texts[judged.problem_id], settings))
        elif settings.rows == "all":
            account.kept.append(judged)
        else:
            account.dropped.append(Dropped(judged, settings.kind, "no_right_answer", f"none of {judged.pass_n} answers is right"))
    if not account.kept:
        told = ", ".join(f"{count} {outcome.value}" for outcome, count in sorted(account.outcomes.items()))
        raise UserError(
            f"{context.stage}: not one of {len(account.asked)} rows got a right answer ({told}); ask another model, give it more samples or "
            "tokens, or hand on all rows with rows: all"
        )


def _ledger(account: Account, settings: SampleStage) -> dict[str, Any]:
    counted = {"input": len(account.kept) + len(account.dropped), "kept": len(account.kept), "dropped": len(account.dropped)}
    return {
        "steps": [{"step": settings.kind, **counted, "reasons": dict(sorted(Counter(row.reason for row in account.dropped).items()))}],
        "maker": {"model": settings.init, "engine": settings.generation.engine, "endpoint": settings.generation.server.model or None},
        "answers": {outcome.value: count for outcome, count in sorted(account.outcomes.items())},
        "domains": {
            domain: {
                "asked": len(of_domain),
                "solved": sum(row.problem_id in account.chosen for row in of_domain),
                **pooled(of_domain),
            }
            for domain, of_domain in _by_domain(account.asked).items()
        },
    }


def _by_domain(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    return {domain: [row for row in problems if row.domain == domain] for domain in sorted({row.domain for row in problems})}


def _summary(account: Account) -> dict[str, float]:
    answers = account.outcomes.total()
    summary: dict[str, float] = {
        "asked": len(account.asked),
        "answers": answers,
        "right": account.outcomes[Outcome.CORRECT],
        "solved": len(account.chosen),
        "kept": len(account.kept),
        "dropped": len(account.dropped),
        "mean_tokens": account.tokens / answers,
        "cut_share": account.cut / answers,
    }
    return summary | {f"pass_rate.{domain}": pooled(found)["pass_rate"] for domain, found in _by_domain(account.asked).items()}
