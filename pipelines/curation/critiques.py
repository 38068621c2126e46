"""Rows that ask whether a solution is right (Critique Fine-Tuning, arXiv 2501.17703): what a model has answered becomes a problem of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pipelines import seeding
from pipelines.records import POLICY, Dropped, Outcome, Problem, Trajectory, problem_id

RIGHT, WRONG = "right", "wrong"


def row(problem: Problem, solution: str, right: bool, instruction: str, generator: str) -> Problem:
    """A solution of a problem, with the verifier's verdict as the answer."""
    parts = {"problem": problem.prompt, "solution": solution}
    prompt = re.sub(r"\{(problem|solution)\}", lambda found: parts[found[1]], instruction)
    answer = RIGHT if right else WRONG
    return Problem(
        problem_id=problem_id(prompt, answer), domain=problem.domain, prompt=prompt, answer=answer, answer_type="text", verifier="exact",
        source=f"critique/{generator}", source_id=f"critique/{generator}/{problem.problem_id}", licence=problem.licence,
        parents=(problem.problem_id,), topics=problem.topics,
    )  # fmt: skip


def rows_of(
    problems: Mapping[str, Problem], answered: Iterable[Trajectory], instruction: str, generator: str, most: int, key: tuple[object, ...]
) -> tuple[list[Problem], list[Dropped]]:
    """Rows of the different answers of one model, `most` of each problem by hash of `key`, and what was left out: answers of no text, and those over
    the quota. Answers that nobody could judge, or that the policy did not give itself, are no answers."""
    found: dict[str, dict[str, bool]] = {}
    for each in answered:
        if each.problem_id in problems and each.origin == POLICY and each.outcome != Outcome.INFRASTRUCTURE and not each.part:
            found.setdefault(each.problem_id, {}).setdefault(each.response.strip(), each.outcome == Outcome.CORRECT)
    kept, dropped = [], []
    for name, answers in sorted(found.items()):
        ranked = sorted(filter(None, answers), key=lambda text, name=name: seeding.key(*key, name, text))  # type: ignore[misc]
        made = [row(problems[name], text, answers[text], instruction, generator) for text in ranked]
        kept += made[:most]
        dropped += [Dropped(each, "critique", "over_quota", f"{most} of each problem") for each in made[most:]]
        if "" in answers:
            dropped.append(Dropped(row(problems[name], "", False, instruction, generator), "critique", "empty", "the answer has no text"))
    return kept, dropped
