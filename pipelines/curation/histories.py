"""Scores of problems by what a run of RL showed of them, visit by visit.

A visit is one time that a run drew a problem and answered it. Where each epoch draws every problem once, visit k is that of epoch k.

    learning_impact   s_i = 1 - sum_k (r_i^k - r^k)^2 / sum_k (1 - r^k)^2, r^k the mean over the problems       LIMR, arXiv 2502.11886
    variance          of the pass rates of a problem's visits                                                   1-shot RLVR, arXiv 2504.20571
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.records import Dropped, Problem

MISSING = -1.0
"""In place of the figure of a visit that the run has not."""


@dataclass(frozen=True)
class Visit:
    """Mean reward and share of right answers of one visit, of the answers that could be judged; None where none could."""

    reward: float | None
    pass_rate: float | None


Visits = Mapping[str, Sequence[Visit]]
"""By problem, in order."""


def learning_impact(visits: Visits, *, epochs: int | None = None) -> dict[str, float | None]:
    """How near a problem's rewards, over the first `epochs` visits, follow the mean curve of all problems: 1 where they are the same, 0 where they
    are as far from it as a reward that is always 1. epochs, none: as many as half of the problems have.

    A visit that is missing is taken as the next one; a problem of which one still is has no score, and is not in the mean.
    """
    counts = sorted((len(found) for found in visits.values()), reverse=True)
    length = epochs or (counts[(len(counts) - 1) // 2] if counts else 0)
    curves = {name: filled([MISSING if v.reward is None else v.reward for v in found], length) for name, found in visits.items()}
    whole = np.array([curve for curve in curves.values() if MISSING not in curve])
    mean = whole.mean(0).tolist() if len(whole) else [0.0] * length
    return {name: None if MISSING in curve else alignment(curve, mean) for name, curve in curves.items()}


def filled(curve: Sequence[float], length: int) -> list[float]:
    """The first `length` figures; one that is missing is that of the next visit, if that has one."""
    padded = [*curve, *[MISSING] * (length + 1 - len(curve))]
    return [padded[place + 1] if padded[place] == MISSING and place + 1 < length else padded[place] for place in range(length)]


def alignment(curve: Sequence[float], mean: Sequence[float]) -> float:
    """1 - sum (r - mean)^2 / sum (1 - mean)^2; of a mean that is always 1, 1 for the same curve."""
    away, furthest = (float(((np.asarray(other) - np.asarray(mean)) ** 2).sum()) for other in (curve, np.ones(len(mean))))
    return 1.0 - (away / furthest if furthest else away)


def variance(visits: Visits, *, form: Literal["variance", "deviation"] = "variance") -> dict[str, float | None]:
    """How much the pass rates of a problem's visits vary: their `variance`, or as in the released code their standard `deviation`, over the visits. A
    problem without two of them has no score."""
    rates = {name: [visit.pass_rate for visit in found if visit.pass_rate is not None] for name, found in visits.items()}
    spread = np.var if form == "variance" else np.std
    return {name: float(spread(found)) if len(found) > 1 else None for name, found in rates.items()}


SCORES: dict[str, Callable[..., dict[str, float | None]]] = {"learning_impact": learning_impact, "variance": variance}
"""Scores of kind select: (visits, settings) -> by problem its score, None where it has none."""


def chosen(
    problems: Sequence[Problem], scores: Mapping[str, float | None], at_least: float | None, most: int | None
) -> tuple[list[Problem], list[Dropped]]:
    """Those of at least a score, and of them the `most` highest, in order; the others with the reason: `no_score`, `low_score`, `over_quota`."""
    kept, dropped = [], []
    ranked = sorted((-score, p.problem_id) for p in problems if (score := scores.get(p.problem_id)) is not None)
    first = {name for score, name in ranked if at_least is None or -score >= at_least}
    if most is not None:
        first &= {name for _, name in ranked[:most]}
    for problem in problems:
        score = scores.get(problem.problem_id)
        if problem.problem_id in first:
            kept.append(problem)
        elif score is None:
            seen = "too few of its visits have a figure" if problem.problem_id in scores else "the run did not draw it"
            dropped.append(Dropped(problem, "select", "no_score", seen))
        elif at_least is not None and score < at_least:
            dropped.append(Dropped(problem, "select", "low_score", f"{score:.4f} is below {at_least:g}"))
        else:
            dropped.append(Dropped(problem, "select", "over_quota", f"{score:.4f} is not among the {most} highest"))
    return kept, dropped
