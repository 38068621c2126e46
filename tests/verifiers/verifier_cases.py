"""Builders shared by the verifier tests."""

from __future__ import annotations

import json
from typing import Any

from pipelines.records import Problem, problem_id


def problem(answer: str, verifier: str = "math", **arguments: Any) -> Problem:
    return Problem(problem_id(f"{verifier} {arguments}", answer), "math", "prompt", answer, "expression", verifier, json.dumps(arguments))


def fenced(source: str) -> str:
    return f"Here it is.\n```python\n{source}\n```\n"


def increment(*expected: Any, **arguments: Any) -> Problem:
    """A code problem: f(0), f(1), ... must be the expected values."""
    tests = [{"args": [index], "expected": value} for index, value in enumerate(expected)]
    return problem("def f(x):\n    return x + 1", "code", entry_point="f", tests=tests, **arguments)
