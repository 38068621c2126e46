"""Rows of JSONL and Parquet files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import row_files
from pipelines.errors import UserError

TURNS = [[{"role": "user", "content": "a"}, {"role": "tool", "content": "b", "name": "add"}], [{"role": "user", "content": "c"}]]


def told(path: Path) -> list[tuple[int, object]]:
    return [(number, str(row) if isinstance(row, row_files.Malformed) else row) for number, row in row_files.rows(path)]


def test_a_line_that_is_no_object_is_told_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'[1]\n\n{"a": "\xff"}\n{\n' + b"[" * 100_000 + b"\n")
    first, bytes_, torn, deep = told(path)
    assert first == (1, "expected an object, got list") and bytes_ == (3, {"a": "\ufffd"})
    assert torn == (4, "not JSON: Expecting property name enclosed in double quotes")
    assert deep[0] == 5 and str(deep[1]).startswith("not JSON")
    assert row_files.first(path) == {"a": "\ufffd"}


def test_a_row_of_parquet_has_no_key_that_only_others_have(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"messages": TURNS, "weight": [None, 2.0]}), path)
    assert told(path) == [(1, {"messages": TURNS[0]}), (2, {"messages": TURNS[1], "weight": 2.0})]
    assert [row for _, row in row_files.rows(path, ["weight"])] == [{}, {"weight": 2.0}]
    assert list(row_files.first(path)) == ["messages", "weight"]


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    for read in (row_files.first, lambda path: list(row_files.rows(path))):
        with pytest.raises(UserError, match=f"{name}: no such file"):
            read(tmp_path / name)
