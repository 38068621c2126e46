"""Rows of files as people have them: JSONL, an object a line, and Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

BATCH = 1024
"""Rows of a Parquet file in memory at once."""


class Malformed(Exception):
    """A row that cannot be used; the text says why."""


def rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, Any] | Malformed]]:
    """Number, from 1, and content of each row of a Parquet file, of these columns alone where they are given; of any other file `lines`.

    Parquet gives each of a list's mappings the keys of all others: values that are null are left out.

    Raises:
        UserError: no such file.
    """
    if path.suffix != ".parquet":
        yield from lines(path)
        return
    import pyarrow.parquet as pq

    _require(path)
    number = 0
    for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=columns):
        for row in batch.to_pylist():
            number += 1
            yield number, _without_null(row)


def lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | Malformed]]:
    """Line number and object of each line of a JSONL file, or what is wrong with the line.

    Raises:
        UserError: no such file.
    """
    _require(path)
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _object(line)


def first(path: Path) -> dict[str, Any]:
    """The first line that is an object, {} where none is; of a Parquet file its columns, without values.

    Raises:
        UserError: no such file.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        _require(path)
        return dict.fromkeys(pq.read_schema(path).names)
    return next((row for _, row in lines(path) if isinstance(row, dict)), {})


def value(row: Mapping[str, Any], *keys: str) -> Any:
    """What stands under the first of these keys that is there.

    Raises:
        Malformed: none of them is there, or it is null.
    """
    found = next((row[key] for key in keys if row.get(key) is not None), None)
    if found is None:
        raise Malformed(f"key {' or '.join(map(repr, keys))} is {'null' if any(key in row for key in keys) else 'missing'}")
    return found


def _require(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: no such file")


def _object(line: str) -> dict[str, Any] | Malformed:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return Malformed(f"not JSON: {error.msg}")
    except (RecursionError, ValueError):
        return Malformed("not JSON: nested too deeply or a number too long")
    return row if isinstance(row, dict) else Malformed(f"expected an object, got {type(row).__name__}")


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(each) for key, each in value.items() if each is not None}
    return [_without_null(each) for each in value] if isinstance(value, list) else value
