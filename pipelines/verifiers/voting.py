"""Answers in parties of equal value, for majorities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pipelines.records import Problem
from pipelines.verifiers.pool import verify_batch
from pipelines.verifiers.text import boxed, final_text


def parties(problem: Problem, answers: Iterable[str]) -> list[list[str]]:
    """Answers that the problem's verifier holds for equal, party by party, the largest first and of equal ones the earlier."""
    found: list[list[str]] = []
    for answer in answers:
        same = verify_batch([(replace(problem, answer=party[0]), f"\\boxed{{{answer}}}") for party in found])
        home = next((party for party, verdict in zip(found, same, strict=True) if verdict.correct), None)
        if home is None:
            found.append([answer])
        else:
            home.append(answer)
    return sorted(found, key=len, reverse=True)


def boxed_answer(response: str | None) -> str | None:
    """The boxed answer of a response, None for none."""
    return (boxed(final_text(response) or "") if response is not None else None) or None
