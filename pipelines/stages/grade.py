"""Kind grade: a policy answers problems; those that it sometimes solves are the rows that the stage makes.

Writes data/rows/<NAME>/{problems, graded, ungraded, dropped}.parquet and ledger.json, all of them or none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines import paths, prompting, verifiers
from pipelines.config.curation import GradeStage
from pipelines.curation.difficulty import bin_of, decided, graded, inside_band, wilson, within_limit
from pipelines.errors import InfrastructureError, UserError
from pipelines.generation import Generator, create, respond
from pipelines.parts import in_parts
from pipelines.records import Dropped, Outcome, Problem, Verdict
from pipelines.stages import Context, rows
from pipelines.stages.identity import folder_of, identity
from pipelines.store import read_json, replacing_folder, write_dropped, write_json, write_problems

WAVES = 4
"""Full generation batches between two verifications, after which what is done is stored."""
VERDICT_SCHEMA = pa.schema({"place": pa.int64(), "outcome": pa.string(), "score": pa.float64(), "detail": pa.string()})
"""One row per judged response of a stored wave; place: of its problem among those that are graded."""


def run(context: Context) -> dict[str, float]:
    """Grade, select, and say what was left aside.

    Raises:
        UserError: no problem to grade, or none inside the band; says how many were too easy and too hard.
        InfrastructureError: verdicts cannot be had on this machine.
    """
    settings: GradeStage = context.settings
    problems, aside = within_limit(rows.read(context, settings), settings.limit)
    verifiers.require_sandbox_for(problems)
    generator = create(settings.generation, context.root / paths.model(settings.init), context.device)
    problems, too_long = _fitting(problems, generator, context)
    if not problems:
        raise UserError(
            f"{context.stage}: there is nothing to grade: {len(too_long)} prompts exceed the model's context, {len(aside)} lie beyond its limit"
        )
    results = _grade(problems, generator, context)
    judged = [result for result in results if isinstance(result, Problem)]
    unjudged = [result for result in results if isinstance(result, Dropped)]
    if not judged:
        raise InfrastructureError(f"{context.stage}: not one response could be judged: {unjudged[0].detail}")
    selected, outside = inside_band(judged, settings.band)
    dropped = aside + too_long + unjudged + outside
    reasons = Counter(row.reason for row in dropped)
    if not selected:
        raise UserError(
            f"{context.stage}: none of {len(judged)} graded problems has a pass rate within {list(settings.band)}: "
            f"{reasons['too_hard']} are too hard, {reasons['too_easy']} too easy; widen its band, or change its model or the problems"
        )
    with replacing_folder(context.root / paths.ROWS / context.stage) as folder:
        write_problems(folder / paths.GRADED, judged)
        write_problems(folder / paths.MADE, selected)
        write_problems(folder / paths.UNGRADED, [row.problem for row in aside])
        write_dropped(folder / paths.DROPPED, dropped)
        write_json(folder / paths.LEDGER, _ledger(judged, selected, dropped))
    return _summary(judged, selected, reasons)


def _fitting(problems: list[Problem], generator: Generator, context: Context) -> tuple[list[Problem], list[Dropped]]:
    """Problems whose prompt and longest response fit the model's context; the rest as `prompt_exceeds_context`."""
    config = read_json(context.root / paths.model(context.settings.init) / "config.json")
    room = config.get("max_position_embeddings", float("inf")) - context.settings.generation.max_new_tokens
    kept, dropped = [], []
    for problem in problems:
        length = len(prompting.prompt_ids(generator.tokenizer, problem, generator.settings.prompt))
        if length <= room:
            kept.append(problem)
        else:
            dropped.append(Dropped(problem, "grade", "prompt_exceeds_context", f"{length} tokens, room for {room}"))
    return kept, dropped


def _grade(problems: list[Problem], generator: Generator, context: Context) -> list[Problem | Dropped]:
    """Each problem with its pass rate, in order; waves that an interrupted run finished are not sampled again."""
    settings: GradeStage = context.settings
    size = max(1, WAVES * settings.generation.batch_size // (settings.samples if settings.stop == "never" else settings.round))
    run = identity(context, __name__, problems=map(paths.rows, settings.rows_read), model=paths.model(settings.init))
    run["device"] = context.device
    del run["settings"]["generation"]["batch_size"]  # it changes memory and speed alone
    found: dict[int, list[Verdict]] = defaultdict(list)
    outcomes: Counter[str] = Counter()
    with verifiers.VerifierPool() as pool:
        for table in in_parts(problems, size, folder_of(context, run), lambda start, batch: _wave(start, batch, generator, pool, context)):
            for row in table.to_pylist():
                found[row["place"]].append(Verdict(Outcome(row["outcome"]), row["score"], detail=row["detail"]))
                outcomes[row["outcome"]] += 1
            counted = outcomes.total() - outcomes[Outcome.INFRASTRUCTURE]
            context.journal.show(len(found), len(problems), f"pass rate {outcomes[Outcome.CORRECT] / counted:.3f}" if counted else "")
    return [graded(problem, found[place]) for place, problem in enumerate(problems)]


def _wave(start: int, batch: Sequence[Problem], generator: Generator, pool: verifiers.VerifierPool, context: Context) -> pa.Table:
    """The verdicts on a wave of problems, a row each."""
    rows = [
        {"place": place, "outcome": verdict.outcome.value, "score": verdict.score, "detail": verdict.detail}
        for place, verdicts in enumerate(_verdicts(batch, generator, pool, context), start)
        for verdict in verdicts
    ]
    return pa.Table.from_pylist(rows, schema=VERDICT_SCHEMA)


def _verdicts(batch: Sequence[Problem], generator: Generator, pool: verifiers.VerifierPool, context: Context) -> list[list[Verdict]]:
    """Verdicts on the responses to each problem: all of them, or as many as its stopping rule asks for."""
    settings: GradeStage = context.settings
    size = settings.samples if settings.stop == "never" else settings.round
    found: list[list[Verdict]] = [[] for _ in batch]
    open_rows = list(range(len(batch)))
    for first in range(0, settings.samples, size):
        count = min(size, settings.samples - first)
        asked = [batch[i] for i in open_rows]
        groups = respond(generator, asked, count, (context.seed, context.stage), first=first)
        verdicts = iter(pool.verify_batch([(problem, s.text) for problem, group in zip(asked, groups, strict=True) for s in group]))
        for i, group in zip(open_rows, groups, strict=True):
            found[i] += [next(verdicts) for _ in group]
        left = settings.samples - first - count
        open_rows = [i for i in open_rows if not _done(found[i], left, settings)]
        if not open_rows:
            break
    return found


def _done(verdicts: list[Verdict], left: int, settings: GradeStage) -> bool:
    counted = [verdict for verdict in verdicts if verdict.outcome is not Outcome.INFRASTRUCTURE]
    return decided(sum(verdict.correct for verdict in counted), len(counted), left, settings.band, settings.stop)


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
                **_pass_rate([row for row in judged if row.domain == domain]),
            }
            for domain in sorted({row.domain for row in judged})
        },
    }


def _pass_rate(rows: list[Problem]) -> dict[str, float]:
    """Pooled pass rate with its 95 % Wilson interval (samples of one problem resemble each other, so it is narrow)."""
    n = sum(row.pass_n or 0 for row in rows)
    correct = sum((row.pass_rate or 0) * (row.pass_n or 0) for row in rows)
    low, high = wilson(correct, n)
    return {"pass_rate": correct / n, "low": low, "high": high}


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
        summary |= {f"selected.{domain}": sum(row.domain == domain for row in selected), f"pass_rate.{domain}": _pass_rate(of_domain)["pass_rate"]}
    return summary
