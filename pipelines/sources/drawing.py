"""What generators share: levels and styles drawn by weight, and no prompt twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from pipelines.errors import UserError

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


def _choices(weights: Mapping[S, float]) -> tuple[list[S], np.ndarray]:
    """Keys and probabilities of a mapping key -> relative weight."""
    values = np.array(list(weights.values()), float)
    return list(weights), values / values.sum()
