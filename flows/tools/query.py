"""`touchstone query`: SQL over problems, ledgers, rollouts and samples."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

WIDTH = 60
"""Longest cell of the table for people; --format json gives all."""


def query(options: argparse.Namespace) -> int:
    from pipelines import views
    from tasks import settings

    connection = views.connect(settings.root())
    if options.sql is None:
        for name in views.tables(connection):
            columns = [row[0] for row in connection.execute(f"describe {name}").fetchall()]
            count = connection.execute(f"select count(*) from {name}").fetchall()[0][0]
            print(f"{name} ({count:,} rows): {', '.join(columns)}")
        return 0
    rows = views.run(connection, options.sql).to_pylist()
    if options.format == "json":
        for row in rows:
            print(json.dumps(row, ensure_ascii=False, default=str))
    else:
        _table(rows)
    return 0


def _table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print("no rows")
        return
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"({len(rows)} rows)" if len(rows) != 1 else "(1 row)", file=sys.stderr)


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
