"""Word problems with a difficulty knob: a short story in which a count is changed `level` times.

    Mia has 7 pears, buys 5, gives 3 away. How many pears does Mia have?

The chain of operations is the dependency graph of GSM-Infinite-style generators (arXiv 2512.07783) in its simplest form:
depth (the level) and surface (people, things, verbs) vary independently. Every solution is right, but they are written
in one of several styles, as text in the wild is ('Echo Chamber', arXiv 2504.07912):

    steps   7 + 5 = 12, 12 - 3 = 9     every result written down
    terse   7 + 5 - 3 = 9              the whole chain at once, results kept in the head
    direct  (nothing)                  the answer only
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np

from pipelines import seeding
from pipelines.config.sources import ArithmeticSource
from pipelines.records import Problem
from pipelines.sources.drawing import distinct, whole_number

DOMAIN = "math"
NAMES = ("Mia", "Omar", "Lena", "Ivan", "Ruth", "Paul", "Nina", "Hugo", "Aiko", "Samir", "Clara", "Felix", "Dora", "Jonas", "Priya", "Marco")
THINGS = ("pears", "coins", "books", "shells", "stamps", "cards", "plums", "stones", "keys", "cups", "pens", "rings", "nuts", "boxes", "maps", "figs")
ADD = ("buys {n}", "finds {n}", "wins {n}", "gets {n} more")
SUBTRACT = ("loses {n}", "sells {n}", "drops {n}", "gives {n} away")
DOUBLE = ("doubles them", "gets as many again")
QUESTIONS = ("How many {things} does {name} have?", "How many {things} are there now?", "How many {things} is that?")


def problems(settings: ArithmeticSource, seed: int, name: str, root: Path) -> Iterator[Problem]:
    """`settings.count` distinct problems, the same for the same (seed, name).

    Raises:
        UserError: the levels asked for do not hold that many distinct stories.
    """
    rng = seeding.generator(seed, "arithmetic", name)
    told = functools.partial(story, largest=settings.largest)
    for position, level, _, said in distinct(rng, settings.count, settings.levels, settings.styles, name, itemgetter(0), told):
        topics = ("word problem", f"level {level}")
        yield whole_number(name, position, said, domain=DOMAIN, level=level, topics=topics, verifier_args={"require_boxed": True})


def story(rng: np.random.Generator, level: int, style: str, largest: int = 20) -> tuple[str, str, str]:
    """One story of `level` operations, in which no count exceeds `largest`: (prompt, answer, worked solution in `style`)."""
    name, things = NAMES[rng.integers(len(NAMES))], THINGS[rng.integers(len(THINGS))]
    count = int(rng.integers(2, largest // 2))
    clauses = [f"{name} has {count} {things}"]
    expression, steps = str(count), []
    for _ in range(level):
        templates, symbol, n = _operation(rng, count, largest)
        after = {"+": count + n, "-": count - n, "*": count * n}[symbol]
        clauses.append(templates[rng.integers(len(templates))].format(n=n))
        steps.append(f"{count} {symbol} {n} = {after}")
        expression = f"({expression}) * {n}" if symbol == "*" and not expression.isdigit() else f"{expression} {symbol} {n}"
        count = after
    question = QUESTIONS[rng.integers(len(QUESTIONS))].format(name=name, things=things)
    return f"{', '.join(clauses)}. {question}", str(count), {"steps": ", ".join(steps), "terse": f"{expression} = {count}", "direct": ""}[style]


def _operation(rng: np.random.Generator, count: int, largest: int) -> tuple[tuple[str, ...], str, int]:
    """Templates, symbol and operand (at least 2: no plural to mend) of a change that keeps the count within [0, largest]."""
    possible = [(ADD, "+")] * 2 * (count + 2 <= largest) + [(SUBTRACT, "-")] * 2 * (count >= 2) + [(DOUBLE, "*")] * (1 <= count <= largest // 2)
    templates, symbol = possible[rng.integers(len(possible))]
    once = largest // 2 - 1
    most = {"+": min(once, largest - count), "-": min(once, count), "*": 2}[symbol]
    return templates, symbol, 2 if symbol == "*" else int(rng.integers(2, most + 1))
