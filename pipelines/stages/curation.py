"""curation: raw problems -> curated rows split over the training stages, dropped rows with reasons, and the waterfall.

Writes data/curation/{base,sft,rl}.parquet, dropped.parquet, ledger.json and the data card (card.json, card.md), all of them or none. Rows
stream through; those that are kept are ordered by problem id, so the order of the input leaves no trace.
"""

from __future__ import annotations

import contextlib
import tempfile
from bisect import bisect_right
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import chat, paths, seeding
from pipelines.config.curation import CurationSettings
from pipelines.curation.card import card, markdown
from pipelines.curation.engines import BATCH
from pipelines.curation.run import Ledger, curate_file
from pipelines.curation.steps import Inputs
from pipelines.errors import UserError
from pipelines.records import PROBLEM_SCHEMA
from pipelines.stages import Context
from pipelines.stages.identity import folder_of, identity
from pipelines.store import read_problems, replacing_folder, write_json

Splits = dict[str, Counter[str]]
"""Split -> rows by domain."""


def run(context: Context) -> dict[str, float]:
    """Curate all training problems and split them.

    Raises:
        UserError: nothing is left, or a split with a weight is empty; says which step took how many.
    """
    settings: CurationSettings = context.settings
    benchmarks = {path.stem: read_problems(path) for path in sorted((context.root / paths.BENCHMARKS).glob("*.parquet"))}
    replies = folder_of(context, identity(context, __name__, sources=paths.SOURCES)) / paths.REPLIES
    inputs = Inputs(settings, benchmarks, client=chat.teacher(settings.endpoint, replies))
    context.work.mkdir(parents=True, exist_ok=True)
    with replacing_folder(context.root / paths.CURATION) as folder, tempfile.TemporaryDirectory(dir=context.work) as temporary:
        kept, scratch = Path(temporary) / "kept.parquet", Path(temporary) / "scratch"
        steps = curate_file(context.root / paths.PROBLEMS, kept, folder / paths.DROPPED, inputs, scratch)
        splits, unsolved = _split(kept, folder, settings)
        _refuse_empty(steps, splits, unsolved, settings)
        sources = Counter(pq.read_table(context.root / paths.PROBLEMS, columns=["source"]).column("source").to_pylist())
        write_json(folder / paths.LEDGER, _ledger(sources, steps, splits))
        write_card(folder, kept, steps, scratch)
    context.journal.say(waterfall(steps))
    dropped = sources.total() - sum(rows.total() for rows in splits.values())
    summary: dict[str, float] = {"kept": sources.total() - dropped, "dropped": dropped}
    summary |= {f"dropped.{entry['step']}": entry["dropped"] for entry in steps}
    return summary | {f"split.{name}": rows.total() for name, rows in splits.items()}


def write_card(folder: Path, kept: Path, steps: Ledger, scratch: Path) -> None:
    """The data card of the rows in `kept` and in the folder's dropped rows."""
    content = card(kept, folder / paths.DROPPED, steps, scratch)
    write_json(folder / paths.CARD, content)
    (folder / paths.CARD).with_suffix(".md").write_text(markdown(content), encoding="utf-8")


def split_of(problem_id: str, solution: str | None, settings: CurationSettings) -> str:
    """The split of a row, by a hash of its problem id alone; a row that nobody worked out goes to `rl`."""
    if solution is None:
        return "rl"
    names, bounds = list(settings.splits), list(accumulate(settings.splits.values()))
    place = seeding.key("split", problem_id) / 2**64 * bounds[-1]
    return names[min(bisect_right(bounds, place), len(names) - 1)]


def waterfall(steps: Ledger) -> str:
    """`9000 rows; filters -12 (prompt_too_long 12); audit -3 (gold_wrong 3); 8985 kept`."""
    if not steps:
        return "no steps"
    parts = [f"{steps[0]['input']} rows"]
    for entry in steps:
        if entry["dropped"]:
            reasons = ", ".join(f"{reason} {count}" for reason, count in entry["reasons"].items())
            parts.append(f"{entry['step']} -{entry['dropped']} ({reasons})")
        if "skipped" in entry:
            parts.append(f"{entry['step']} skipped: {entry['skipped']}")
    return "; ".join([*parts, f"{steps[-1]['kept']} kept"])


def _split(kept: Path, folder: Path, settings: CurationSettings) -> tuple[Splits, int]:
    """Every row of `kept` to the file of its split in `folder`; what went where, and how many rows have no worked solution."""
    splits: Splits = {name: Counter() for name in paths.SPLITS}
    unsolved = 0
    with contextlib.ExitStack() as open_files:
        writers = {name: pq.ParquetWriter(folder / path.name, PROBLEM_SCHEMA, compression="zstd") for name, path in paths.SPLITS.items()}
        for writer in writers.values():
            open_files.enter_context(writer)
        for batch in pq.ParquetFile(kept).iter_batches(BATCH):
            rows = pa.Table.from_batches([batch]).cast(PROBLEM_SCHEMA)
            ids, solutions, domains = (rows.column(name).to_pylist() for name in ("problem_id", "solution", "domain"))
            chosen = [split_of(problem_id, solution, settings) for problem_id, solution in zip(ids, solutions, strict=True)]
            unsolved += solutions.count(None)
            for name, writer in writers.items():
                mask = [split == name for split in chosen]
                splits[name].update(domain for domain, here in zip(domains, mask, strict=True) if here)
                writer.write_table(rows.filter(pa.array(mask, pa.bool_())))
    return splits, unsolved


def _refuse_empty(steps: Ledger, splits: Splits, unsolved: int, settings: CurationSettings) -> None:
    if not any(rows.total() for rows in splits.values()):
        raise UserError(f"curation: no row is left: {waterfall(steps)}")
    for name, share in settings.splits.items():
        if share > 0 and not splits[name]:
            raise UserError(
                f"curation: split '{name}' is empty: {waterfall(steps)}, {unsolved} of them without a worked solution, "
                f"and shares {settings.splits}; give more rows, or set its share to 0"
            )


def _ledger(sources: Counter[str], steps: Ledger, splits: Splits) -> dict[str, Any]:
    return {
        "input": sources.total(),
        "sources": dict(sorted(sources.items())),
        "steps": steps,
        "splits": {name: {"rows": rows.total(), "domains": dict(sorted(rows.items()))} for name, rows in splits.items()},
    }
