"""The rows that a stage reads: which of what params name, and a record of them, so that lineage can answer which rows a stage has seen."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import paths, seeding
from pipelines.config.stage import Reading, Rows, Where
from pipelines.errors import UserError
from pipelines.records import PROBLEM_SCHEMA, Problem
from pipelines.sources import loose
from pipelines.stages import Context
from pipelines.store import problem_table, to_problems, write_table

SEEN = pa.schema([("problem_id", pa.string()), ("data", pa.string())])
"""data: the reference that the row came by."""


def read(context: Context, reading: Reading) -> list[Problem]:
    """The rows that a stage works on, written down as seen. See `select`."""
    found = select(context, reading)
    see(context, {reference: ids(table) for reference, table in found.items()})
    return [problem for table in found.values() for problem in to_problems(table)]


def ids(table: pa.Table) -> list[str]:
    """Of the problems of a table."""
    return table["problem_id"].to_pylist()


def see(context: Context, ids: Mapping[str, Sequence[str]]) -> None:
    """Write down which problems a stage has read. ids: reference -> problem ids."""
    if context.first:
        parts = [pa.table({"problem_id": list(found), "data": [reference] * len(found)}, schema=SEEN) for reference, found in ids.items()]
        write_table(context.root / paths.seen(context.stage), pa.concat_tables(parts))


def select(context: Context, reading: Reading, others: Collection[str] = ()) -> dict[str, pa.Table]:
    """Reference -> its rows that meet the conditions, each problem once, as many as the shares allow. others: references that are no rows of
    problems, and left out.

    Raises:
        UserError: a reference cannot be read, a condition is wrong, or no row is left; says what there was.
    """
    found: dict[str, pa.Table] = {}
    for reference, rows in reading.data.items():
        if reference in others:
            continue
        table = table_of(context.root, reference)
        for key, where in ((f"data.{reference}.where", rows.where), ("where", reading.where)):
            table = meeting(table, where, f"{context.stage}: {key}")
        found[reference] = table
    found = _mixed(_once(found), reading.data, context)
    if found and not sum(table.num_rows for table in found.values()):
        raise UserError(f"{context.stage}: no row is left of {', '.join(found)}; {_told(context.root, found)}")
    return found


def table_of(root: Path, reference: str) -> pa.Table:
    """The rows of one reference."""
    path = root / paths.rows(reference)
    if path.suffix == ".parquet" and path.is_file() and set(PROBLEM_SCHEMA.names) <= set(pq.read_schema(path).names):
        return pq.read_table(path, schema=PROBLEM_SCHEMA)
    problems, bad = loose.read(path)
    if bad:
        raise UserError(f"{reference}:{bad[0].line}: {bad[0].field}: {bad[0].reason}; a file that a stage reads must be read whole")
    return problem_table(problems)


def meeting(table: pa.Table, where: Where, key: str) -> pa.Table:
    """The rows that meet a condition."""
    for name in ("domain", "source"):
        if (wanted := getattr(where, name)) is not None:
            table = table.filter(pc.field(name).isin(list(wanted)))
    if where.topics is not None:
        table = table.filter(pa.array([bool(set(topics) & set(where.topics)) for topics in table["topics"].to_pylist()], pa.bool_()))
    if where.pass_rate is not None:
        low, high = where.pass_rate
        table = table.filter((pc.field("pass_rate") >= low) & (pc.field("pass_rate") <= high))
    return table if where.sql is None else _by_sql(table, where.sql, f"{key}.sql")


def _by_sql(table: pa.Table, condition: str, key: str) -> pa.Table:
    """The rows for which a condition in SQL holds. It sees these rows and nothing else: no file, no other table."""
    numbered = table.append_column("_row", pa.array(range(table.num_rows), pa.int64()))
    with duckdb.connect(config={"enable_external_access": False, "python_enable_replacements": False, "lock_configuration": True}) as database:
        try:
            rows = database.from_arrow(numbered).filter(condition).to_arrow_table()["_row"]
        except duckdb.Error as error:
            raise UserError(f"{key}: {str(error).splitlines()[0]} (columns: {', '.join(table.column_names)})") from None
    return table.take(pa.array(sorted(rows.to_pylist()), pa.int64()))


def _once(found: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Each problem where the first of the references, by the alphabet, has it."""
    first: dict[str, tuple[str, int]] = {}
    for reference, table in found.items():
        for row, problem in enumerate(ids(table)):
            first.setdefault(problem, (reference, row))
    places = set(first.values())
    return {reference: table.take(pa.array([row for row in range(table.num_rows) if (reference, row) in places], pa.int64()))
            for reference, table in found.items()}  # fmt: skip


def _mixed(found: dict[str, pa.Table], data: Mapping[str, Rows], context: Context) -> dict[str, pa.Table]:
    """As many rows as the shares allow, drawn by hash of their ids; without shares all."""
    shares = {reference: Fraction(rows.share) for reference, rows in data.items() if rows.share is not None}
    if not shares:
        return found
    total = min(found[reference].num_rows / share for reference, share in shares.items())
    mixed = {}
    for reference, table in found.items():
        of = ids(table)
        drawn = sorted(range(len(of)), key=lambda row, of=of: seeding.key(context.seed, "mix", context.stage, of[row]))  # type: ignore[misc]
        mixed[reference] = table.take(pa.array(sorted(drawn[: int(total * shares[reference])]), pa.int64()))
    return mixed


def _told(root: Path, references: Iterable[str]) -> str:
    """What there was before the conditions."""
    tables = {reference: table_of(root, reference) for reference in references}
    domains = sorted({domain for table in tables.values() for domain in table["domain"].unique().to_pylist()})
    counts = ", ".join(f"{table.num_rows} in {reference}" for reference, table in tables.items())
    return f"there were {counts}, of domains {', '.join(domains) or 'none'}"
