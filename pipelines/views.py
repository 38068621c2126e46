"""SQL over what the pipeline has made: DuckDB with a view per kind of record, read straight from the Parquet files.

    problems      all rows of the sources               benchmarks   held-out problems, by `benchmark`
    splits        curated rows, by `split`              dropped      rows that a stage refused, by `stage`, with step, reason, detail
    ledger        rows in, kept and dropped by stage and step; reasons: the counted reasons of each step
    graded        problems with pass rates              selected     those inside the band        synthesised   new ones
    rollouts      every response of RL, by `stage`, with its `origin` and, where it did not train, why it was `dropped`
    samples      every response of the evaluation, by `model` and `benchmark`

A view stands only where its files do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipelines import paths
from pipelines.errors import UserError

LEDGERS = {"sources": paths.SOURCES, "curation": paths.CURATION, "difficulty": paths.DIFFICULTY, "synthesis": paths.SYNTHESIS}
"""Stages that refuse rows -> the folder with their account."""
STEPS = pa.schema(
    [("stage", pa.string()), ("place", pa.int64()), ("step", pa.string()), ("input", pa.int64()), ("kept", pa.int64()), ("dropped", pa.int64())]
)
REASONS = pa.schema([("stage", pa.string()), ("step", pa.string()), ("reason", pa.string()), ("rows", pa.int64())])

FILES: dict[str, tuple[Path, str, dict[str, int]]] = {
    "problems": (paths.PROBLEMS, "", {}),
    "benchmarks": (paths.BENCHMARKS, "*.parquet", {"benchmark": 1}),
    "graded": (paths.GRADED, "", {}),
    "selected": (paths.SELECTED, "", {}),
    "synthesised": (paths.SYNTHESISED, "", {}),
    "rollouts": (paths.ROLLOUTS, "*/*.parquet", {"stage": 2}),
    "samples": (paths.SAMPLES, "*/*.parquet", {"model": 2, "benchmark": 1}),
}
"""View -> (file or folder, pattern below it, columns that come of the path: name -> which part of it, from the end)."""


def connect(root: Path) -> duckdb.DuckDBPyConnection:
    """An in-memory database with the views of the project at `root`, which can read its data folder and no other file.

    Raises:
        UserError: nothing has been made there yet.
    """
    connection = duckdb.connect()
    made = {name: _over(root, *where) for name, where in FILES.items()}
    made["splits"] = _union(root, {path.stem: path for path in paths.SPLITS.values()}, "split")
    made["dropped"] = _union(root, {stage: folder / paths.DROPPED for stage, folder in LEDGERS.items()}, "stage")
    for name, query in made.items():
        if query:
            connection.execute(f"create view {name} as {query}")
    _accounts(connection, root)
    if not tables(connection):
        raise UserError(f"{root}: nothing to query yet: run `touchstone run` first")
    folder = (root / "data").resolve().as_posix()
    connection.execute(f"set allowed_directories = ['{quoted(folder)}/']; set enable_external_access = false; set lock_configuration = true")
    return connection


def tables(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Names of the views."""
    return sorted(name for (name,) in connection.execute("select table_name from information_schema.tables").fetchall())


def run(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """The result of one statement.

    Raises:
        UserError: the statement is wrong; says what, and which views there are.
    """
    try:
        relation = connection.sql(query)
        return pa.table({}) if relation is None else relation.to_arrow_table()
    except duckdb.Error as error:
        raise UserError(f"{str(error).strip().splitlines()[0]} (views: {', '.join(tables(connection))})") from error


def _over(root: Path, where: Path, pattern: str, columns: dict[str, int]) -> str | None:
    """Query over the files at `where`, None where there are none."""
    target = root.resolve() / where
    if not (any(target.glob(pattern)) if pattern else target.is_file()):
        return None
    parts = "".join(f", regexp_replace(string_split(filename, '/')[-{place}], '\\.parquet$', '') as {name}" for name, place in columns.items())
    source = quoted((target / pattern if pattern else target).as_posix())
    return f"select * exclude (filename){parts} from read_parquet('{source}', filename = true, union_by_name = true)"


def _union(root: Path, files: dict[str, Path], column: str) -> str | None:
    parts = [
        f"select *, '{name}' as {column} from read_parquet('{quoted((root.resolve() / path).as_posix())}')"
        for name, path in files.items()
        if (root / path).is_file()
    ]
    return " union all by name ".join(parts) or None


def _accounts(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    """The tables `ledger` and `reasons`."""
    steps, reasons = [], []
    for stage, folder in LEDGERS.items():
        file = root / folder / paths.LEDGER
        account = json.loads(file.read_text()) if file.is_file() else {}
        for place, step in enumerate(_steps(account)):
            steps.append({"stage": stage, "place": place, **{name: step[name] for name in STEPS.names if name in step}})
            reasons += [{"stage": stage, "step": step["step"], "reason": reason, "rows": rows} for reason, rows in step["reasons"].items()]
    for name, rows, schema in (("ledger", steps, STEPS), ("reasons", reasons, REASONS)):
        if steps:
            connection.register(f"_{name}", pa.Table.from_pylist(rows, schema=schema))
            connection.execute(f"create table {name} as select * from _{name}; drop view _{name}")


def _steps(account: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a ledger; difficulty has one."""
    if "selected" not in account:
        return account.get("steps", [])
    kept = account["selected"]
    return [{"step": "difficulty", "input": account["input"], "kept": kept, "dropped": account["input"] - kept, "reasons": account["reasons"]}]


def quoted(text: str) -> str:
    """Text for a literal of SQL."""
    return text.replace("'", "''")
