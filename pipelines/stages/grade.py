"""Kind grade: a policy answers problems; those that it sometimes solves are the rows that the stage makes.

With a second policy beside it, stronger, a row must lie in the band of each (Guru, arXiv 2506.14965): what the weak one always solves is too easy,
what the strong one never solves is too hard or wrong.

Writes data/rows/<NAME>/{problems, graded, ungraded, dropped}.parquet and ledger.json, with a second policy strong.parquet too, all of them or none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from pipelines import paths, verifiers
from pipelines.config.curation import GradeStage
from pipelines.curation.difficulty import bin_of, decided, graded, hardest, inside_band, pooled, within_limit
from pipelines.errors import InfrastructureError, UserError
from pipelines.records import Dropped, Outcome, Problem
from pipelines.stages import Context, rows
from pipelines.stages.answers import Answer, Policy, forget_others
from pipelines.stages.identity import identity
from pipelines.store import replacing_folder, write_dropped, write_json, write_problems


def run(context: Context) -> dict[str, float]:
    """Grade, select, and say what was left aside.

    Raises:
        UserError: no problem to grade, or none inside the band; says how many were too easy and too hard.
        InfrastructureError: verdicts cannot be had on this machine.
    """
    settings: GradeStage = context.settings
    problems, aside = within_limit(rows.read(context, settings), settings.limit)
    verifiers.require_sandbox_for(problems)
    models = (*settings.models_read, *settings.reward_models_read)
    work = identity(context, __name__, problems=map(paths.rows, settings.rows_read), models=map(paths.model, models))
    with ExitStack() as stack:
        weak = stack.enter_context(Policy(context, settings.init, settings.generation, problems, work, settings.judge))
        problems, too_long = weak.fitting(problems)
        if not problems:
            raise UserError(
                f"{context.stage}: there is nothing to grade: {len(too_long)} prompts exceed the model's context, {len(aside)} lie beyond its limit"
            )
        judged, unjudged = _grade(weak, problems, settings.samples, settings.band, context)
        selected, outside = inside_band(judged, settings.band)
        dropped = aside + too_long + unjudged + outside
        by_strong: list[Problem] = []
        policies = [weak]
        if (strong := settings.strong) and selected:
            second = stack.enter_context(Policy(context, strong.model, strong.generation or settings.generation, problems, work, settings.judge))
            asked, too_long = second.fitting(selected)
            by_strong, unjudged = _grade(second, asked, strong.samples, strong.band, context)
            selected, outside = _by_both(selected, by_strong, strong.band, strong.model)
            dropped += too_long + unjudged + outside
            policies.append(second)
        selected, easier = hardest(selected, settings.hardest)
        dropped += easier
    reasons = Counter(row.reason for row in dropped)
    if not selected:
        raise UserError(
            f"{context.stage}: none of {len(judged)} graded problems has a pass rate within {_bands(settings)}: "
            f"{reasons['too_hard']} are too hard, {reasons['too_easy']} too easy; widen its band, or change its model or the problems"
        )
    with replacing_folder(context.root / paths.ROWS / context.stage) as folder:
        write_problems(folder / paths.GRADED, judged)
        write_problems(folder / paths.MADE, selected)
        write_problems(folder / paths.UNGRADED, [row.problem for row in aside])
        if settings.strong:
            write_problems(folder / paths.STRONG, by_strong)
        write_dropped(folder / paths.DROPPED, dropped)
        write_json(folder / paths.LEDGER, _ledger(judged, selected, dropped))
    forget_others(context, policies)
    return _summary(judged, selected, reasons) | ({"graded_by_strong": len(by_strong)} if settings.strong else {})


def _grade(
    policy: Policy, problems: Sequence[Problem], samples: int, band: tuple[float, float], context: Context
) -> tuple[list[Problem], list[Dropped]]:
    """The problems with their pass rates by this policy, in order; and those that could not be judged.

    Raises:
        InfrastructureError: not one answer could be judged.
    """
    settings: GradeStage = context.settings

    def enough(found: Sequence[Answer], left: int) -> bool:
        counted = [answer.verdict for answer in found if answer.verdict.outcome is not Outcome.INFRASTRUCTURE]
        return decided(sum(verdict.correct for verdict in counted), len(counted), left, band, settings.stop)

    outcomes: Counter[Outcome] = Counter()
    results: list[Problem | Dropped] = []
    together = None if settings.stop == "never" else settings.round
    for problem, answers in zip(problems, policy.answers(problems, samples, together, enough), strict=True):
        results.append(graded(problem, [answer.verdict for answer in answers]))
        outcomes.update(answer.verdict.outcome for answer in answers)
        counted = outcomes.total() - outcomes[Outcome.INFRASTRUCTURE]
        context.journal.show(len(results), len(problems), f"pass rate {outcomes[Outcome.CORRECT] / counted:.3f}" if counted else "")
    unjudged = [result for result in results if isinstance(result, Dropped)]
    if problems and len(unjudged) == len(results):
        raise InfrastructureError(f"{context.stage}: not one response could be judged: {unjudged[0].detail}")
    return [result for result in results if isinstance(result, Problem)], unjudged


def _by_both(selected: Sequence[Problem], by_strong: Sequence[Problem], band: tuple[float, float], model: str) -> tuple[list[Problem], list[Dropped]]:
    """Of the rows that the first policy's band let through those that the second one's does too, with the pass rates of the first."""
    inside, outside = inside_band(by_strong, band)
    first = {problem.problem_id: problem for problem in selected}
    dropped = [replace(row, problem=first[row.problem.problem_id], detail=f"{row.detail}, by {model}") for row in outside]
    return [first[problem.problem_id] for problem in inside], dropped


def _bands(settings: GradeStage) -> str:
    both = f" and, by {settings.strong.model}, {list(settings.strong.band)}" if settings.strong else ""
    return f"{list(settings.band)}{both}"


def _ledger(judged: list[Problem], selected: list[Problem], dropped: list[Dropped]) -> dict[str, Any]:
    return {
        "input": len(selected) + len(dropped),
        "graded": len(judged),
        "selected": len(selected),
        "rollouts": sum(row.pass_n or 0 for row in judged),
        "reasons": dict(sorted(Counter(row.reason for row in dropped).items())),
        "domains": {
            domain: {
                "graded": sum(row.domain == domain for row in judged),
                "selected": sum(row.domain == domain for row in selected),
                "reasons": dict(sorted(Counter(row.reason for row in dropped if row.problem.domain == domain).items())),
                "bins": dict(sorted(Counter(bin_of(row.pass_rate or 0.0) for row in judged if row.domain == domain).items())),
                **pooled([row for row in judged if row.domain == domain]),
            }
            for domain in sorted({row.domain for row in judged})
        },
    }


def _summary(judged: list[Problem], selected: list[Problem], reasons: Counter[str]) -> dict[str, float]:
    summary: dict[str, float] = {
        "graded": len(judged),
        "rollouts": sum(row.pass_n or 0 for row in judged),
        "selected": len(selected),
        "too_easy": reasons["too_easy"],
        "too_hard": reasons["too_hard"],
    }
    for domain in sorted({row.domain for row in judged}):
        of_domain = [row for row in judged if row.domain == domain]
        summary |= {f"selected.{domain}": sum(row.domain == domain for row in selected), f"pass_rate.{domain}": pooled(of_domain)["pass_rate"]}
    return summary
