"""What generators share: levels and styles drawn by weight, and no prompt twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from pipelines.errors import UserError
from pipelines.records import Problem, problem_id

TRIES = 200
"""Draws in a row that bring nothing new before the space of problems counts as used up."""
S = TypeVar("S")
T = TypeVar("T")


def distinct(
    rng: np.random.Generator,
    count: int,
    levels: Mapping[int, float],
    styles: Mapping[S, float],
    name: str,
    prompt_of: Callable[[T], str],
    draw: Callable[[np.random.Generator, int, S], T],
) -> Iterator[tuple[int, int, S, T]]:
    """`count` times (position, level, style, `draw(rng, level, style)`), every prompt different. levels, styles: value -> relative weight.

    Raises:
        UserError: the levels asked for do not hold that many.
    """
    all_levels, level_weights = _choices(levels)
    all_styles, style_weights = _choices(styles)
    seen: set[str] = set()
    stale = 0
    while len(seen) < count:
        level = all_levels[rng.choice(len(all_levels), p=level_weights)]
        style = all_styles[rng.choice(len(all_styles), p=style_weights)]
        drawn = draw(rng, level, style)
        stale = stale + 1 if prompt_of(drawn) in seen else 0
        if stale == TRIES:
            raise UserError(f"sources: '{name}' found only {len(seen)} distinct problems of {count} at levels {all_levels}; ask for fewer")
        if not stale:
            seen.add(prompt_of(drawn))
            yield len(seen) - 1, level, style, drawn


def whole_number(
    name: str, position: int, said: tuple[str, str, str], *, domain: str, level: int, topics: tuple[str, ...], verifier_args: Mapping[str, Any]
) -> Problem:
    """The generated problem of source `name` at `position` whose (prompt, answer, worked solution) was `said`, and whose answer is a whole number."""
    prompt, answer, solution = said
    return Problem(
        problem_id=problem_id(prompt, answer),
        domain=domain,
        prompt=prompt,
        answer=answer,
        answer_type="integer",
        verifier="math",
        verifier_args=json.dumps(verifier_args),
        solution=solution,
        source=name,
        source_id=f"{name}/{position}",
        licence="generated",
        topics=topics,
        difficulty=float(level),
    )


def _choices(weights: Mapping[S, float]) -> tuple[list[S], np.ndarray]:
    """Keys and probabilities of a mapping key -> relative weight."""
    values = np.array(list(weights.values()), float)
    return list(weights), values / values.sum()
