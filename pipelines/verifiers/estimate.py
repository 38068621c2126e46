r"""About how much: the value of a constant such as `2\sqrt{3} - \frac{\pi}{2}` in floating point, for questions of order and size.

Never decides that two values are equal: that is arithmetic.py's and the symbolic engine's.
"""

from __future__ import annotations

import math
import re

from pipelines.verifiers.notation import latex, squeeze

MAX_LENGTH = 200
MAX_DEPTH = 20
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\\(?:frac|sqrt|pi|infty|cdot|times|div)(?![a-z])|[-+*/^(){}e]")
_BRACKETS = {"(": ")", "{": "}"}
_CONSTANTS = {"\\pi": math.pi, "e": math.e, "\\infty": math.inf}
_PRODUCT = ("\\cdot", "\\times", "*")


def estimate(text: str) -> float | None:
    r"""The value of a constant made of numbers, + - * / ^, \frac, \sqrt, \pi, e and \infty; None for anything else."""
    text = squeeze(latex(text)) if len(text) <= MAX_LENGTH else ""
    tokens = _TOKEN.findall(text)
    if not tokens or "".join(tokens) != text:
        return None
    try:
        reader = _Reader(tokens)
        value = reader.sum(0)
    except (ValueError, IndexError, ZeroDivisionError, OverflowError):
        return None
    return value if reader.at == len(tokens) and not math.isnan(value) else None


class _Reader:
    """Recursive descent over the tokens; ValueError or IndexError where they are no constant."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    def take(self, *wanted: str) -> bool:
        found = self.at < len(self.tokens) and self.tokens[self.at] in wanted
        self.at += found
        return found

    def sum(self, depth: int) -> float:
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        sign = -1.0 if self.take("-") else 1.0
        self.take("+")
        total = sign * self.product(depth)
        while self.at < len(self.tokens) and self.tokens[self.at] in ("+", "-"):
            sign = -1.0 if self.tokens[self.at] == "-" else 1.0
            self.at += 1
            total += sign * self.product(depth)
        return total

    def product(self, depth: int) -> float:
        value = self.power(depth)
        while self.at < len(self.tokens) and self.tokens[self.at] not in ("+", "-", ")", "}"):
            if self.take("/", "\\div"):
                value /= self.power(depth)
            else:
                self.take(*_PRODUCT)
                value *= self.power(depth)
        return value

    def power(self, depth: int) -> float:
        base = self.atom(depth)
        if not self.take("^"):
            return base
        value = base ** (-self.atom(depth) if self.take("-") else self.atom(depth))
        if isinstance(value, complex):
            raise ValueError("no real number")
        return value

    def atom(self, depth: int) -> float:
        first = self.tokens[self.at]
        self.at += 1
        if first[0].isdigit() or first[0] == ".":
            return float(first)
        if first in _BRACKETS:
            value = self.sum(depth + 1)
            if not self.take(_BRACKETS[first]):
                raise ValueError("a bracket is not closed")
            return value
        if first == "\\frac":
            return self.atom(depth) / self.atom(depth)
        if first == "\\sqrt":
            return math.sqrt(self.atom(depth))
        if first not in _CONSTANTS:
            raise ValueError(f"no constant begins with {first}")
        return _CONSTANTS[first]
