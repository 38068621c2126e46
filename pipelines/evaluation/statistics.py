"""How sure a mean over problems is, and whether two checkpoints differ (Miller, arXiv 2411.00640).

The unit is the problem: samples of one problem are not independent evidence, so problems are resampled, never samples. Two
checkpoints are compared on the same resampled problems, which cancels how hard those problems are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CELLS = 4_000_000
"""Resampled indices held at once: 32 MB."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over `count` problems, and where it lies with the confidence asked for."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over the same problems, its interval, and the two-sided p-value of 'no difference'."""

    mean: float
    low: float
    high: float
    p: float
    count: int


def bootstrap_means(values: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """Means over problems drawn with replacement: values (P,) or (P, M) -> (resamples,) or (resamples, M).

    Columns share the drawn problems.
    """
    count = len(values)
    if count == 0:
        raise ValueError("no problems to resample")
    means = []
    step = max(1, CELLS // count)
    for start in range(0, resamples, step):
        drawn = generator.integers(count, size=(min(step, resamples - start), count))
        # Multiplicities times values instead of gathered values: one matrix product for all columns.
        weights = np.stack([np.bincount(row, minlength=count) for row in drawn]) / count
        means.append(weights @ values)
    return np.concatenate(means)


def interval_of(values: Floats, means: Floats, level: float = 0.95) -> Interval:
    """Percentile interval of the mean of `values` in [0, 1], from their resampled `means`.

    Where all problems score 0, or all 1, every resample agrees, and the bootstrap would claim certainty from any number of
    problems; there Wilson's interval is given.
    """
    mean = float(values.mean())
    if np.ptp(values) == 0 and mean in (0.0, 1.0):
        return Interval(mean, *wilson(int(mean) * len(values), len(values), level), len(values))
    return Interval(mean, *_percentiles(means, level), len(values))


def mean_interval(values: Floats, resamples: int, generator: np.random.Generator, level: float = 0.95) -> Interval:
    """Mean of a score in [0, 1] with its bootstrap interval."""
    return interval_of(values, bootstrap_means(values, resamples, generator), level)


def wilson(successes: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion: honest for small counts and at 0 and 1. 8 of 10 -> (.4902, .9433)."""
    if not 0 <= successes <= count or count == 0:
        raise ValueError(f"{successes} of {count} is no proportion")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, scale = successes / count, 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At 0 and 1 the closed end is exact; rounding must not push it off.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == count else centre + half)


def difference_of(delta: Floats, means: Floats, level: float = 0.95) -> Difference:
    """Interval and p-value of the mean of per-problem differences, from their resampled `means`.

    p = 2 * min(P(d <= 0), P(d >= 0)) over resamples, each count plus one, at most 1.
    """
    # A resample that is zero but for rounding supports both directions.
    below, above = int((means <= 1e-12).sum()), int((means >= -1e-12).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / (len(means) + 1))
    return Difference(float(delta.mean()), *_percentiles(means, level), p, len(delta))


def paired_difference(a: Floats, b: Floats, resamples: int, generator: np.random.Generator, level: float = 0.95) -> Difference:
    """Paired bootstrap of mean(a - b), entry i of both being the same problem."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} problems cannot be paired")
    return difference_of(a - b, bootstrap_means(a - b, resamples, generator), level)


def _percentiles(means: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
