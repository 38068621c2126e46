"""Validation errors as sentences: the key, what was expected, and the nearest valid key."""

from __future__ import annotations

import difflib
import re
import types
import typing
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipelines.errors import UserError

M = TypeVar("M", bound=BaseModel)


def check(model: type[M], content: object, where: str) -> M:
    """Validate `content` as `model`; `where` starts every message."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {_sentence(model, details)}" for details in error.errors())) from None


def _sentence(model: type[BaseModel], details: Any) -> str:
    """One error of pydantic as one clear sentence."""
    path = [part for part in details["loc"] if part != "[key]"]
    key = ".".join(str(part) for part in _without_tags(model, path))
    if details["type"] == "extra_forbidden":
        known = _keys(model, path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.0)
        return f"unknown key '{key}'; did you mean '{near[0]}'?" if near else f"unknown key '{key}'"
    if details["type"] == "missing":
        return f"key '{key}' is missing"
    message = details["msg"].removeprefix("Value error, ")
    if not key:
        return message
    if details["type"] == "value_error":
        return f"{key}.{message}" if re.match(r"[\w.]+: ", message) else f"{key}: {message}"
    if details["type"] == "union_tag_invalid":
        given = str(details["ctx"]["tag"])
        known = re.findall(r"'([^']*)'", details["ctx"]["expected_tags"])
        near = difflib.get_close_matches(given, known, n=1, cutoff=0.0)[0]
        return f"{key}.kind: '{given}' is none of {', '.join(known)}; did you mean '{near}'?"
    return f"{key}: {message[0].lower() + message[1:]}, got {details['input']!r}"


def _without_tags(model: Any, path: list[Any]) -> list[Any]:
    """The path as users write it: pydantic puts the tag of a discriminated union ("arithmetic") in, too."""
    kept = []
    for part in path:
        kept += [] if isinstance(_unwrap(model), list) else [part]
        model = _below(model, part)
    return kept


def _keys(model: Any, path: list[Any]) -> list[str]:
    """Valid keys at `path` below `model`, found by walking the annotations."""
    for part in path:
        model = _below(model, part)
    model = _unwrap(model)
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
