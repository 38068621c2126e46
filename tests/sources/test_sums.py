"""Generated sums: what they say is right, and their worked line is one that the verifier takes."""

import json
from collections import Counter
from pathlib import Path

import pytest

from pipelines.config.sources import SumsSource
from pipelines.errors import UserError
from pipelines.records import Outcome, Problem
from pipelines.sources import sums
from pipelines.verifiers import verify

SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}


def made(**settings) -> list[Problem]:
    return list(sums.problems(SumsSource(kind="sums", **settings), 1, "drill", Path()))


def test_every_sum_is_right_and_its_line_is_taken():
    problems = made(count=300, digits={1: 1, 2: 1, 3: 1}, verifier_args={"form": "number"})
    assert len({p.prompt for p in problems}) == 300 and {p.domain for p in problems} == {"sums"}
    for p in problems:
        left, sign, right, equals, result = (p.solution or "").split()
        operation, digits = p.topics[0], int(p.difficulty or 0)
        a, b, c = int(left), int(right), int(result)
        assert sign == SIGNS[operation] and equals == "=" and result == p.answer and f"{left} {sign} {right}" in p.prompt
        assert c == {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign] and c >= 0 and (sign != "/" or a % b == 0)
        assert sign == "/" or digits == max(len(left), len(right)) or (digits, sign) == (1, "*"), p.solution
        assert verify(p, f"{p.solution}\n#### {p.answer}").outcome == Outcome.CORRECT
        assert verify(p, f"#### {left} {sign} {right}").outcome != Outcome.CORRECT
        assert json.loads(p.verifier_args) == {"form": "number"}
    assert len(Counter(p.topics[0] for p in problems)) == 4


def test_the_knobs():
    problems = made(count=100, digits={3: 1.0}, operations={"subtract": 1.0})
    assert {p.topics for p in problems} == {("subtract", "3 digits")} and {p.difficulty for p in problems} == {3.0}
    assert made(count=100, digits={3: 1.0}, operations={"subtract": 1.0}) == problems
    with pytest.raises(UserError, match=r"'drill' found only \d+ distinct problems of 500 at levels \[1\]; ask for fewer"):
        made(count=500, digits={1: 1.0}, operations={"add": 1.0})
