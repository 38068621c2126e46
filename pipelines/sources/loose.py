"""Files of loose rows, as people have them: which field is the prompt and which the answer is read off the first row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines import row_files
from pipelines.config import check
from pipelines.config.sources import FileSource
from pipelines.errors import UserError
from pipelines.records import Problem, problem_id
from pipelines.row_files import Malformed
from pipelines.sources import SOURCES, BadRow

PROMPT = ("prompt", "question", "problem", "text")
ANSWER = ("answer", "gold")
OTHERS = {"solution": ("solution",), "source_id": ("id", "source_id"), "topics": ("topics", "subject"), "verifier_args": ("verifier_args",)}
OTHERS |= {name: (name,) for name in ("domain", "verifier", "answer_type", "licence")}


def problem(row: dict[str, Any], *, answered: bool = True) -> Problem:
    """A Problem from a loose row: `answer` or `gold`; prompt, verifier and verifier_args where they are given.

    Raises:
        Malformed: there is no answer although it must be `answered`.
    """
    answer = row_files.value(row, *ANSWER) if answered else next((row[key] for key in ANSWER if key in row), "")
    if not isinstance(answer, str | int | float):
        raise Malformed(f"expected `gold` or `answer` to be a string or number, got {answer!r}")
    prompt = next((str(row[key]) for key in PROMPT if key in row), "")
    args = row.get("verifier_args", {})
    return Problem(
        problem_id=problem_id(prompt, str(answer)),
        domain=str(row.get("domain", "math")),
        prompt=prompt,
        answer=str(answer),
        answer_type=str(row.get("answer_type", "expression")),
        verifier=str(row.get("verifier", "math")),
        verifier_args=args if isinstance(args, str) else json.dumps(args),
        source_id=str(row.get("id", row.get("source_id", ""))),
    )


def read(path: Path, given: Mapping[str, Any] | None = None) -> tuple[list[Problem], list[BadRow]]:
    """Problems and malformed rows of a JSONL or Parquet file.

    given: settings of the source (FileSource) that say more than the first row does. Its `fields` stand before those found, and with
    kind `huggingface` the path is a folder or hub id of a dataset.

    Raises:
        UserError: no such file or dataset, an unknown kind of file, or a first row without a prompt or an answer.
    """
    where = str(path.resolve()) if path.exists() or not given or given.get("kind") != "huggingface" else str(path)
    placeholder = {"prompt": PROMPT[0], "answer": ANSWER[0]}
    source = check(FileSource, {"kind": "file", "path": where, **(given or {}), "fields": placeholder}, str(path))
    first = _first(path, source)
    fields = {"prompt": PROMPT, "answer": ANSWER} | OTHERS
    mapping = {name: key for name, keys in fields.items() if (key := next((key for key in keys if key in first), None))}
    mapping |= (given or {}).get("fields", {})
    for name in ("prompt", "answer"):
        if name not in mapping:
            raise UserError(f"{path}: its first row has no field {' or '.join(fields[name])}; it has {', '.join(first) or 'none'}")
    problems, bad = [], []
    for row in SOURCES[source.kind](source.model_copy(update={"fields": mapping}), 0, path.stem, Path("/")):
        (bad if isinstance(row, BadRow) else problems).append(row)  # type: ignore[arg-type]
    return problems, bad


def _first(path: Path, source: FileSource) -> dict[str, Any]:
    """The first row that is an object."""
    if source.kind == "huggingface":
        from pipelines.sources.files import dataset

        return next(iter(dataset(source, Path(source.path), path.stem)), {})
    return row_files.first(path)
