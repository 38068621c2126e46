"""Requests for a short Python function, with hidden call tests.

    Write a function shift(x) that adds 3, then multiplies by 2, then subtracts 4.

The function applies `level` operations in order. Every gold program is right; they are written in one of several styles:

    statements  a plan, then one assignment per operation
    nested      the plan, then one nested expression: return (x + 3) * 2 - 4
    direct      no plan, and the expression multiplied out: return 2 * x + 2
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np

from pipelines import seeding
from pipelines.config.sources import FunctionsSource
from pipelines.records import Problem, problem_id
from pipelines.sources.drawing import distinct

DOMAIN = "code"
NAMES = ("f", "g", "h", "shift", "scale", "move", "solve", "change", "update", "step")
OPENINGS = (
    "Write a function {name}(x) that {chain}.",
    "Define {name}(x), which {chain}.",
    "We need {name}(x): it {chain}.",
)
VERBS = {"+": ("adds {n}", "increases it by {n}"), "-": ("subtracts {n}", "takes away {n}"), "*": ("multiplies by {n}", "scales it by {n}")}
ARGUMENTS = (0, 1, 2, 3, 7, 10, -1, -4, 25)
"""Values that every program is called with."""


def problems(settings: FunctionsSource, seed: int, name: str, root: Path) -> Iterator[Problem]:
    """`settings.count` distinct problems, the same for the same (seed, name).

    Raises:
        UserError: the levels asked for do not hold that many distinct requests.
    """
    rng = seeding.generator(seed, "functions", name)
    drawn = distinct(rng, settings.count, settings.levels, settings.styles, name, itemgetter(0), request)
    for position, level, style, (prompt, entry_point, operations) in drawn:
        program = write(entry_point, operations, style)
        tests = [{"args": [x], "expected": value(operations, x)} for x in ARGUMENTS]
        yield Problem(
            problem_id=problem_id(prompt, program),
            domain=DOMAIN,
            prompt=prompt,
            answer=program,
            answer_type="program",
            verifier="code",
            verifier_args=json.dumps({"entry_point": entry_point, "tests": tests, "time_limit": 2.0}),
            solution="" if style == "direct" else ", ".join(f"x {symbol} {n}" for symbol, n in operations),
            source=name,
            source_id=f"{name}/{position}",
            licence="generated",
            topics=("function", f"level {level}"),
            difficulty=float(level),
        )


def request(rng: np.random.Generator, level: int, style: str) -> tuple[str, str, list[tuple[str, int]]]:
    """One request of `level` operations, whatever the style of its program: (prompt, function name, operations as (symbol, operand))."""
    operations: list[tuple[str, int]] = []
    for _ in range(level):
        symbol = "+-*"[rng.integers(3)]
        operations.append((symbol, int(rng.integers(2, 10 if symbol != "*" else 6))))
    name = NAMES[rng.integers(len(NAMES))]
    chain = ", then ".join(VERBS[symbol][rng.integers(2)].format(n=n) for symbol, n in operations)
    return OPENINGS[rng.integers(len(OPENINGS))].format(name=name, chain=chain), name, operations


def value(operations: list[tuple[str, int]], x: int) -> int:
    """What the requested function returns for `x`."""
    for symbol, n in operations:
        x = {"+": x + n, "-": x - n, "*": x * n}[symbol]
    return x


def write(name: str, operations: list[tuple[str, int]], style: str) -> str:
    """A correct program in `style`."""
    if style == "statements":
        body = [f"    x = x {symbol} {n}" for symbol, n in operations]
        return "\n".join([f"def {name}(x):", *body, "    return x"])
    if style == "direct":
        offset = value(operations, 0)
        slope = value(operations, 1) - offset
        product = "x" if slope == 1 else f"{slope} * x"
        return f"def {name}(x):\n    return {product} {'-' if offset < 0 else '+'} {abs(offset)}"
    expression = "x"
    for position, (symbol, n) in enumerate(operations):
        loose = symbol == "*" and position > 0 and operations[position - 1][0] != "*"
        expression = f"({expression}) {symbol} {n}" if loose else f"{expression} {symbol} {n}"
    return f"def {name}(x):\n    return {expression}"
