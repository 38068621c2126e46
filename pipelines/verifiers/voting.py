"""Answers in parties of equal value, for majorities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pipelines.records import Problem, Verdict
from pipelines.verifiers.audit import gold_response
from pipelines.verifiers.pool import verify_batch
from pipelines.verifiers.text import boxed, final_text

COMPARING = ("math", "exact", "choice")
"""Verifiers that can say of any two answers whether they are equal; under others answers are equal where their texts are."""
Judge = Callable[[Sequence[tuple[Problem, str]]], list[Verdict]]


def equal_answers(groups: Sequence[tuple[Problem, Sequence[str]]], judge: Judge = verify_batch) -> list[list[int]]:
    """For every answer of every problem, the place of the first answer that the problem's verifier holds for equal to it.

    In each round the first answer of a problem that has no party opens one, and all others without party are judged with it as gold.
    """
    texts = [list(dict.fromkeys(answer.strip() for answer in answers)) for _, answers in groups]
    leaders: list[dict[str, str]] = [{} for _ in groups]
    waiting = [list(distinct) for distinct in texts]
    while any(waiting):
        asked: list[tuple[int, str, str]] = []
        for i, ((problem, _), left) in enumerate(zip(groups, waiting, strict=True)):
            if left:
                leader, *others = left
                leaders[i][leader] = leader
                asked += [(i, leader, other) for other in others if problem.verifier in COMPARING]
                left[:] = others
        golds = [(replace(groups[i][0], answer=leader), replace(groups[i][0], answer=other)) for i, leader, other in asked]
        verdicts = judge([(gold, gold_response(response)) for gold, response in golds])
        for (i, leader, other), verdict in zip(asked, verdicts, strict=True):
            if verdict.correct:
                leaders[i][other] = leader
                waiting[i].remove(other)
    first = [{text: [a.strip() for a in answers].index(text) for text in distinct} for (_, answers), distinct in zip(groups, texts, strict=True)]
    return [[first[i][leaders[i][answer.strip()]] for answer in answers] for i, (_, answers) in enumerate(groups)]


def parties(problem: Problem, answers: Sequence[str]) -> list[list[str]]:
    """Answers that the problem's verifier holds for equal, party by party, the largest first and of equal ones the earlier."""
    found: dict[int, list[str]] = {}
    for answer, leader in zip(answers, equal_answers([(problem, answers)])[0], strict=True):
        found.setdefault(leader, []).append(answer)
    return sorted(found.values(), key=len, reverse=True)


def boxed_answer(response: str | None) -> str | None:
    """The boxed answer of a response, None for none."""
    return (boxed(final_text(response) or "") if response is not None else None) or None
