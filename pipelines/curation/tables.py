"""The rows under curation as Parquet shards, and what DuckDB tells of them. Memory holds a batch at a time and what DuckDB may take.

A shard has the columns of a dropped problem and `row`, the row's place in the whole; a row that stays has no `reason`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipelines.curation.engines import BATCH, FAST, SHARD, Engine, Local
from pipelines.curation.steps import Apply, Batch
from pipelines.records import DROPPED_SCHEMA, PROBLEM_SCHEMA, Problem
from pipelines.store import replacing, to_problems

SCHEMA = DROPPED_SCHEMA.append(pa.field("row", pa.int64(), nullable=False))
MEMORY = "600MB"
"""What DuckDB may hold before it uses the disk."""
ORDER = "problem_id, source, source_id, answer, coalesce(solution, ''), prompt, verifier_args"
"""A total order: rows that tie here are the same row."""
PREFERENCE = "solution is null, source, source_id, problem_id, coalesce(solution, ''), prompt, verifier_args"
"""`steps.preference` in SQL, and then a total order."""


class Shards:
    """The rows of some shards that stay: `steps.Rows`."""

    def __init__(self, files: Sequence[Path], engine: Engine, scratch: Path) -> None:
        self._files, self._engine, self._scratch = list(files), engine, scratch

    def sketch(self, look: Callable[[Batch], pa.Table]) -> pa.Table:
        parts = list(self._engine.map(self._files, _Look(look)))
        table = pa.concat_tables(parts or [look(Batch.of([]))])
        rows = table.column("row").to_numpy()
        return table if bool(np.all(rows[1:] > rows[:-1])) else table.sort_by("row")

    def batches(self) -> Iterator[Batch]:
        for table in Local().map(self._files, _staying):
            yield Batch(table)

    def preferred(self) -> np.ndarray:
        if not self._files:
            return np.empty(0, np.int64)
        with connect(self._scratch) as connection:
            found = connection.execute(f"select row from {listed(self._files)} where reason is null order by {PREFERENCE}").fetchnumpy()
        return np.asarray(found["row"], np.int64)

    def take(self, rows: np.ndarray) -> dict[int, Problem]:
        wanted = ds.dataset([str(file) for file in self._files]).to_table(filter=pc.field("row").isin(pa.array(rows, pa.int64())))
        return dict(zip(wanted.column("row").to_pylist(), to_problems(wanted.select(PROBLEM_SCHEMA.names)), strict=True))


class Annotate:
    """The steps of one pass over the shards: rows of a batch that stayed so far, each with its new form or with why it goes."""

    def __init__(self, steps: Sequence[tuple[str, Apply]]) -> None:
        self._steps = list(steps)

    def __call__(self, table: pa.Table) -> pa.Table:
        batch, parts = Batch(_staying(table)), []
        for name, apply in self._steps:
            passed = apply(batch)
            if passed.rewritten and len(passed.rewritten) != len(batch):
                raise AssertionError(f"curation step '{name}': {len(batch)} rows went in, {len(passed.rewritten)} came out")
            goes = np.zeros(len(batch), bool)
            goes[list(passed.objections)] = True
            reasons = [passed.objections[place] for place in np.flatnonzero(goes).tolist()]
            parts.append(_annotated(batch.table.filter(pa.array(goes)), name, reasons))
            batch = Batch((passed.rewritten or batch).table.filter(pa.array(~goes)))
        return pa.concat_tables([*parts, _annotated(batch.table, None, [])])


class _Look:
    def __init__(self, look: Callable[[Batch], pa.Table]) -> None:
        self._look = look

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._look(Batch(_staying(table)))


def _staying(table: pa.Table) -> pa.Table:
    return table.filter(pc.field("reason").is_null()).select([*PROBLEM_SCHEMA.names, "row"])


def _annotated(table: pa.Table, step: str | None, reasons: Sequence[tuple[str, str]]) -> pa.Table:
    rows = len(table)
    columns: dict[str, Any] = {name: table.column(name) for name in PROBLEM_SCHEMA.names}
    columns |= {"step": [step] * rows, "reason": [r for r, _ in reasons] or [None] * rows, "detail": [d for _, d in reasons] or [None] * rows}
    return pa.table(columns | {"row": table.column("row")}, schema=SCHEMA)


def shard(source: Path, folder: Path) -> list[Path]:
    """All rows of a Parquet file of problems, numbered, as shards."""
    folder.mkdir()
    start = 0
    for number, table in enumerate(_cut(pq.ParquetFile(source).iter_batches(SHARD), SHARD)):
        rows = pa.array(np.arange(start, start + len(table)), pa.int64())
        pq.write_table(_annotated(table.append_column("row", rows), None, []), folder / f"{number:06d}.parquet", **FAST)
        start += len(table)
    return sorted(folder.glob("*.parquet"))


def write_sorted(path: Path, files: Sequence[Path], schema: pa.Schema, where: str, order: str, scratch: Path) -> None:
    """Rows of shards to one Parquet file, whole or absent; the same rows give the same bytes."""
    with replacing(path) as temporary, connect(scratch) as connection, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        if files:
            columns = ", ".join(schema.names)
            reader = connection.sql(f"select {columns} from {listed(files)} where {where} order by {order}").to_arrow_reader(BATCH)
            for table in _cut(reader, BATCH):
                writer.write_table(table.cast(schema))


def connect(scratch: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute(f"set memory_limit = '{MEMORY}'; set temp_directory = '{quoted((scratch / 'duckdb').as_posix())}'")
    return connection


def listed(files: Sequence[Path]) -> str:
    """The files as a table expression."""
    return "read_parquet([{}])".format(", ".join(f"'{quoted(file.as_posix())}'" for file in files))


def quoted(text: str) -> str:
    """Text for a literal of SQL."""
    return text.replace("'", "''")


def _cut(reader: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Tables of exactly `size` rows, the last one shorter: how the engine cuts its batches leaves no trace in a file."""
    waiting: list[pa.RecordBatch] = []
    for batch in reader:
        while len(batch):
            need = size - sum(len(part) for part in waiting)
            waiting.append(batch.slice(0, need))
            batch = batch.slice(need)
            if sum(len(part) for part in waiting) == size:
                yield pa.Table.from_batches(waiting).combine_chunks()
                waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()
