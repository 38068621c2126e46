"""Slot `combine`: the reward of an answer, made of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def weighted(
    parts: Mapping[str, float],
    *,
    weights: Mapping[str, float] | None = None,
    gates: Mapping[str, float] | None = None,
    closed: float = 0.0,
    vetoes: Mapping[str, float] | None = None,
    vetoed: float = 0.0,
) -> float:
    """The sum of the weighted parts; those that `weights` does not name count nothing. weights, none: `correct` alone.

    gates: a part below its value here, such as {format: 1}, makes the reward `closed`. vetoes: a part at or above its value here makes it
    `vetoed`, whatever the gates say.

    Raises:
        KeyError: a part that is named is not there.
    """
    if any(parts[name] >= value for name, value in (vetoes or {}).items()):
        return vetoed
    if any(parts[name] < value for name, value in (gates or {}).items()):
        return closed
    return sum(weight * parts[name] for name, weight in (weights or {"correct": 1.0}).items())


def cases(parts: Mapping[str, float], *, cases: Sequence[tuple[Mapping[str, float], float]], otherwise: float = 0.0) -> float:
    """The value of the first case whose parts are all at or above what it says, such as [{correct: 1, format: 1}, 2.0].

    Raises:
        KeyError: a part that is named is not there.
    """
    return next((value for least, value in cases if all(parts[name] >= bound for name, bound in least.items())), otherwise)


COMBINE = {"weighted": weighted, "cases": cases}
