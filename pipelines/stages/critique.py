"""Kind critique: rows that ask whether a solution is right, out of what models have answered to problems.

Writes data/rows/<NAME>/{problems, dropped}.parquet with ledger.json, all of them or none.
"""

from __future__ import annotations

from collections import Counter

from pipelines import paths
from pipelines.config.critique import CritiqueStage
from pipelines.curation.critiques import RIGHT, rows_of
from pipelines.errors import UserError
from pipelines.records import Dropped, Problem
from pipelines.stages import Context, rows
from pipelines.store import read_trajectories, replacing_folder, write_dropped, write_json, write_problems


def run(context: Context) -> dict[str, float]:
    """Make a row of each answer; two models that answered alike give one.

    Raises:
        UserError: the rollouts have no answer to these problems.
    """
    settings: CritiqueStage = context.settings
    problems = {problem.problem_id: problem for problem in rows.read(context, settings.model_copy(update={"data": settings.problems}))}
    kept: dict[str, Problem] = {}
    dropped: list[Dropped] = []
    for reference in settings.generators:
        answered = (t for path in sorted((context.root / paths.rows(reference)).glob("*.parquet")) for t in read_trajectories(path))
        key = (context.seed, context.stage, reference)
        made, left_out = rows_of(problems, answered, settings.instruction, reference.partition("/")[0], settings.solutions, key)
        dropped += left_out
        for row in made:
            if kept.setdefault(row.problem_id, row) is not row:
                dropped.append(Dropped(row, "critique", "again", f"as {kept[row.problem_id].source}"))
    if not kept:
        raise UserError(f"{context.stage}: {', '.join(settings.generators)} have no answer to any of {len(problems)} problems")
    reasons = dict(sorted(Counter(row.reason for row in dropped).items()))
    counted = {"input": len(kept) + len(dropped), "kept": len(kept), "dropped": len(dropped)}
    with replacing_folder(context.root / paths.ROWS / context.stage) as folder:
        write_problems(folder / paths.MADE, list(kept.values()))
        write_dropped(folder / paths.DROPPED, dropped)
        write_json(folder / paths.LEDGER, {"steps": [{"step": "critique", **counted, "reasons": reasons}]})
    right = sum(row.answer == RIGHT for row in kept.values())
    return {name: float(value) for name, value in (counted | {"problems": len({row.parents for row in kept.values()}), "right": right}).items()}
