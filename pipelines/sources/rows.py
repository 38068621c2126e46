"""One row of somebody's dataset -> Problem, through the mapping of params.yaml: `fields: {field of Problem: field of the row}`.

    prompt: question              a field of the row
    answer: reward_model.truth    a nested one; a number indexes a list (prompt.0.content)
    verifier_args.tests: tests    one entry of the verifier's JSON settings
    topics.level: difficulty      the topic "level 3" for the value 3

A mathematical answer that ends in GSM8K's `#### 72` is what follows the mark. What does not fit is a BadRow with the field
and the reason, never an exception: one row must not end a run of many.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.config.sources import FileSource
from pipelines.errors import UserError
from pipelines.records import Problem, problem_id

_LAST_LINE = re.compile(r"\n####\s*(\S[^\n]*?)\s*\Z")
"""GSM8K's field `answer` holds the worked solution and then the answer itself: `#### 72`."""
RAW_CHARS = 2000
"""A bad row's text is kept up to here."""

FIELDS = ("prompt", "answer", "answer_type", "domain", "verifier", "verifier_args", "solution", "source_id", "licence", "topics", "difficulty")
"""Fields of Problem that a row can fill."""
PARTS = ("verifier_args", "topics")
"""Fields of which an entry can be mapped: `verifier_args.tests`."""


@dataclass(frozen=True)
class BadRow:
    """A row that is no problem: where it stands (1-based), the field at fault ("" for the whole row), why, and its text."""

    file: str
    line: int
    field: str
    reason: str
    raw: str


class _Unfit(Exception):
    """This field of this row cannot be used."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason


def check_mapping(settings: FileSource, name: str) -> None:
    """Refuse a mapping that names no field of Problem, or lacks prompt or answer.

    Raises:
        UserError: says which key of `fields`.
    """
    for key in settings.fields:
        whole, _, part = key.partition(".")
        if whole not in FIELDS or (part and whole not in PARTS):
            near = difflib.get_close_matches(whole, FIELDS, n=1, cutoff=0.0)
            raise UserError(f"sources: '{name}': fields has the unknown key '{key}'; did you mean '{near[0]}'? Known: {', '.join(FIELDS)}")
    for needed in ("prompt", "answer"):
        if needed not in settings.fields:
            raise UserError(f"sources: '{name}': fields must say which field of a row is the {needed}")


def to_problem(row: Mapping[str, Any], settings: FileSource, name: str, line: int) -> Problem | BadRow:
    """Map one decoded row; `line` is its 1-based position in the file."""
    try:
        return _problem(row, settings, name, line)
    except _Unfit as unfit:
        raw = json.dumps(row, ensure_ascii=False, default=str)[:RAW_CHARS]
        return BadRow(settings.path, line, unfit.field, unfit.reason, raw)


def _problem(row: Mapping[str, Any], settings: FileSource, name: str, line: int) -> Problem:
    fields = settings.fields

    def text(key: str, default: str) -> str:
        return _scalar(_value(row, fields[key]), fields[key]) if key in fields else default

    prompt = _filled(_value(row, fields["prompt"]), fields["prompt"])
    answer = _filled(_scalar(_value(row, fields["answer"]), fields["answer"]), fields["answer"])
    verifier = text("verifier", settings.verifier)
    if verifier == "math" and (last := _LAST_LINE.search(answer)):
        answer = last[1]
    return Problem(
        problem_id=problem_id(prompt, answer),
        domain=text("domain", settings.domain),
        prompt=prompt,
        answer=answer,
        answer_type=text("answer_type", settings.answer_type),
        verifier=verifier,
        verifier_args=_arguments(row, fields, settings.verifier_args),
        solution=_solution(row, fields),
        source=name,
        source_id=text("source_id", f"{name}/{line}"),
        licence=text("licence", settings.licence),
        topics=_topics(row, fields, settings.topics),
        difficulty=_number(_value(row, fields["difficulty"]), fields["difficulty"]) if "difficulty" in fields else None,
    )


def _value(row: Mapping[str, Any], path: str) -> Any:
    """The value at `path`: a key as it stands, else step by step at the dots."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise _Unfit(path, "missing field")
    return value


def _filled(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _Unfit(path, f"expected text, got {_kind(value)}")
    if not value.strip():
        raise _Unfit(path, "empty")
    return _scalar(value, path)


def _scalar(value: Any, path: str) -> str:
    """Text, or a number or truth value written the way a person would: 72 for 72.0."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Unfit(path, "half a surrogate pair, which is no text") from None
        return value
    if isinstance(value, bool | int):
        return str(value)
    if not isinstance(value, float):
        raise _Unfit(path, f"expected text or a number, got {_kind(value)}")
    number = _number(value, path)
    return str(int(number)) if number.is_integer() else repr(number)


def _number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < sys.float_info.max:
        raise _Unfit(path, f"expected a number, got {_kind(value)}")
    return float(value)


def _solution(row: Mapping[str, Any], fields: dict[str, str]) -> str | None:
    """Worked text. An empty or null one means not known, not "answered without working"."""
    if "solution" not in fields:
        return None
    value = _value(row, fields["solution"])
    return None if value is None or value == "" else _filled(value, fields["solution"])


def _topics(row: Mapping[str, Any], fields: dict[str, str], fixed: tuple[str, ...]) -> tuple[str, ...]:
    topics = list(fixed)
    for key, path in fields.items():
        whole, _, label = key.partition(".")
        if whole == "topics":
            value = _value(row, path)
            values = value if isinstance(value, list) else [value]
            topics += [f"{label} {_scalar(item, path)}".strip() for item in values]
    return tuple(topics)


def _arguments(row: Mapping[str, Any], fields: dict[str, str], fixed: Mapping[str, Any]) -> str:
    """The verifier's settings as JSON: from one field (an object or its JSON text), or entry by entry."""
    arguments: dict[str, Any] = dict(fixed)
    for key, path in fields.items():
        whole, _, entry = key.partition(".")
        if whole != "verifier_args":
            continue
        value = _value(row, path)
        if entry:
            arguments[entry] = value
            continue
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise _Unfit(path, f"not JSON: {error.msg}") from None
        if not isinstance(value, Mapping):
            raise _Unfit(path, f"expected a JSON object, got {_kind(value)}")
        arguments |= value
    try:
        return json.dumps(arguments, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _Unfit("verifier_args", f"cannot be JSON: {error}") from None


def _kind(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return {type(None): "null", bool: "true or false", str: "text", list: "a list", dict: "an object", int: "a number", float: "a number"}.get(
        type(value), type(value).__name__
    )
