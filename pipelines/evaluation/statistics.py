"""How sure a mean over problems is, and whether two checkpoints differ (Miller, arXiv 2411.00640).

The unit is the problem, or the cluster of problems that share a passage or a template: samples of one problem are not independent
evidence, so clusters are resampled, never samples. Two checkpoints are compared on the same resampled problems, which cancels how hard
those problems are. Shapes: P problems, M columns, R resamples, C clusters; `clusters_P` numbers each problem's cluster from 0, None
makes every problem its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CELLS = 4_000_000
"""Resampled indices held at once: 32 MB."""
SMALL = 100
"""Clusters below which the interval of a share is Wilson's: percentiles of so few cover too little."""
LEVEL = 0.95
_EPS = 1e-9
_NORMAL = NormalDist()

Floats = NDArray[np.float64]
Clusters = NDArray[np.int64] | None


@dataclass(frozen=True)
class Interval:
    """A mean over `count` problems, its clustered standard error (None from one cluster), and its 95 % interval."""

    mean: float
    se: float | None
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over the same problems, its clustered standard error, and by paired bootstrap its 95 % interval and the two-sided
    p-value of 'no difference'."""

    mean: float
    se: float | None
    low: float
    high: float
    p: float
    count: int


@dataclass(frozen=True)
class Ratio:
    """A ratio and its 95 % interval; all None where its denominator is 0."""

    mean: float | None
    low: float | None
    high: float | None


def recovered(figures_3: Floats, means_R3: Floats, clusters: int) -> Ratio:
    """The performance gap recovered (Weak-to-Strong Generalization, arXiv 2312.09390): (model - weak) / (ceiling - weak), which may be below 0 or
    above 1. figures_3: of model, weak, ceiling; means_R3: the same of resampled problems, without those where the last two are equal."""

    def shares(figures: Floats) -> Floats:
        model, weak, ceiling = figures[np.abs(figures[:, 2] - figures[:, 1]) > _EPS].T
        return (model - weak) / (ceiling - weak)

    share, resampled = shares(figures_3[None]), shares(means_R3)
    return Ratio(float(share[0]), *percentiles(resampled, clusters)) if len(share) and len(resampled) else Ratio(None, None, None)


def cluster_sums(values: Floats, clusters_P: Clusters) -> tuple[Floats, Floats]:
    """Sums over each cluster (C,) or (C, M), and the problems in it (C,)."""
    if clusters_P is None:
        return values, np.ones(len(values))
    sums = np.zeros((int(clusters_P.max()) + 1, *values.shape[1:]))
    np.add.at(sums, clusters_P, values)
    return sums, np.bincount(clusters_P).astype(np.float64)


def standard_error(values_P: Floats, clusters_P: Clusters = None) -> float | None:
    """Clustered standard error of the mean: SE^2 = C / (C - 1) * sum over clusters of (sum of its (s - mean))^2 / P^2.

    With clusters of one problem this is sqrt(Var(s) / P), variance with P - 1. None from fewer than two clusters.
    """
    sums, _ = cluster_sums(values_P - values_P.mean(), clusters_P)
    if len(sums) < 2:
        return None
    return math.sqrt(len(sums) / (len(sums) - 1) * float((sums**2).sum())) / len(values_P)


def bootstrap_means(values: Floats, resamples: int, generator: np.random.Generator, clusters_P: Clusters = None) -> Floats:
    """Means over problems of clusters drawn with replacement: values (P,) or (P, M) -> (R,) or (R, M). Columns share what is drawn."""
    if len(values) == 0:
        raise ValueError("no problems to resample")
    sums, sizes = cluster_sums(values, clusters_P)
    count = len(sums)
    means = []
    step = max(1, CELLS // count)
    for start in range(0, resamples, step):
        drawn = generator.integers(count, size=(min(step, resamples - start), count))
        # Multiplicities times sums instead of gathered values: one matrix product for all columns.
        weights = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)
        means.append((weights @ sums) / (weights @ sizes).reshape(-1, *[1] * (values.ndim - 1)))
    return np.concatenate(means)


def interval_of(values_P: Floats, means_R: Floats, clusters_P: Clusters = None, *, share: bool = True) -> Interval:
    """Interval of the mean of `values_P`, from their resampled means. share: the values lie in [0, 1].

    Shares of fewer than SMALL clusters, and those where all problems agree (every resample would too, and the bootstrap claim
    certainty from any number of problems), get Wilson's interval; all others the bootstrap's percentiles.
    """
    clusters = _count(values_P, clusters_P)
    if share and (clusters < SMALL or np.ptp(values_P) == 0):
        return share_interval(values_P, clusters_P)
    return Interval(float(values_P.mean()), standard_error(values_P, clusters_P), *percentiles(means_R, clusters), len(values_P))


def share_interval(values_P: Floats, clusters_P: Clusters = None) -> Interval:
    """Wilson's interval of a mean of values in [0, 1], at the effective count."""
    mean, se = float(values_P.mean()), standard_error(values_P, clusters_P)
    count = effective_count(mean, se, len(values_P), _count(values_P, clusters_P))
    return Interval(mean, se, *wilson(mean * count, count), len(values_P))


def _count(values_P: Floats, clusters_P: Clusters) -> int:
    """Number of clusters."""
    return len(values_P) if clusters_P is None else len(np.unique(clusters_P))


def effective_count(mean: float, se: float | None, count: int, clusters: int) -> float:
    """Binary problems, drawn independently, that a share is worth (Korn and Graubard 1998): count / design effect * (z / t)^2.

    Design effect: (count - 1) SE^2 / (mean (1 - mean)). It is 1 for one answer per problem, whose variance the mean tells, and the
    count stands; clusters raise it, averages over samples lower it, and z / t, with clusters - 1 degrees of freedom, pays for a variance
    that is estimated. Where it is not defined (all problems agree) the number of clusters stands.
    """
    effect = (count - 1) * se**2 / (mean * (1 - mean)) if se and 0 < mean < 1 else 0.0
    if effect <= _EPS:
        return float(clusters)
    return count / effect * (1.0 if abs(effect - 1) < _EPS else (_NORMAL.inv_cdf(0.5 + LEVEL / 2) / t_quantile(0.5 + LEVEL / 2, clusters - 1)) ** 2)


def mean_interval(values_P: Floats, resamples: int, generator: np.random.Generator, clusters_P: Clusters = None) -> Interval:
    """Mean of a score in [0, 1] with its interval."""
    return interval_of(values_P, bootstrap_means(values_P, resamples, generator, clusters_P), clusters_P)


def wilson(successes: float, count: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a proportion: honest for small counts and at 0 and 1. 8 of 10 -> (.4902, .9433)."""
    if not 0 <= successes <= count * (1 + _EPS) or count == 0:
        raise ValueError(f"{successes} of {count} is no proportion")
    z = _NORMAL.inv_cdf(0.5 + level / 2)
    share, scale = min(successes / count, 1.0), 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At 0 and 1 the closed end is exact; rounding must not push it off.
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)


def difference_of(delta_P: Floats, means_R: Floats, clusters_P: Clusters = None) -> Difference:
    """Interval and p-value of the mean of per-problem differences in [-1, 1], from their resampled means.

    p = 2 * min(P(d <= 0), P(d >= 0)) over resamples, each count plus one, at most 1. One cluster says nothing about others.
    """
    # A resample that is zero but for rounding supports both directions.
    below, above = int((means_R <= _EPS).sum()), int((means_R >= -_EPS).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / (len(means_R) + 1))
    clusters = _count(delta_P, clusters_P)
    low, high = percentiles(means_R, clusters) if clusters > 1 else (-1.0, 1.0)
    return Difference(float(delta_P.mean()), standard_error(delta_P, clusters_P), low, high, p if clusters > 1 else 1.0, len(delta_P))


def paired_difference(a_P: Floats, b_P: Floats, resamples: int, generator: np.random.Generator, clusters_P: Clusters = None) -> Difference:
    """Paired bootstrap of mean(a - b), entry i of both being the same problem."""
    if len(a_P) != len(b_P):
        raise ValueError(f"{len(a_P)} and {len(b_P)} problems cannot be paired")
    return difference_of(a_P - b_P, bootstrap_means(a_P - b_P, resamples, generator, clusters_P), clusters_P)


def sign_flip(deltas_PM: Floats, resamples: int, generator: np.random.Generator, clusters_P: Clusters = None) -> list[float]:
    """Two-sided p-value of each column of per-problem differences by randomisation: swap the checkpoints at random, cluster by cluster.

    Where both answer alike, every swap is as likely as what was seen, so the test keeps its level for any number of problems:
    p = (1 + swaps whose mean lies at least as far from 0) / (1 + R). For one answer per problem it estimates McNemar's exact test.
    """
    sums, _ = cluster_sums(deltas_PM, clusters_P)
    seen = np.abs(sums.sum(0)) - _EPS
    further = np.zeros(deltas_PM.shape[1], dtype=np.int64)
    step = max(1, CELLS // len(sums))
    for start in range(0, resamples, step):
        signs = 2.0 * generator.integers(2, size=(min(step, resamples - start), len(sums))) - 1.0
        further += (np.abs(signs @ sums) >= seen).sum(0)
    return [(1 + int(count)) / (1 + resamples) for count in further]


def mcnemar(only_a: int, only_b: int) -> float:
    """McNemar's exact two-sided p-value for one answer per problem: problems that only a, and only b, solved. 10 and 2 -> .0386; none -> 1."""
    discordant = only_a + only_b
    tail = sum(math.comb(discordant, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given: at most `level` of all families with any false claim, whatever depends on what."""
    adjusted = [0.0] * len(ps)
    most = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        most = max(most, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = most
    return adjusted


def verdict(low: float, high: float, p: float) -> str:
    """'better' or 'worse' only where the whole 95 % interval lies on one side of zero and the adjusted p-value is at most .05."""
    if p <= 1 - LEVEL + _EPS:
        if low > 0:
            return "better"
        if high < 0:
            return "worse"
    return "no difference shown"


def percentiles(means_R: Floats, clusters: int, level: float = LEVEL) -> tuple[float, float]:
    """The expanded percentile interval (Hesterberg, arXiv 1411.5279): percentiles taken further out, at the normal tail of
    t * sqrt(C / (C - 1)), which makes up for the too narrow bootstrap distribution of a small sample."""
    tail = _NORMAL.cdf(-t_quantile(0.5 + level / 2, clusters - 1) * math.sqrt(clusters / (clusters - 1))) if clusters > 1 else 0.0
    low, high = np.quantile(means_R, [tail, 1 - tail])
    return float(low), float(high)


@functools.cache
def t_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t for share > .5, by bisection."""
    low, high = 0.0, 1.0
    while _t_central(high, freedom) < 2 * share - 1:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_central(middle, freedom) < 2 * share - 1 else (low, middle)
    return (low + high) / 2


def _t_central(t: float, freedom: int) -> float:
    """P(|T| < t) as a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine, cosine if freedom > 1 else 0.0) if odd else (1.0, 1.0)
    for i in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine * cosine * (i - 1) / i
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
