"""What came of a program, as four classes that a critic can tell apart (CodeRL, arXiv 2207.01780)."""

from __future__ import annotations

import re

from pipelines.records import Outcome

COMPILE_ERROR, RUNTIME_ERROR, FAILED_TEST, PASSED = range(4)
CLASSES = 4
_COMPILING = re.compile(r"\b(?:Syntax|Indentation|Tab)Error\b")


def class_of(outcome: str, detail: str) -> int:
    """The class of a verdict on a response, by what it says of the reason. A response without a program is a compile error, one that takes too long a
    runtime error."""
    if outcome == Outcome.CORRECT:
        return PASSED
    if outcome == Outcome.WRONG:
        return FAILED_TEST
    return COMPILE_ERROR if outcome == Outcome.UNPARSABLE or _COMPILING.search(detail) else RUNTIME_ERROR
