"""Sums of two whole numbers with their worked line: practice for a model that sets a word problem up rightly and then miscalculates.

    What is 34 + 35?      34 + 35 = 69
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np

from pipelines import seeding
from pipelines.config.sources import SumsSource
from pipelines.records import Problem
from pipelines.sources.drawing import distinct, whole_number

DOMAIN = "sums"
REQUESTS = ("What is {sum}?", "Work out {sum}.", "How many is {sum}?")


def problems(settings: SumsSource, seed: int, name: str, root: Path) -> Iterator[Problem]:
    """`settings.count` distinct problems, the same for the same (seed, name).

    Raises:
        UserError: the digits asked for do not hold that many distinct sums.
    """
    rng = seeding.generator(seed, "sums", name)
    drawn = distinct(rng, settings.count, settings.digits, settings.operations, name, itemgetter(0), request)
    for position, digits, operation, said in drawn:
        topics = (operation, f"{digits} digits")
        yield whole_number(name, position, said, domain=DOMAIN, level=digits, topics=topics, verifier_args=settings.verifier_args)


def request(rng: np.random.Generator, digits: int, operation: str) -> tuple[str, str, str]:
    """One sum: (prompt, answer, worked solution). One number has `digits` digits, the other at most as many; factors and divisors are from 2 to 12;
    what is divided is the nearest multiple below, and at least twice the divisor."""
    first = int(rng.integers(max(2, 10 ** (digits - 1)), 10**digits))
    small = int(rng.integers(2, 13))
    if operation == "multiply":
        left, right = (first, small) if rng.random() < 0.5 else (small, first)
        symbol, result = "*", first * small
    elif operation == "divide":
        result = max(2, first // small)
        left, symbol, right = result * small, "/", small
    else:
        second = int(rng.integers(2, 10**digits))
        if operation == "subtract":
            left, symbol, right = max(first, second), "-", min(first, second)
            result = left - right
        else:
            left, symbol, right, result = first, "+", second, first + second
    worked = f"{left} {symbol} {right}"
    return REQUESTS[rng.integers(len(REQUESTS))].format(sum=worked), str(result), f"{worked} = {result}"
