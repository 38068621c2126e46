"""sources: every source of params.yaml -> one file of raw training problems, one file per benchmark, and a ledger.

Writes data/sources/{problems.parquet, benchmarks/<name>.parquet, malformed.parquet, dropped.parquet, ledger.json}, all of them or none.
Rows stream to disk, so the size of a source is bounded by the disk. Training and benchmark sources of the same name and
kind get different seeds, and still curation compares them: generators may draw the same problem twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import paths, seeding
from pipelines.config.sources import FileSource, Source, SourcesSettings
from pipelines.errors import UserError
from pipelines.lineage import external
from pipelines.records import PROBLEM_SCHEMA, Dropped, Problem
from pipelines.sources import SOURCES, BadRow
from pipelines.sources.files import hub_commit
from pipelines.stages import Context
from pipelines.store import problem_table, replacing_folder, write_dropped, write_json, write_problems, write_table

BATCH = 8192
MALFORMED = "malformed.parquet"
MALFORMED_SCHEMA = pa.schema(
    [("source", pa.string()), ("file", pa.string()), ("line", pa.int64()), ("field", pa.string()), ("reason", pa.string()), ("raw", pa.string())]
)


@dataclass
class _Account:
    """What became of the rows of one source."""

    name: str
    role: str
    problems: int = 0
    bad: list[BadRow] = field(default_factory=list)

    def entry(self) -> dict[str, Any]:
        reasons = Counter(f"{row.field}: {row.reason}" if row.field else row.reason for row in self.bad)
        return {"role": self.role, "problems": self.problems, "malformed": len(self.bad), "reasons": dict(reasons)}


def run(context: Context) -> dict[str, float]:
    """Read or generate every source.

    Raises:
        UserError: a source cannot be read, gives no problem, or has more malformed rows than `max_bad_rows` allows.
    """
    settings: SourcesSettings = context.settings
    with replacing_folder(context.root / paths.SOURCES) as folder:
        train = [_Account(name, "train") for name in settings.train]
        benchmarks = [_Account(name, "benchmark") for name in settings.benchmarks]
        dropped: list[Dropped] = []
        with pq.ParquetWriter(folder / paths.PROBLEMS.name, PROBLEM_SCHEMA, compression="zstd") as writer:
            for account in train:
                rows = _read(context, account, settings.train[account.name])
                while batch := list(islice(rows, BATCH)):
                    writer.write_table(problem_table(batch))
        for account in benchmarks:
            kept, repeated = _distinct(_read(context, account, settings.benchmarks[account.name]))
            write_problems(folder / paths.BENCHMARKS.name / f"{account.name}.parquet", kept)
            dropped += repeated
        if not sum(account.problems for account in train):
            raise UserError("sources: no training problem came from " + (", ".join(settings.train) or "sources.train, which is empty"))
        accounts = train + benchmarks
        write_dropped(folder / paths.DROPPED, dropped)
        write_malformed(folder / MALFORMED, ((account.name, row) for account in accounts for row in account.bad))
        write_json(folder / paths.LEDGER, _ledger(accounts, dropped))
    return _summary(train, benchmarks, dropped)


def _read(context: Context, account: _Account, source: Source) -> Iterator[Problem]:
    """The problems of one source, its bad rows put aside and judged at the end; of a hub's dataset at the commit that the manifest names."""
    if isinstance(source, FileSource) and (commit := hub_commit(source, account.name, context.root)):
        context.origins[f"{'train' if account.role == 'train' else 'benchmarks'}.{account.name}"] = external.at_commit(source.path, commit)
        source = source.model_copy(update={"revision": commit})
    seed = seeding.key(context.seed, "sources", account.role, account.name)
    for row in SOURCES[source.kind](source, seed, account.name, context.root):
        if isinstance(row, BadRow):
            account.bad.append(row)
        else:
            account.problems += 1
            yield row
    total = account.problems + len(account.bad)
    if account.bad and len(account.bad) > context.settings.max_bad_rows * total:
        first = account.bad[0]
        at = f" field '{first.field}':" if first.field else ""
        raise UserError(
            f"sources: '{account.name}': {len(account.bad)} of {total} rows ({len(account.bad) / total:.1%}) are malformed, "
            f"more than max_bad_rows = {context.settings.max_bad_rows:.1%} allows; the first is {first.file} line {first.line}:{at} {first.reason}"
        )
    if not total:
        raise UserError(f"sources: '{account.name}' has no rows")
    context.journal.say(f"{account.role} '{account.name}': {account.problems} problems, {len(account.bad)} malformed rows")


def _distinct(problems: Iterator[Problem]) -> tuple[list[Problem], list[Dropped]]:
    """A benchmark without repeated prompts (the first stays): a repeated one would count twice in every score."""
    kept: dict[str, Problem] = {}
    dropped = []
    for problem in problems:
        prompt = " ".join(problem.prompt.split()).casefold()
        first = kept.setdefault(prompt, problem)
        if first is not problem:
            dropped.append(Dropped(problem, "sources", "repeated_prompt", f"same prompt as {first.source_id}"))
    return list(kept.values()), dropped


def write_malformed(path: Path, rows: Iterable[tuple[str, BadRow]]) -> None:
    """Bad rows with the name of their source."""
    write_table(path, pa.Table.from_pylist([{"source": name, **asdict(row)} for name, row in rows], MALFORMED_SCHEMA))


def _ledger(accounts: list[_Account], dropped: list[Dropped]) -> dict[str, Any]:
    repeated = Counter(row.problem.source for row in dropped)
    return {
        "train": {a.name: a.entry() for a in accounts if a.role == "train"},
        "benchmarks": {a.name: a.entry() | {"repeated_prompt": repeated[a.name]} for a in accounts if a.role == "benchmark"},
    }


def _summary(train: list[_Account], benchmarks: list[_Account], dropped: list[Dropped]) -> dict[str, float]:
    summary: dict[str, float] = {
        "problems": sum(account.problems for account in train),
        "benchmark_problems": sum(account.problems for account in benchmarks) - len(dropped),
        "malformed": sum(len(account.bad) for account in train + benchmarks),
    }
    return summary | {f"{account.role}.{account.name}": account.problems for account in train + benchmarks}
