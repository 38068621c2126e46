"""What a longer run would reach: the sigmoid of reward over compute (ScaleRL, arXiv 2510.13786), and what its first part can and cannot say.

    R(C) = R0 + (A - R0) / (1 + (C_mid / C)^B)      R0 reward before training, A asymptote, B steepness, C_mid compute of half the gain

The paper searches A and C_mid on a grid and fits B for each. For given C_mid and B the curve is linear in R0 and A, so here those two
have a closed form and the other two are searched, C_mid from .01 to 10 times the compute seen (the paper's range by its runs): the same
least-squares optimum without a grid's steps.

How sure: every curve whose squared error is within reach of the best one's, SSE <= SSE_min (1 + t^2 / (T - p)), is plausible (profile
likelihood), and an interval is what the plausible curves span; t^2 grows by (1 + r)/(1 - r) with the residuals' correlation r from one point
to the next, since neighbouring steps share a policy. Unlike a resampled estimate this sees that quite another curve fits as well.
An asymptote is told only where the run identifies it: no plausible curve has A on its bound, or C_mid beyond the compute seen. A power law
would always answer, with A = 1. The prediction of a longer run needs no asymptote; it is as wide as the plausible curves disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from pipelines.errors import UserError
from pipelines.evaluation.statistics import Floats

STEEPNESS = (0.25, 8.0)
REACH = (0.01, 10.0)
"""Bounds of C_mid as multiples of the largest compute seen."""
CELLS = (40, 24)
"""C_mid and B tried at once."""
ZOOMS = 5
ANGLES = 16
TINY = 1e-12
EDGE = 0.005
"""An asymptote this near its bound lies on it: the paper's grid step, and the step of A here."""
SAME = 0.02
"""Two asymptotes this near are the same; then steepness is compared."""
LEAST = 8
"""Fewest points that four parameters are fitted to."""


@dataclass(frozen=True)
class Curves:
    """(F,) sigmoids: R0, A, C_mid, B, squared error."""

    initial: Floats
    asymptote: Floats
    midpoint: Floats
    steepness: Floats
    sse: Floats

    def at(self, compute: Floats) -> Floats:
        """(F, T) reward at compute (T,)."""
        risen = _rise(compute, self.midpoint[:, None], self.steepness[:, None])
        return self.initial[:, None] * (1 - risen) + self.asymptote[:, None] * risen


@dataclass(frozen=True)
class Data:
    """What is fitted: reward (T,) at compute (T,), R0 where it was measured, bounds of the reward, and those of A where they are narrower."""

    compute: Floats
    reward: Floats
    initial: float | None
    bounds: tuple[float, float]
    asymptotes: tuple[float, float]

    @property
    def free(self) -> int:
        """Points less parameters."""
        return len(self.compute) - 2 - (self.initial is None) - (self.asymptotes[0] < self.asymptotes[1])


@dataclass(frozen=True)
class Fit:
    """The best curve (F = 1), the plausible ones, what is not identified (`refused`; empty means that an asymptote is told), and the noise.

    noise: standard deviation of one point. inflation: (1 + r)/(1 - r).
    """

    data: Data
    best: Curves
    plausible: Curves
    refused: tuple[str, ...]
    noise: float
    inflation: float
    level: float

    def interval(self, name: str) -> tuple[float, float]:
        """What the plausible curves span of one parameter."""
        values = getattr(self.plausible, name)
        return float(values.min()), float(values.max())


@dataclass(frozen=True)
class Prediction:
    """Reward at `compute` (T,) with the interval of the curve there, and the mean over all of it with the interval of what would be measured."""

    compute: Floats
    reward: Floats
    low: Floats
    high: Floats
    mean: float
    mean_low: float
    mean_high: float


def fit(compute: Floats, reward: Floats, *, initial: float | None = None, bounds: tuple[float, float] = (0.0, 1.0), level: float = 0.95) -> Fit:
    """Fit the sigmoid to reward (T,) at compute (T,), any unit.

    initial: R0 where it was measured, else it is fitted too. bounds: lowest and highest reward there can be.

    Raises:
        UserError: fewer than LEAST points, compute that does not rise, or values that are not finite.
    """
    compute, reward = np.asarray(compute, float), np.asarray(reward, float)
    if len(compute) < LEAST or len(compute) != len(reward):
        raise UserError(f"scaling: expected {LEAST} or more points of compute and reward, got {len(compute)} and {len(reward)}")
    if not (np.isfinite(compute).all() and np.isfinite(reward).all() and compute[0] >= 0 and (np.diff(compute) > 0).all()):
        raise UserError("scaling: compute must rise from 0 or more and every value must be finite")
    if reward.min() < bounds[0] or reward.max() > bounds[1]:
        raise UserError(f"scaling: reward from {reward.min():g} to {reward.max():g} leaves its bounds {bounds[0]:g} to {bounds[1]:g}")
    return _fit(Data(compute, reward, initial, bounds, bounds), level)


def _fit(data: Data, level: float) -> Fit:
    best, whole = _search(data)
    residuals = data.reward - best.at(data.compute)[0]
    near = min(max(float(residuals[1:] @ residuals[:-1]) / max(float(residuals @ residuals), TINY), 0.0), 0.9)
    inflation = (1 + near) / (1 - near)
    plausible = _plausible(data, best, whole, float(best.sse[0]) * (1 + _t(level, data.free) ** 2 * inflation / data.free))
    noise = math.sqrt(float(best.sse[0]) / data.free)
    return Fit(data, best, plausible, tuple(_refusals(plausible, data)), noise, inflation, level)


def predict(fitted: Fit, compute: Floats) -> Prediction:
    """The run continued to `compute` (T,), if it goes on as the sigmoid does and its noise stays what it was."""
    compute = np.asarray(compute, float)
    line, lines = fitted.best.at(compute)[0], fitted.plausible.at(compute)
    mean, means = float(line.mean()), lines.mean(1)
    # What is measured is the curve's mean and the noise of that many points.
    noise = NormalDist().inv_cdf(0.5 + fitted.level / 2) * fitted.noise * math.sqrt(fitted.inflation / len(compute))
    low, high = (math.hypot(mean - edge, noise) for edge in (float(means.min()), float(means.max())))
    return Prediction(compute, line, lines.min(0), lines.max(0), mean, mean - low, mean + high)


def rank(a: Fit, b: Fit) -> str:
    """In one sentence, which of two runs on one measure has the higher asymptote or, with the same one, the steeper rise.

    The interval of a difference is that of independent estimates (MOVER, Zou and Donner 2008); nothing is said where it holds zero.

    Raises:
        UserError: one of them does not identify its asymptote, so they cannot be ranked.
    """
    for name, one in (("first", a), ("second", b)):
        if one.refused:
            raise UserError(f"scaling: the {name} run cannot be ranked: {'; '.join(one.refused)}")
    if said := _apart(a, b, "asymptote", SAME):
        return said
    common = float(a.best.asymptote[0] + b.best.asymptote[0]) / 2
    a, b = (_fit(replace(one.data, asymptotes=(common, common)), one.level) for one in (a, b))
    return _apart(a, b, "steepness", 0.0) or "no difference in asymptote or steepness is shown"


def _apart(a: Fit, b: Fit, name: str, same: float) -> str:
    """A sentence where a parameter differs by more than `same` and the interval of the difference holds no zero."""
    one, other = (float(getattr(fit.best, name)[0]) for fit in (a, b))
    (low_a, high_a), (low_b, high_b) = a.interval(name), b.interval(name)
    low, high = one - other - math.hypot(one - low_a, high_b - other), one - other + math.hypot(high_a - one, other - low_b)
    if abs(one - other) <= same or low <= 0 <= high:
        return ""
    return f"the {'first' if one > other else 'second'} run has the higher {name}: {one - other:+.3f} [{low:+.3f}, {high:+.3f}]"


def _rise(compute: Floats, midpoint: Floats, steepness: Floats) -> Floats:
    """1 / (1 + (C_mid / C)^B): 0 at C = 0, 1/2 at C_mid."""
    with np.errstate(divide="ignore", over="ignore"):
        return 1.0 / (1.0 + np.exp(steepness * (np.log(midpoint) - np.log(compute))))


def _refusals(plausible: Curves, data: Data) -> list[str]:
    """Why no asymptote is told, in words."""
    found = []
    if plausible.asymptote.max() > data.bounds[1] - EDGE:
        found.append(f"a curve whose asymptote is {data.bounds[1]:g}, the most there can be, fits as well")
    if plausible.midpoint.max() > data.compute[-1]:
        found.append("a curve that has half of its gain still ahead fits as well")
    if (plausible.asymptote <= plausible.initial).any():
        found.append("a curve that does not rise fits as well")
    return found


@dataclass(frozen=True)
class _Quadratic:
    """Squared error at given (C_mid, B), which is quadratic in (R0, A): u = 1 - rise, v = rise, y = reward; (N,) each but yy."""

    uu: Floats
    uv: Floats
    vv: Floats
    uy: Floats
    vy: Floats
    yy: float
    data: Data

    def sse(self, first: Floats, last: Floats) -> Floats:
        """Squared error of R0 = first and A = last."""
        square = first * first * self.uu + 2 * first * last * self.uv + last * last * self.vv
        return np.maximum(self.yy - 2 * (first * self.uy + last * self.vy) + square, 0.0)

    def optimum(self) -> tuple[Floats, Floats]:
        """The best (R0, A), whatever their bounds."""
        if self.data.initial is not None:
            return np.full_like(self.uy, self.data.initial), (self.vy - self.data.initial * self.uv) / (self.vv + TINY)
        last = (self.uu * self.vy - self.uv * self.uy) / (self.uu * self.vv - self.uv * self.uv + TINY)
        return (self.uy - last * self.uv) / (self.uu + TINY), last

    def inside(self, first: Floats, last: Floats) -> tuple[Floats, Floats]:
        """(R0, A) moved into their bounds; where one was moved, the other is the best beside it."""
        held = np.clip(last, *self.data.asymptotes)
        if self.data.initial is None:
            first = np.where(held == last, first, (self.uy - held * self.uv) / (self.uu + TINY))
            start = np.clip(first, *self.data.bounds)
            held = np.where(start == first, held, np.clip((self.vy - start * self.uv) / (self.vv + TINY), *self.data.asymptotes))
            first = start
        return first, held

    def border(self, allowed: float) -> tuple[Floats, Floats]:
        """(ANGLES, N) points of the ellipse where the squared error is `allowed`."""
        first, last = self.optimum()
        room = np.sqrt(np.maximum(allowed - self.sse(first, last), 0.0))
        if self.data.initial is not None:
            return np.tile(first, (2, 1)), last + np.array([[-1.0], [1.0]]) * room / np.sqrt(self.vv + TINY)
        turn = np.arange(ANGLES)[:, None] * (2 * math.pi / ANGLES)
        # Cholesky of [[uu, uv], [uv, vv]].
        a = np.sqrt(self.uu + TINY)
        b = self.uv / a
        up = room * np.sin(turn) / np.sqrt(np.maximum(self.vv - b * b, TINY))
        return first + (room * np.cos(turn) - b * up) / a, last + up


def _quadratic(data: Data, nodes: Floats) -> _Quadratic:
    rise = _rise(data.compute, np.exp(nodes[:, :1]), np.exp(nodes[:, 1:]))
    flat = 1 - rise
    sums = (flat * flat).sum(1), (flat * rise).sum(1), (rise * rise).sum(1), flat @ data.reward, rise @ data.reward
    return _Quadratic(*sums, float(data.reward @ data.reward), data)


def _grid(box: Floats, cells: tuple[int, int]) -> tuple[Floats, Floats]:
    """Nodes (N, 2) of log C_mid and log B that fill a box (2, 2) of lowest and highest values, and their distances (2,)."""
    axes = [np.linspace(low, high, n) for low, high, n in zip(*box, cells, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2), (box[1] - box[0]) / (np.array(cells) - 1)


def _search(data: Data) -> tuple[Curves, Floats]:
    """Least squares: the best node of the grid, then ever finer grids around it. Also the box that was searched."""
    last = float(data.compute[-1])
    whole = np.log([[REACH[0] * last, STEEPNESS[0]], [REACH[1] * last, STEEPNESS[1]]])
    box = whole
    for _ in range(2 * ZOOMS):
        nodes, step = _grid(box, CELLS)
        quadratic = _quadratic(data, nodes)
        first, asymptote = quadratic.inside(*quadratic.optimum())
        sse = quadratic.sse(first, asymptote)
        i = [int(sse.argmin())]
        box = np.clip(np.stack([nodes[i[0]] - 3 * step, nodes[i[0]] + 3 * step]), *whole)
    return Curves(first[i], asymptote[i], np.exp(nodes[i, 0]), np.exp(nodes[i, 1]), sse[i]), whole


def _plausible(data: Data, best: Curves, whole: Floats, allowed: float) -> Curves:
    """The best curve and those around it whose squared error is at most `allowed`: at each node of a grid over the (C_mid, B) that have
    any, the border of the (R0, A)."""
    here = np.log([best.midpoint[0], best.steepness[0]])
    box = whole
    for _ in range(ZOOMS):
        nodes, step = _grid(box, CELLS)
        quadratic = _quadratic(data, nodes)
        kept = np.concatenate([nodes[quadratic.sse(*quadratic.inside(*quadratic.optimum())) <= allowed], here[None]])
        box = np.clip(np.stack([kept.min(0) - step, kept.max(0) + step]), *whole)
    quadratic = _quadratic(data, kept)
    first, last = quadratic.inside(*quadratic.border(allowed))
    sse = quadratic.sse(first, last)
    nodes = np.broadcast_to(kept, (len(first), *kept.shape))
    within = sse <= allowed * (1 + 1e-9)
    found = Curves(first[within], last[within], np.exp(nodes[within][:, 0]), np.exp(nodes[within][:, 1]), sse[within])
    return Curves(**{name: np.concatenate([values, getattr(best, name)]) for name, values in vars(found).items()})


def _t(level: float, free: int) -> float:
    """Two-sided quantile of Student's t (Cornish-Fisher; within .01 from 4 degrees of freedom on)."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / free**power for power, term in enumerate(terms, 1))
