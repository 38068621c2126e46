"""What generators share: levels and styles drawn by weight, and no prompt twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from pipelines.errors import UserError

TRIES = 200
"""Draws in a row that bring nothing new before the space of problems counts as used up."""
T = TypeVar("T")


def distinct(
    rng: np.random.Generator, settings: Any, name: str, prompt_of: Callable[[T], str], draw: Callable[[np.random.Generator, int, str], T]
) -> Iterator[tuple[int, int, str, T]]:
    """`settings.count` times (position, level, style, `draw(rng, level, style)`), every prompt different.

    settings: with `count`, and `levels` and `styles` as mappings value -> relative weight.

    Raises:
        UserError: the levels asked for do not hold that many.
    """
    levels, level_weights = _choices(settings.levels)
    styles, style_weights = _choices(settings.styles)
    seen: set[str] = set()
    stale = 0
    while len(seen) < settings.count:
        level = levels[rng.choice(len(levels), p=level_weights)]
        style = styles[rng.choice(len(styles), p=style_weights)]
        drawn = draw(rng, level, style)
        stale = stale + 1 if prompt_of(drawn) in seen else 0
        if stale == TRIES:
            raise UserError(f"sources: '{name}' found only {len(seen)} distinct problems of {settings.count} at levels {levels}; ask for fewer")
        if not stale:
            seen.add(prompt_of(drawn))
            yield len(seen) - 1, level, style, drawn


def _choices(weights: Mapping[Any, float]) -> tuple[list[Any], np.ndarray]:
    """Keys and probabilities of a mapping key -> relative weight."""
    values = np.array(list(weights.values()), float)
    return list(weights), values / values.sum()
