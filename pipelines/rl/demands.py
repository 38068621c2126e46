"""What a function of the data half says of itself, beside its definition: what it must be given, and how many answers it takes."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
Count = Callable[..., tuple[int, int]]
"""count(n, **settings): the least and the most that n answers to a problem become."""


class Need(enum.StrEnum):
    """What a method needs beside problems with verifiable answers and the policy; the value is what `touchstone methods --needs` takes."""

    SOLUTIONS = "solutions"
    """Worked solutions of the problems."""
    RATES = "rates"
    """Pass rates of the problems, as a stage of kind `grade` measures them."""
    POLICY = "policy"
    """Another policy in memory: a reference, a guide, or what the policy was."""
    TEACHER = "teacher"
    """Models that teach, or what they have said."""
    VALUE = "value"
    """A value head, which trains beside the policy or before it."""
    RUNS = "runs"
    """Other runs, which share a folder with it."""


_NEEDS: dict[Any, frozenset[Need]] = {}
_COUNTS: dict[Any, Count] = {}
_PASSES: dict[Any, frozenset[str]] = {}


def needs(*what: Need) -> Callable[[F], F]:
    """Say what a function or class of a slot must be given."""

    def say(function: F) -> F:
        _NEEDS[function] = frozenset(what)
        return function

    return say


def takes(count: Count) -> Callable[[F], F]:
    """Say how many answers a function of `explore` or `recompose` takes, where that is not as many as a group has."""

    def say(function: F) -> F:
        _COUNTS[function] = count
        return function

    return say


def passes(*what: str) -> Callable[[F], F]:
    """Say which forward passes beside the update's own a function of a slot asks for."""

    def say(function: F) -> F:
        _PASSES[function] = frozenset(what)
        return function

    return say


def passes_of(function: Callable[..., Any]) -> frozenset[str]:
    return _PASSES.get(function, frozenset())


def needs_of(function: Callable[..., Any]) -> frozenset[Need]:
    return _NEEDS.get(function, frozenset())


def _as_many(n: int, /, **_: object) -> tuple[int, int]:
    return n, n


def count_of(function: Callable[..., Any]) -> Count:
    return _COUNTS.get(function, _as_many)
