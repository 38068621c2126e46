"""How far RL moved the boundary of what a model can solve: pass@k curves of two checkpoints, where they cross, which problems were
lost and which found.

    crossing   RL usually wins at k = 1 and its start at large k (arXiv 2504.13837). k* is where RL's lead at k = 1 has ended for good,
               interpolated in log k; it is *shown* only when its bootstrap interval lies inside (1, n]
    support    a problem is in a model's support if at least one of k samples is correct (arXiv 2507.14843). P both, S start only
               (shrinkage), E RL only (expansion), O neither:
               SRR = P/(P+S)   NDR = E/(P+E)   SDS = 2 SRR NDR/(SRR+NDR)   NSCR = (E-S)/(P+E+S)
    control    a finite budget misses rare solutions, so S and E hold noise. The start against itself, its n samples in two halves, says
               how much; RL is compared at the same half budget

Everything is an expectation over which samples are drawn, without replacement, so nothing here is random but the bootstrap over
problems. Shapes: P problems, K values of k, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.errors import UserError
from pipelines.evaluation.statistics import LEVEL, Floats, bootstrap_means, percentiles, wilson
from pipelines.records import Outcome

SET_NAMES = ("both", "start_only", "rl_only", "neither")
RATIOS = ("srr", "ndr", "sds", "nscr")
PER_OCTAVE = 8
"""Values of k between a power of two and the next, once the integers are denser than that."""
TINY = 1e-12
"""Less is rounding."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Judged samples n (P,) and correct ones c (P,) of the same problems in the same order."""

    n: Ints
    c: Ints


def _paired(start: pa.Table, rl: pa.Table) -> tuple[list[str], Counts, Counts]:
    """Problem ids and counts of two tables of samples (columns problem_id, outcome), over the problems judged twice or more by both."""
    found = [_counts(table) for table in (start, rl)]
    ids = [problem for problem, (n, _) in found[0].items() if n >= 2 and found[1].get(problem, (0, 0))[0] >= 2]
    if not ids:
        raise UserError("boundary: no problem has two judged samples from both models")
    first, second = (Counts(*np.array([one[problem] for problem in ids]).T) for one in found)
    return ids, first, second


def _counts(table: pa.Table) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for problem, outcome in zip(table["problem_id"].to_pylist(), table["outcome"].to_pylist(), strict=True):
        n, c = found.get(problem, (0, 0))
        found[problem] = (n + (outcome != Outcome.INFRASTRUCTURE), c + (outcome == Outcome.CORRECT))
    return found


def miss(counts: Counts, ks: Sequence[int]) -> Floats:
    """(P, K) probability that k of the n samples, drawn without replacement, hold no correct one: C(n-c, k)/C(n, k), every k at most n."""
    drawn = np.arange(max(ks))
    left = np.clip(counts.n[:, None] - counts.c[:, None] - drawn, 0, None)
    return np.cumprod(left / (counts.n[:, None] - drawn), axis=1, dtype=np.float64)[:, np.array(ks) - 1]


def grid(n: int) -> list[int]:
    """Values of k from 1 to n: every integer while they are few, then PER_OCTAVE between powers of two, and all powers of two."""
    dense = {round(2 ** (i / PER_OCTAVE)) for i in range(math.ceil(PER_OCTAVE * math.log2(n)) + 1)}
    return sorted(k for k in dense | {n} if 1 <= k <= n)


def crossing(difference_RK: Floats, ks: Sequence[int]) -> Floats:
    """(R,) k* of curves RL - start: 1 where RL has no lead at k = 1, inf where it is not behind at the largest k, else the last zero
    in log k."""
    found = np.where(difference_RK[:, 0] <= TINY, 1.0, np.inf)
    turned = np.flatnonzero((difference_RK[:, 0] > TINY) & (difference_RK[:, -1] < -TINY))
    logs = np.log(ks)
    ahead = difference_RK[turned] >= -TINY
    last = ahead.shape[1] - 1 - ahead[:, ::-1].argmax(1)
    rows = np.arange(len(turned))
    before, after = difference_RK[turned][rows, last], difference_RK[turned][rows, last + 1]
    share = np.clip(before / (before - after), 0.0, 1.0)
    found[turned] = np.exp(logs[last] + share * (logs[last + 1] - logs[last]))
    return found


def support(start: Counts, rl: Counts, k: int) -> Floats:
    """(P, 4) probability of each of SET_NAMES when both models get k samples."""
    a, b = miss(start, [k])[:, 0], miss(rl, [k])[:, 0]
    return np.stack([(1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b], 1)


def self_support(counts: Counts, k: int) -> Floats:
    """(P, 4) the same for a model against itself: two disjoint draws of k of its own samples, 2k <= n."""
    one, none = miss(counts, [k, 2 * k]).T
    return np.stack([1 - 2 * one + none, one - none, one - none, none], 1)


def ratios(sets: Floats) -> Floats:
    """(..., 4) counts or shares of SET_NAMES -> (..., 4) RATIOS, NaN where nothing is divided by nothing.

    P = 2388, S = 175, E = 48 -> .9317, .0197, .0386, -.0486.
    """
    both, lost, new, _ = np.moveaxis(sets, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        srr, ndr = both / (both + lost), new / (both + new)
        return np.stack([srr, ndr, 2 * srr * ndr / (srr + ndr), (new - lost) / (both + new + lost)], -1)


def detection_limit(k: int, miss_chance: float = 0.05) -> float:
    """Smallest probability of a correct sample that k samples find with confidence 1 - miss_chance; k = 8192 -> 3.656e-4."""
    return -math.expm1(math.log(miss_chance) / k)


def compare(start: pa.Table, rl: pa.Table, resamples: int, generator: np.random.Generator, groups: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Everything above of two tables of samples, as plain values: curves, difference, crossing, area, support. Missing numbers are None.

    groups: problem id -> what it shares with others (a passage, a template); such clusters are then resampled as wholes.

    Raises:
        UserError: fewer than two problems, or clusters of them, were judged twice or more by both.
    """
    ids, a, b = _paired(start, rl)
    n = int(min(a.n.min(), b.n.min()))
    ks, half = grid(n), n // 2
    curve_a, curve_b = 1 - miss(a, ks), 1 - miss(b, ks)
    sets = [support(a, b, n), support(a, b, half), self_support(a, half)]
    values = np.concatenate([curve_a, curve_b, *sets], 1)
    clusters = None if groups is None else np.unique([groups[problem] for problem in ids], return_inverse=True)[1]
    units = len(ids) if clusters is None else int(clusters.max()) + 1
    if units < 2:
        raise UserError(f"boundary: {len(ids)} problem(s) in one cluster say nothing about others; expected two or more")
    means = bootstrap_means(values, resamples, generator, clusters)
    parts = np.split(means, np.cumsum([len(ks), len(ks), 4, 4]), axis=1)
    here = np.split(values.mean(0), np.cumsum([len(ks), len(ks), 4, 4]))
    shift, shift_R = here[1] - here[0], parts[1] - parts[0]
    return {
        "problems": len(ids),
        "samples": n,
        "ks": ks,
        "curves": {
            who: [interval(here[side][i], parts[side][:, i], units, units) for i in range(len(ks))] for side, who in enumerate(("start", "rl"))
        },
        "difference": [interval(shift[i], shift_R[:, i], units) for i in range(len(ks))],
        "crossing": _crossing(shift, shift_R, ks),
        "area": interval(_area(shift, ks), _area(shift_R, ks), units),
        "support": _support(ids, a, b, n, half, here[2:], parts[2:], units),
    }


def _area(curve: Floats, ks: Sequence[int]) -> Any:
    """Mean of a curve over log k."""
    return np.trapezoid(curve, np.log(ks), axis=-1) / math.log(ks[-1])


def _crossing(shift: Floats, shift_R: Floats, ks: Sequence[int]) -> dict[str, Any]:
    """k* and its interval, whether that shows a crossing, and from which k RL is surely behind.

    low is 1 where a lead of RL at k = 1 is not sure; high is None, and so is k, where a crossing before the largest k is not.
    """
    found = crossing(shift_R, ks)
    low = float(np.quantile(found, (1 - LEVEL) / 2, method="lower"))
    high = float(np.quantile(found, (1 + LEVEL) / 2, method="higher"))
    at = float(crossing(shift[None], ks)[0])
    behind = np.flatnonzero(np.quantile(shift_R, (1 + LEVEL) / 2, axis=0) < 0)
    return {
        "k": at if 1 < at < math.inf else None,
        "low": min(low, float(ks[-1])),
        "high": high if high < math.inf else None,
        "shown": low > 1 and high < math.inf,
        "behind_from": ks[int(behind[0])] if len(behind) else None,
    }


def _support(ids: list[str], a: Counts, b: Counts, n: int, half: int, here: list[Floats], parts: list[Floats], units: int) -> dict[str, Any]:
    lost = np.flatnonzero((a.c > 0) & (b.c == 0))
    new = np.flatnonzero((a.c == 0) & (b.c > 0))
    excess, excess_R = ratios(here[1]) - ratios(here[2]), ratios(parts[1]) - ratios(parts[2])
    full, at_half, control = (_sets(len(ids), *pair, units) for pair in zip(here, parts, strict=True))
    return {
        "full": full | {"budget": n, "detection_limit": detection_limit(n)},
        "half": at_half | {"budget": half},
        "control": control | {"budget": half},
        "excess": {name: interval(excess[i], excess_R[:, i], units) for i, name in enumerate(RATIOS)},
        "lost": {ids[i]: int(a.c[i]) for i in lost},
        "found": {ids[i]: int(b.c[i]) for i in new},
    }


def _sets(problems: int, shares: Floats, shares_R: Floats, units: int) -> dict[str, Any]:
    """Expected numbers of problems in each set, and the ratios with their intervals."""
    at, at_R = ratios(shares), ratios(shares_R)
    both, lost, new, _ = shares * units
    counts = {"srr": both + lost, "ndr": both + new}
    return {name: float(share * problems) for name, share in zip(SET_NAMES, shares, strict=True)} | {
        name: interval(at[i], at_R[:, i], units, counts.get(name, 0.0)) for i, name in enumerate(RATIOS)
    }


def interval(value: float, resampled: Floats, units: int, count: float | None = None) -> Mapping[str, float | None]:
    """A figure with its percentile interval; None where it is not defined. units: problems, or clusters of them, that were resampled.

    count: for a share, of how many. Where it is 0 or 1 all resamples agree, and the bootstrap would claim certainty from any number of
    problems; there Wilson's interval is given, or none from a count of 0.
    """
    seen = resampled[np.isfinite(resampled)]
    low, high = percentiles(seen, units) if len(seen) else (math.nan, math.nan)
    if count is not None and len(seen) and np.ptp(seen) < TINY:
        low, high = wilson(round(value * round(count)), round(count)) if round(count) else (math.nan, math.nan)
    return {name: float(x) if np.isfinite(x) else None for name, x in (("mean", value), ("low", low), ("high", high))}
