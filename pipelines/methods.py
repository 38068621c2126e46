"""A method is a function, its keyword-only arguments are its settings: name + settings -> function, with clear errors.

Families are plain dicts (name -> function). `bind` checks a row of params.yaml or recipes.yaml against the signature, so
that a misspelt setting is found before anything runs.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipelines.config.checking import nearest
from pipelines.errors import UserError

T = TypeVar("T")


def bind(kind: str, family: Mapping[str, Callable[..., Any]], name: str, settings: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """The function called `name` with its keyword-only settings filled in.

    Raises:
        UserError: no such name or setting (names the nearest), a value of another type, or a setting without default is missing; a
            line for each.
    """
    function = choose(kind, family, name)
    told = list(_objections(function, settings or {}))
    if told:
        raise UserError("\n".join(f"{kind} '{name}': {each}" for each in told))
    return functools.partial(function, **(settings or {}))


def _objections(function: Callable[..., Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the settings of a method."""
    known, types = settings_of(function), typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)  # type: ignore[misc]
    for key, value in settings.items():
        if key not in known:
            yield f"unknown setting '{key}'{nearest(key, known) or '; it takes none'}"
            continue
        try:
            TypeAdapter(types[key]).validate_python(value)
        except ValidationError:
            yield f"setting '{key}': expected {inspect.formatannotation(types[key])}, got {value!r}"
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in settings:
            yield f"setting '{key}' is missing"


def choose(kind: str, family: Mapping[str, T], name: str) -> T:
    """The member called `name`.

    Raises:
        UserError: there is none; names the nearest and all.
    """
    if name not in family:
        raise UserError(f"{kind}: there is no '{name}'{nearest(name, family) or '.'} Known: {', '.join(sorted(family))}")
    return family[name]


def settings_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a method."""
    return {name: p for name, p in inspect.signature(function).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
