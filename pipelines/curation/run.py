"""From raw rows to rows worth training on, every missing one with a reason.

`curate_file` runs the steps that params name, in that order, over a Parquet file of any size, and keeps the account: kept + dropped =
input at every step. Consecutive steps that look at rows one at a time share a pass. `curate` does the same for rows in memory.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from pipelines.chat import ChatClient
from pipelines.config.curation import CurationSettings
from pipelines.curation.answers import audit
from pipelines.curation.decontamination import decontaminate
from pipelines.curation.deduplication import exact_dedup
from pipelines.curation.engines import engine
from pipelines.curation.filters import filters
from pipelines.curation.judging import consensus, grade, reformulate, refuse_without_endpoint, solve
from pipelines.curation.near_duplicates import near_dedup
from pipelines.curation.normalise import normalise
from pipelines.curation.selection import mix, select
from pipelines.curation.semantic_duplicates import semantic_dedup
from pipelines.curation.steps import Apply, Inputs, Skipped, Step
from pipelines.curation.tables import ORDER, Annotate, Shards, connect, listed, shard, write_sorted
from pipelines.records import DROPPED_SCHEMA, PROBLEM_SCHEMA, Dropped, Problem
from pipelines.store import read_dropped, read_problems, write_problems

STEPS: dict[str, Step] = {
    "normalise": normalise,
    "filters": filters,
    "exact_dedup": exact_dedup,
    "near_dedup": near_dedup,
    "semantic_dedup": semantic_dedup,
    "decontaminate": decontaminate,
    "audit": audit,
    "reformulate": reformulate,
    "consensus": consensus,
    "grade": grade,
    "solve": solve,
    "select": select,
    "mix": mix,
}
"""Name in `curation.steps` of params.yaml -> step."""

WHOLE = frozenset(STEPS) - {"normalise", "filters", "decontaminate", "audit"}
"""Steps that look at all rows before they decide: to compare them, to draw among them, or to ask an endpoint for many at once."""

Ledger = list[dict[str, Any]]
"""Per step {step, input, kept, dropped, reasons, sources}; a step that could not run also says why under `skipped`."""


@dataclass(frozen=True)
class Curated:
    """Kept rows by problem id, dropped rows in the order of the steps, and the account."""

    kept: list[Problem]
    dropped: list[Dropped]
    ledger: Ledger


def curate(
    problems: Iterable[Problem],
    benchmarks: Mapping[str, list[Problem]],
    settings: CurationSettings,
    *,
    known: Iterable[Problem] = (),
    client: ChatClient | None = None,
) -> Curated:
    """`curate_file` for rows in memory."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_problems(folder / "in.parquet", problems)
        inputs = Inputs(settings, dict(benchmarks), tuple(known), client)
        ledger = curate_file(folder / "in.parquet", folder / "kept.parquet", folder / "dropped.parquet", inputs, folder / "scratch")
        return Curated(read_problems(folder / "kept.parquet"), read_dropped(folder / "dropped.parquet"), ledger)


def curate_file(source: Path, kept: Path, dropped: Path, inputs: Inputs, scratch: Path) -> Ledger:
    """Run `inputs.settings.steps` over a Parquet file of problems; the result does not depend on the order of its rows.

    kept, dropped: Parquet files to write. scratch: a folder to make, for shards, some three times the size of the source; it may be removed then.

    Raises:
        UserError: something that a step needs is not there, such as an endpoint.
        AssertionError: a step lost or invented a row, which is a bug.
    """
    refuse_without_endpoint(inputs.settings, there=inputs.client is not None)
    scratch.mkdir(parents=True)
    steps = inputs.settings.steps
    run_on = engine(inputs.settings.engine, inputs.settings.workers)
    passes = [shard(source, scratch / "0")]
    waiting: list[tuple[str, Apply]] = []
    skipped: dict[str, str] = {}

    def run_waiting() -> None:
        if waiting and passes[-1]:
            passes.append(run_on.write(passes[-1], Annotate(waiting), scratch / str(len(passes))))
        waiting.clear()

    for name in steps:
        if name in WHOLE:
            run_waiting()
        try:
            waiting.append((name, STEPS[name](Shards(passes[-1], run_on, scratch), inputs)))
        except Skipped as reason:
            skipped[name] = str(reason)
    run_waiting()
    made = [file for files in passes[1:] for file in files]
    write_sorted(kept, passes[-1], PROBLEM_SCHEMA, "reason is null", ORDER, scratch)
    write_sorted(dropped, made, DROPPED_SCHEMA, "reason is not null", f"list_position({list(steps)}, step), {ORDER}", scratch)
    ledger = _ledger(steps, skipped, *_counts(passes[0], made, scratch))
    written = parquet.read_metadata(kept).num_rows, parquet.read_metadata(dropped).num_rows
    if ledger and written != (ledger[-1]["kept"], ledger[0]["input"] - ledger[-1]["kept"]):
        raise AssertionError(f"curation: {ledger[0]['input']} rows went in, {written[0]} kept and {written[1]} dropped came out")
    return ledger


def _counts(files: Sequence[Path], made: Sequence[Path], scratch: Path) -> tuple[Counter[str], list[tuple[str, str, str, int]]]:
    """Rows per source at the start; (step, reason, source, rows) of those that went."""
    with connect(scratch) as connection:
        start = connection.execute(f"select source, count(*) from {listed(files)} group by all").fetchall() if files else []
        query = f"select step, reason, source, count(*) from {listed(made)} where reason is not null group by all order by all"
        return Counter(dict(start)), connection.execute(query).fetchall() if made else []


def _ledger(steps: Sequence[str], skipped: Mapping[str, str], sources: Counter[str], gone: Sequence[tuple[str, str, str, int]]) -> Ledger:
    ledger = []
    for name in steps:
        before, reasons = sources.total(), Counter[str]()
        for step, reason, source, rows in gone:
            if step == name:
                reasons[reason] += rows
                sources[source] -= rows
        kept, dropped = sources.total(), reasons.total()
        entry: dict[str, Any] = {"step": name, "input": before, "kept": kept, "dropped": dropped, "reasons": dict(sorted(reasons.items()))}
        ledger.append(entry | {"sources": dict(sorted((+sources).items()))} | ({"skipped": skipped[name]} if name in skipped else {}))
    return ledger
