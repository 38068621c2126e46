"""Validation errors as sentences: the key, what was expected, and the nearest valid key."""

from __future__ import annotations

import copy
import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipelines.errors import UserError

M = TypeVar("M", bound=BaseModel)


def check(model: type[M], content: object, where: str) -> M:
    """Validate `content` as `model`; `where` starts every message."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {sentence}" for sentence in _sentences(model, error))) from None


def examine(model: type[M], content: object) -> tuple[M | None, list[str]]:
    """`content` as `model`, and a sentence for each error in it.

    Settings that do not hold are left to their defaults, so that the others can be judged; None where more than a setting is wrong: an
    entry that others may name, or something that is missing.
    """
    rest, told = copy.deepcopy(content), list[str]()
    while True:
        try:
            return model.model_validate(rest), told
        except ValidationError as error:
            if told and any(details["type"] == "missing" for details in error.errors()):
                return None, told  # what was left out above has no default
            told += _sentences(model, error)
            left_out = [_left_out(model, rest, details["loc"]) for details in error.errors()]
            if not all(left_out):
                return None, told


def nearest(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, with the known name that is nearest to `name`; empty where none is known."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.0)
    return f"; did you mean '{near[0]}'?" if near else ""


def _left_out(model: Any, content: Any, place: tuple[Any, ...]) -> bool:
    """Delete the innermost setting of a section that holds what an error is about; False where there is none, or an entry would go with it."""
    setting: tuple[dict[Any, Any], Any] | None = None
    for part in place:
        annotation, model = _unwrap(model), _below(model, part)
        if isinstance(annotation, list):
            continue  # a tag, which users do not write
        if not isinstance(content, dict):
            break
        if part not in content:
            return False
        if _keys(annotation, []):
            setting = content, part
        elif isinstance(annotation, dict) and (isinstance(_unwrap(model), list) or _keys(model, [])):
            setting = None  # a whole entry, such as a source or a stage, which others name
        content = content[part]
    if setting is None:
        return False
    setting[0].pop(setting[1], None)  # another error may have been about the same
    return True


def _sentences(model: type[BaseModel], error: ValidationError) -> Iterator[str]:
    """Every error as a clear sentence; a validator of ours may have raised several, one a line."""
    for details in error.errors():
        messages = details["msg"].removeprefix("Value error, ").split("\n") if details["type"] == "value_error" else [details["msg"]]
        yield from (_sentence(model, details, message) for message in messages)


def _sentence(model: type[BaseModel], details: Any, message: str) -> str:
    """One error of pydantic as one clear sentence."""
    path = [part for part in details["loc"] if part != "[key]"]
    key = ".".join(str(part) for part in _without_tags(model, path))
    if details["type"] == "extra_forbidden":
        return f"unknown key '{key}'{nearest(path[-1], _keys(model, path[:-1]))}"
    if details["type"] == "missing":
        return f"key '{key}' is missing"
    if details["type"] == "union_tag_not_found":
        kinds = [kind for member in _at(model, path) for kind in typing.get_args(member.model_fields["kind"].annotation)]
        return f"key '{key}.kind' is missing; choose one of {', '.join(kinds)}"
    if not key:
        return message
    if details["type"] == "value_error":
        return f"{key}.{message}" if re.match(r"[\w.]+: ", message) else f"{key}: {message}"
    if details["type"] == "union_tag_invalid":
        given = str(details["ctx"]["tag"])
        known = re.findall(r"'([^']*)'", details["ctx"]["expected_tags"])
        return f"{key}.kind: '{given}' is none of {', '.join(known)}{nearest(given, known)}"
    near = nearest(details["input"], re.findall(r"'([^']*)'", details["ctx"]["expected"])) if details["type"] == "literal_error" else ""
    return f"{key}: {message[0].lower() + message[1:]}, got {details['input']!r}{near}"


def _without_tags(model: Any, path: list[Any]) -> list[Any]:
    """The path as users write it: pydantic puts the tag of a discriminated union ("arithmetic") in, too."""
    kept = []
    for part in path:
        kept += [] if isinstance(_unwrap(model), list) else [part]
        model = _below(model, part)
    return kept


def _at(model: Any, path: list[Any]) -> Any:
    """What stands at `path` below `model`, found by walking the annotations: a section, a list of those that may stand there, or else."""
    for part in path:
        model = _below(model, part)
    return _unwrap(model)


def _keys(model: Any, path: list[Any]) -> list[str]:
    """Valid keys at `path` below `model`."""
    model = _at(model, path)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _below(model: Any, part: Any) -> Any:
    """What stands under `part` of an annotation: a field, the values of a mapping, or the member of a union with that tag; else None."""
    model = _unwrap(model)
    if isinstance(model, list):
        return next((member for member in model if part in typing.get_args(member.model_fields["kind"].annotation)), None)
    if isinstance(model, dict):
        return model["value"]
    if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
        return model.model_fields[part].annotation
    return None


def _unwrap(annotation: Any) -> Any:
    """Optional[X] -> X, Annotated[X, ...] -> X, dict[K, V] -> {"value": V}, a union of sections -> list of them."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _unwrap(typing.get_args(annotation)[0])
    if origin is dict:
        return {"value": typing.get_args(annotation)[1]}
    args = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
    if origin in (typing.Union, types.UnionType):
        return _unwrap(args[0]) if len(args) == 1 else args if all(hasattr(arg, "model_fields") for arg in args) else None
    return annotation
