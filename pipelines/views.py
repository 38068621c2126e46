"""SQL over what the pipeline has made: DuckDB with a view per kind of record, read straight from the Parquet files.

    problems      all rows of the sources               benchmarks   held-out problems, by `benchmark`
    splits        curated rows, by `split`              dropped      rows that a stage refused, by `stage`, with step, reason, detail
    ledger        rows in, kept and dropped by stage and step; reasons: the counted reasons of each step
    graded        problems with pass rates              selected     those inside the band        synthesised   new ones, all by `stage`
    sampled       problems with a policy's right answers as solutions, by `stage`
    seen          problem ids of the rows that a stage has read, by `stage`, with the reference that each came by as `data`
    rollouts      every response of RL and of kind sample, by `stage`, with its `origin` and, where it did not train, why it was `dropped`
    samples      every response of the evaluation, by `model` and `benchmark`

A view stands only where its files do. Any other file below data/ is read as 'data://FILE', such as 'data://sources/problems.parquet'.

A statement reads, whatever it says: DuckDB has no file system but `ReadOnly`, which opens for reading what lies below data/ (local files,
extensions, kept secrets and spilling are off, and the configuration is locked). Tables that a statement makes are in memory and gone with it.
"""

from __future__ import annotations

import glob
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa
from fsspec import AbstractFileSystem

from pipelines import paths
from pipelines.errors import UserError

STEPS = pa.schema(
    [("stage", pa.string()), ("place", pa.int64()), ("step", pa.string()), ("input", pa.int64()), ("kept", pa.int64()), ("dropped", pa.int64())]
)
REASONS = pa.schema([("stage", pa.string()), ("step", pa.string()), ("reason", pa.string()), ("rows", pa.int64())])

FILES: dict[str, tuple[Path, str, dict[str, int]]] = {
    "problems": (paths.PROBLEMS, "", {}),
    "benchmarks": (paths.BENCHMARKS, "*.parquet", {"benchmark": 1}),
    "graded": (paths.ROWS, f"*/{paths.GRADED}", {"stage": 2}),
    "seen": (paths.SEEN, "*.parquet", {"stage": 1}),
    "rollouts": (paths.ROLLOUTS, "*/*.parquet", {"stage": 2}),
    "samples": (paths.SAMPLES, "*/*.parquet", {"model": 2, "benchmark": 1}),
}
"""View -> (file or folder, pattern below it, columns that come of the path: name -> which part of it, from the end)."""


DATA = Path("data")
SCHEME = "data://"
LOCKS = {
    "allowed_directories": [SCHEME],
    "enable_external_access": False,
    "disabled_filesystems": "LocalFileSystem",
    "python_enable_replacements": False,
    "lock_configuration": True,
}
"""In this order: the last two say that no statement can change the others."""


class ReadOnly(AbstractFileSystem):
    """The files below one folder under `data://`, for reading. `..` ends at its root; links are followed, as DVC's cache needs."""

    protocol = "data"
    cachable = False

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _local(self, path: str) -> str:
        return f"{self.folder}{os.path.normpath('/' + path.removeprefix(SCHEME).lstrip('/'))}"

    def open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:
        if mode not in ("r", "rb"):
            raise PermissionError(f"{path} cannot be written: a query only reads")
        return open(self._local(path), "rb")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        state = os.stat(self._local(path))
        return {"name": path, "size": state.st_size, "type": "directory" if os.path.isdir(self._local(path)) else "file", "mtime": state.st_mtime}

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(os.stat(self._local(path)).st_mtime, UTC)

    def glob(self, path: str, **_: Any) -> list[str]:
        root = glob.escape(str(self.folder))
        pattern = root + self._local(path)[len(str(self.folder)) :]
        return sorted(SCHEME + os.path.relpath(found, self.folder) for found in glob.glob(pattern, recursive=True))


def connect(root: Path) -> duckdb.DuckDBPyConnection:
    """An in-memory database with the views of the project at `root`, which can read its data folder and no other file.

    Raises:
        UserError: nothing has been made there yet.
    """
    connection = duckdb.connect(config={"temp_directory": "", "allow_persistent_secrets": False})
    connection.register_filesystem(ReadOnly((root / DATA).resolve()))
    made = {name: _over(root, *where) for name, where in FILES.items()}
    made["splits"] = _union(root, {path.stem: path for path in paths.SPLITS.values()}, "split")
    ledgers = {"sources": paths.SOURCES, "curation": paths.CURATION}
    rows = {folder.name: paths.ROWS / folder.name for folder in sorted((root / paths.ROWS).glob("*")) if folder.is_dir()}
    graded = {stage for stage, folder in rows.items() if (root / folder / paths.GRADED).is_file()}
    made["dropped"] = _union(root, {stage: folder / paths.DROPPED for stage, folder in (ledgers | rows).items()}, "stage")
    sampled = {stage for stage in rows if (root / paths.ROLLOUTS / stage).is_dir()}
    for name, chosen in {"selected": graded, "sampled": sampled, "synthesised": rows.keys() - graded - sampled}.items():
        made[name] = _union(root, {stage: rows[stage] / paths.MADE for stage in sorted(chosen)}, "stage")
    for name, query in made.items():
        if query:
            connection.execute(f"create view {name} as {query}")
    _accounts(connection, root, ledgers | rows)
    if not tables(connection):
        raise UserError(f"{root}: nothing to query yet: run `touchstone run` first")
    for name, value in LOCKS.items():
        connection.execute(f"set {name} = {value if isinstance(value, bool | list) else repr(value)}")
    return connection


def tables(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Names of the views."""
    return sorted(name for (name,) in connection.execute("select table_name from information_schema.tables").fetchall())


def run(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """The result of one statement.

    Raises:
        UserError: the statement is wrong, or does something else than to read below data/; says what, and which views there are.
    """
    try:
        relation = connection.sql(query)
        return pa.table({}) if relation is None else relation.to_arrow_table()
    except duckdb.PermissionException as error:
        raise UserError(f"`{query.strip()}`: a query reads the views and '{SCHEME}FILE', and nothing else ({_first(error)})") from error
    except duckdb.Error as error:
        raise UserError(f"{_first(error)} (views: {', '.join(tables(connection))})") from error


def _first(error: duckdb.Error) -> str:
    """The line of a message that says what is wrong: of a Python traceback the last, else the first."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def _over(root: Path, where: Path, pattern: str, columns: dict[str, int]) -> str | None:
    """Query over the files at `where`, None where there are none."""
    target = root.resolve() / where
    if not (any(target.glob(pattern)) if pattern else target.is_file()):
        return None
    parts = "".join(f", regexp_replace(string_split(filename, '/')[-{place}], '\\.parquet$', '') as {name}" for name, place in columns.items())
    return f"select * exclude (filename){parts} from read_parquet('{_source(where / pattern)}', filename = true, union_by_name = true)"


def _union(root: Path, files: dict[str, Path], column: str) -> str | None:
    parts = [
        f"select *, '{name}' as {column} from read_parquet('{_source(path)}')"
        for name, path in files.items()
        if (root / path).is_file()
    ]
    return " union all by name ".join(parts) or None


def _accounts(connection: duckdb.DuckDBPyConnection, root: Path, ledgers: dict[str, Path]) -> None:
    """The tables `ledger` and `reasons`. ledgers: stage that refuses rows -> the folder with its account."""
    steps, reasons = [], []
    for stage, folder in ledgers.items():
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
    """The steps of a ledger; that of kind grade has one."""
    if "selected" not in account:
        return account.get("steps", [])
    kept = account["selected"]
    return [{"step": "grade", "input": account["input"], "kept": kept, "dropped": account["input"] - kept, "reasons": account["reasons"]}]


def _source(path: Path) -> str:
    """A file or pattern of paths.py as a statement names it."""
    return SCHEME + path.relative_to(DATA).as_posix()
