"""Every row of answer_rows.py: answers by kind of form, none of which a verdict may take for another."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from answer_rows import ROWS
from verifier_cases import problem

from pipelines.records import Outcome
from pipelines.verifiers import VerifierPool
from pipelines.verifiers.pool import begin


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(2) as shared:
        yield shared


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("expected", [True, False])
def test_rows_of_a_kind(pool: VerifierPool, kind: str, expected: bool) -> None:
    rows = ROWS[kind][not expected]
    responses = [answer[1:] if answer.startswith("^") else f"\\boxed{{{answer}}}" for _, answer in rows]
    verdicts = pool.verify_batch([(problem(gold), response) for (gold, _), response in zip(rows, responses, strict=True)])
    other = [(*row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if verdict.correct is not expected]
    assert not other
    assert {verdict.outcome for verdict in verdicts} <= {Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSABLE}


REPEATED = (" ", "\\ ", "\\,", "~", "{", "}", "$", "<answer>", "[[", "[[A ", "\\boxed{", "\\boxed{4} ", "\\underline{", "\\phantom{", "\\text{ ", "^ ", "x = ", "or ", ", ", "]a,", "|", "\\mid ", "\\\\")
"""What patterns may stumble over, many times in a row."""


@pytest.mark.parametrize("around", ["{}", "\\boxed{{5}}{}", "\\boxed{{{}}}", "<answer>5{}</answer>", "5{}"])
def test_forms_are_read_in_linear_time(pool: VerifierPool, around: str) -> None:
    """A hundred thousand characters of anything: what is not read at once (an answer has at most 2,000) is passed over once."""
    pairs = [(problem("(1, 2)", verifier), around.format(each * (100_000 // len(each)))) for each in REPEATED for verifier in ("math", "exact", "logic")]
    pairs += [(problem("A", "choice"), response) for _, response in pairs[::3]]
    pairs += [(problem("(1, 2)"), around.format(each * (1_900 // len(each)))) for each in REPEATED]
    started = time.process_time()
    for each, response in pairs:
        begin(each, response)
    assert (time.process_time() - started) / len(pairs) < 0.1
