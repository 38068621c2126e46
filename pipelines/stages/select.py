"""Kind select: rows chosen by what a finished run of RL showed of them.

Writes data/rows/<NAME>/{problems, scores, dropped}.parquet with ledger.json, all of them or none.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import methods, paths
from pipelines.config.selection import SelectStage
from pipelines.curation.histories import SCORES, Visit, chosen
from pipelines.errors import UserError
from pipelines.records import POLICY, Outcome
from pipelines.stages import Context, rows
from pipelines.store import replacing_folder, write_dropped, write_json, write_problems, write_table

SEEN = ["problem_id", "step", "group_id", "part", "origin", "outcome", "reward"]
"""Columns of rollouts that are read."""


def run(context: Context) -> dict[str, float]:
    """Score the rows, and hand on the chosen ones.

    Raises:
        UserError: no row has a score that is high enough; says what became of them.
    """
    settings: SelectStage = context.settings
    score = methods.bind("select score", SCORES, settings.score, settings.settings)
    problems = rows.read(context, settings.model_copy(update={"data": settings.rows}))
    visits = visits_of(context.root / paths.rows(settings.history))
    scores = score({problem.problem_id: visits[problem.problem_id] for problem in problems if problem.problem_id in visits})
    kept, dropped = chosen(problems, scores, settings.at_least, settings.most)
    reasons = dict(sorted(Counter(row.reason for row in dropped).items()))
    if not kept:
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        raise UserError(f"{context.stage}: not one of {len(problems)} rows is chosen by {settings.score} of {settings.history} ({told})")
    counted = {"input": len(problems), "kept": len(kept), "dropped": len(dropped)}
    scored = {name: value for name, value in sorted(scores.items()) if value is not None}
    with replacing_folder(context.root / paths.ROWS / context.stage) as folder:
        write_problems(folder / paths.MADE, kept)
        write_table(folder / paths.SCORED, pa.table({"problem_id": list(scored), "score": list(scored.values())}))
        write_dropped(folder / paths.DROPPED, dropped)
        write_json(folder / paths.LEDGER, {"steps": [{"step": "select", **counted, "reasons": reasons}]})
    lowest = min(scored[problem.problem_id] for problem in kept)
    return {name: float(value) for name, value in (counted | {"scored": len(scored), "lowest_score": lowest}).items()}


def visits_of(folder: Path) -> dict[str, list[Visit]]:
    """By problem what each group of answers showed that the policy gave to it, in the order of steps."""
    groups: dict[tuple[int, int], tuple[str, list[tuple[float, bool]]]] = {}
    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path, columns=SEEN).to_pylist():
            if row["origin"] == POLICY and not row["part"]:
                _, answers = groups.setdefault((row["step"], row["group_id"]), (row["problem_id"], []))
                if row["outcome"] != Outcome.INFRASTRUCTURE:
                    answers.append((row["reward"], row["outcome"] == Outcome.CORRECT))
    visits: dict[str, list[Visit]] = {}
    for _, (problem_id, answers) in sorted(groups.items()):
        means = [sum(column) / len(answers) for column in zip(*answers, strict=True)] or [None, None]
        visits.setdefault(problem_id, []).append(Visit(*means))
    return visits
