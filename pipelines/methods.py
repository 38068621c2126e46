"""A method is a function, its keyword-only arguments are its settings: name + settings -> function, with clear errors.

Families are plain dicts (name -> function). `bind` checks a row of params.yaml or recipes.yaml against the signature, so
that a misspelt setting is found before anything runs.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipelines.errors import UserError

T = TypeVar("T")


def bind(kind: str, family: Mapping[str, Callable[..., Any]], name: str, settings: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """The function called `name` with its keyword-only settings filled in.

    Raises:
        UserError: no such name or setting (names the nearest), a value of another type, or a setting without default is missing.
    """
    function = choose(kind, family, name)
    known = settings_of(function)
    for key in settings or {}:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            hint = f"; did you mean '{near[0]}'?" if near else "; it takes none"
            raise UserError(f"{kind} '{name}': unknown setting '{key}'{hint}")
    types = typing.get_type_hints(function)
    for key, value in (settings or {}).items():
        try:
            TypeAdapter(types[key]).validate_python(value)
        except ValidationError:
            raise UserError(f"{kind} '{name}': setting '{key}': expected {inspect.formatannotation(types[key])}, got {value!r}") from None
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in (settings or {}):
            raise UserError(f"{kind} '{name}': setting '{key}' is missing")
    return functools.partial(function, **(settings or {}))


def choose(kind: str, family: Mapping[str, T], name: str) -> T:
    """The member called `name`.

    Raises:
        UserError: there is none; names the nearest and all.
    """
    if name not in family:
        near = difflib.get_close_matches(name, family, n=1, cutoff=0.0)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise UserError(f"{kind}: there is no '{name}'{hint} Known: {', '.join(sorted(family))}")
    return family[name]


def settings_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a method."""
    return {name: p for name, p in inspect.signature(function).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
