"""Exact sums: integers and decimals, + - * / and brackets, bounded in size."""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 200
"""Characters of an expression."""
DEEPEST = 20
"""Brackets and signs within each other."""
LARGEST = Fraction(10**40)
_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]+)?|\.[0-9]+)|([-+*/()]))", re.ASCII)


def calculate(expression: str) -> str:
    """The value, exact where it has at most ten decimals, else rounded to them.

    Raises:
        ValueError: no such expression, or one beyond the bounds; says which.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters, at most {LONGEST} are read")
    return _written(_Sum(_tokens(expression.replace("×", "*").replace("÷", "/"))).value())


def _tokens(text: str) -> list[str]:
    found, place = [], 0
    while place < len(text.rstrip()):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"cannot read {text[place:].strip()[:1]!r}: numbers, + - * / and brackets are known")
        found.append(match[1] or match[2])
        place = match.end()
    return found


class _Sum:
    """Recursive descent over the tokens."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self._place = tokens, 0

    def value(self) -> Fraction:
        value = self._added(0)
        if self._place < len(self._tokens):
            raise ValueError(f"did not expect {self._tokens[self._place]!r}")
        return value

    def _next(self, *wanted: str) -> str | None:
        token = self._tokens[self._place] if self._place < len(self._tokens) else None
        if token in wanted:
            self._place += 1
            return token
        return None

    def _added(self, depth: int) -> Fraction:
        value = self._multiplied(depth)
        while sign := self._next("+", "-"):
            other = self._multiplied(depth)
            value = _bounded(value + other if sign == "+" else value - other)
        return value

    def _multiplied(self, depth: int) -> Fraction:
        value = self._single(depth)
        while sign := self._next("*", "/"):
            other = self._single(depth)
            if sign == "/" and not other:
                raise ValueError("division by zero")
            value = _bounded(value * other if sign == "*" else value / other)
        return value

    def _single(self, depth: int) -> Fraction:
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} brackets and signs within each other")
        if self._next("-"):
            return -self._single(depth + 1)
        if self._next("("):
            value = self._added(depth + 1)
            if not self._next(")"):
                raise ValueError("a bracket is never closed")
            return value
        if self._place >= len(self._tokens):
            raise ValueError("the expression ends where a number is expected")
        number = self._tokens[self._place]
        if number in "+*/)":
            raise ValueError(f"did not expect {number!r}")
        self._place += 1
        return _bounded(Fraction(number))


def _bounded(value: Fraction) -> Fraction:
    if abs(value) > LARGEST or value.denominator > LARGEST:
        raise ValueError("a number is too large")
    return value


def _written(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    rounded = round(value * 10**10)
    sign, digits = "-" if rounded < 0 else "", f"{abs(rounded):011d}"
    return f"{sign}{digits[:-10]}.{digits[-10:]}".rstrip("0").rstrip(".")
