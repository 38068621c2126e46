"""Rows of a JSONL or Parquet file, or of a Hugging Face dataset (saved folder, folder of data files, hub id), streamed.

Line numbers count from 1: lines of the file for JSONL (blank ones count but are not rows), rows elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config.sources import FileSource
from pipelines.errors import UserError
from pipelines.records import Problem
from pipelines.sources.rows import RAW_CHARS, BadRow, check_mapping, to_problem

BATCH = 4096
LINES = (".jsonl", ".ndjson", ".json")


def problems(settings: FileSource, seed: int, name: str, root: Path) -> Iterator[Problem | BadRow]:
    """The rows in their order (`seed` is not needed), at most `settings.limit` of them, bad ones included.

    Raises:
        UserError: no such file or dataset, an unknown kind of file, a mapping that cannot be.
    """
    check_mapping(settings, name)
    reader = _hugging_face if settings.kind == "huggingface" else _file
    for taken, (line, row) in enumerate(reader(settings, root / settings.path, name)):
        if settings.limit is not None and taken >= settings.limit:
            return
        yield row if isinstance(row, BadRow) else to_problem(row, settings, name, line)


def _file(settings: FileSource, path: Path, name: str) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    if not path.is_file():
        raise UserError(f"sources: '{name}': {settings.path}: no such file")
    if path.suffix in LINES:
        return _json_lines(settings, path)
    if path.suffix == ".parquet":
        return _parquet(settings, path, name)
    raise UserError(f"sources: '{name}': {settings.path}: expected a file that ends in .parquet, {', '.join(LINES)}")


def _json_lines(settings: FileSource, path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if raw.strip():
                yield line, _decoded(settings.path, line, raw.rstrip(b"\r\n"))


def _decoded(file: str, line: int, raw: bytes) -> dict[str, Any] | BadRow:
    """A line of JSONL as an object, or what is wrong with it."""

    def bad(reason: str) -> BadRow:
        return BadRow(file, line, "", reason, raw.decode(errors="replace")[:RAW_CHARS])

    try:
        row = json.loads(raw.decode("utf-8-sig" if line == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        return bad(f"not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return bad(f"not JSON: {error.msg} at column {error.colno}")
    except (RecursionError, ValueError):  # nesting or a number beyond what the interpreter reads
        return bad("not JSON: nested too deeply or a number too long")
    return row if isinstance(row, dict) else bad(f"expected a JSON object, got {type(row).__name__}")


def _parquet(settings: FileSource, path: Path, name: str) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"sources: '{name}': {settings.path}: not a Parquet file: {str(error).splitlines()[0]}") from None
    wanted = {part.partition(".")[0] for part in settings.fields.values()} | set(settings.fields.values())
    columns = [column for column in file.schema_arrow.names if column in wanted]
    line = 0
    with file:
        for batch in file.iter_batches(BATCH, columns=columns):
            for row in batch.to_pylist():
                line += 1
                yield line, row


def _hugging_face(settings: FileSource, path: Path, name: str) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    yield from enumerate(dataset(settings, path, name), 1)


def hub_commit(settings: FileSource, name: str, root: Path) -> str | None:
    """The commit that the source's revision (default: the main branch) is now on the hub; None for what lies on this machine.

    Raises:
        UserError: no such dataset, or the hub cannot be reached.
    """
    if settings.kind != "huggingface" or (root / settings.path).exists():
        return None
    _check_id(settings, name)
    from huggingface_hub import HfApi

    with _hub_errors(settings, name):
        return HfApi().dataset_info(settings.path, revision=settings.revision).sha


def dataset(settings: FileSource, path: Path, name: str) -> Any:
    """The split as an iterable of rows; a local folder wins over a hub id of the same name."""
    if not path.exists():
        _check_id(settings, name)
    with _hub_errors(settings, name):
        import datasets  # only this kind of source needs it

        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            saved = datasets.load_from_disk(str(path))
            return _split(saved, settings.split, _where(settings, name)) if isinstance(saved, datasets.DatasetDict) else saved
        location = str(path) if path.exists() else settings.path
        return datasets.load_dataset(location, settings.name, split=settings.split, revision=settings.revision, streaming=True)


def _where(settings: FileSource, name: str) -> str:
    return f"sources: '{name}': {settings.path}"


def _check_id(settings: FileSource, name: str) -> None:
    """
    Raises:
        UserError: what is no folder cannot be the id of a dataset either.
    """
    if settings.path.startswith((".", "/", "~")) or settings.path.count("/") > 1:
        raise UserError(f"{_where(settings, name)}: no such folder")


@contextmanager
def _hub_errors(settings: FileSource, name: str) -> Iterator[None]:
    """What the block says of a dataset as a sentence for the user."""
    try:
        from datasets.exceptions import DatasetNotFoundError
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError
    except ImportError:
        raise UserError(f"sources: '{name}': kind huggingface needs the package 'datasets' (extra train)") from None
    try:
        yield
    except (DatasetNotFoundError, RepositoryNotFoundError):
        raise UserError(f"{_where(settings, name)}: no such dataset on the hub and no such folder") from None
    except (ConnectionError, HTTPError, HfHubHTTPError) as error:
        raise UserError(f"{_where(settings, name)}: cannot be read from the hub: {str(error).splitlines()[0]}") from None
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{_where(settings, name)}: {str(error).splitlines()[0]}") from None


def _split(saved: Any, split: str, where: str) -> Any:
    if split not in saved:
        raise UserError(f"{where}: there is no split '{split}'; it has {', '.join(saved)}")
    return saved[split]
