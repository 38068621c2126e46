"""Every row of answer_rows.py: answers by kind of form, none of which a verdict may take for another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from answer_rows import ROWS
from verifier_cases import problem

from pipelines.records import Outcome
from pipelines.verifiers import VerifierPool


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
