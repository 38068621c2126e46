"""curation: raw problems -> curated rows split over the training stages, dropped rows with reasons, and the waterfall.

Writes data/curation/{base,sft,rl}.parquet, dropped.parquet and ledger.json, all of them or none. Rows are ordered by
problem id, so the order of the input leaves no trace.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from itertools import accumulate
from typing import Any

from pipelines import paths, seeding
from pipelines.config.curation import CurationSettings
from pipelines.curation import Curated, curate
from pipelines.errors import UserError
from pipelines.records import Problem
from pipelines.stages import Context
from pipelines.store import read_problems, replacing_folder, write_dropped, write_json, write_problems


def run(context: Context) -> dict[str, float]:
    """Curate all training problems and split them.

    Raises:
        UserError: nothing is left, or a split with a weight is empty; says which step took how many.
    """
    settings: CurationSettings = context.settings
    problems = read_problems(context.root / paths.PROBLEMS)
    benchmarks = {path.stem: read_problems(path) for path in sorted((context.root / paths.BENCHMARKS).glob("*.parquet"))}
    curated = curate(problems, benchmarks, settings)
    splits = split(curated.kept, settings)
    _refuse_empty(curated, splits, settings)
    with replacing_folder(context.root / paths.CURATION) as folder:
        for name, path in paths.SPLITS.items():
            write_problems(folder / path.name, splits[name])
        write_dropped(folder / paths.DROPPED, curated.dropped)
        write_json(folder / paths.LEDGER, _ledger(problems, curated, splits))
    context.journal.say(waterfall(curated.ledger))
    return _summary(curated, splits)


def split(problems: list[Problem], settings: CurationSettings) -> dict[str, list[Problem]]:
    """Each row to one split, by a hash of its problem id alone; rows that nobody worked out go to `rl`."""
    total = sum(settings.splits.values())
    splits: dict[str, list[Problem]] = {name: [] for name in paths.SPLITS}
    names, bounds = list(settings.splits), list(accumulate(settings.splits.values()))
    for problem in problems:
        place = seeding.key("split", problem.problem_id) / 2**64 * total
        drawn = names[min(bisect_right(bounds, place), len(names) - 1)]
        splits["rl" if problem.solution is None else drawn].append(problem)
    return splits


def waterfall(ledger: list[dict[str, Any]]) -> str:
    """`9000 rows; filters -12 (prompt_too_long 12); audit -3 (gold_wrong 3); 8985 kept`."""
    if not ledger:
        return "no steps"
    parts = [f"{ledger[0]['input']} rows"]
    for entry in ledger:
        if entry["dropped"]:
            reasons = ", ".join(f"{reason} {count}" for reason, count in entry["reasons"].items())
            parts.append(f"{entry['step']} -{entry['dropped']} ({reasons})")
    return "; ".join([*parts, f"{ledger[-1]['kept']} kept"])


def _refuse_empty(curated: Curated, splits: dict[str, list[Problem]], settings: CurationSettings) -> None:
    if not curated.kept:
        raise UserError(f"curation: no row is left: {waterfall(curated.ledger)}")
    for name, share in settings.splits.items():
        if share > 0 and not splits[name]:
            unsolved = sum(problem.solution is None for problem in curated.kept)
            raise UserError(
                f"curation: split '{name}' is empty: {waterfall(curated.ledger)}, {unsolved} of them without a worked solution, "
                f"and shares {settings.splits}; give more rows, or set its share to 0"
            )


def _ledger(problems: list[Problem], curated: Curated, splits: dict[str, list[Problem]]) -> dict[str, Any]:
    return {
        "input": len(problems),
        "sources": dict(sorted(Counter(problem.source for problem in problems).items())),
        "steps": curated.ledger,
        "splits": {name: {"rows": len(rows), "domains": dict(sorted(Counter(row.domain for row in rows).items()))} for name, rows in splits.items()},
    }


def _summary(curated: Curated, splits: dict[str, list[Problem]]) -> dict[str, float]:
    summary: dict[str, float] = {"kept": len(curated.kept), "dropped": len(curated.dropped)}
    summary |= {f"dropped.{entry['step']}": entry["dropped"] for entry in curated.ledger}
    return summary | {f"split.{name}": len(rows) for name, rows in splits.items()}
