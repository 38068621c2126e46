"""Which mixture of sets to train on, foretold from runs on other mixtures (MoDoMoDo, arXiv 2505.24871).

    L(w) = a + b'w + w'Cw,  w the shares of the sets;  w* = argmax of L over w >= 0, sum w = 1

is fitted by least squares with a ridge to what runs on seed mixtures have scored. Because shares add up to 1, different a, b and C are the same
function, so only what is foretold says something. N runs, D sets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines import seeding

RIDGE = 1e-6
"""Weight of the squared coefficients beside the squared errors."""
STARTS, STEPS = 512, 2000
"""Random mixtures from which the best one is sought, beside every set alone and all alike; and steps of the way."""


@dataclass(frozen=True)
class Surface:
    """L. constant: a. linear_D: b. square_DD: C, symmetric."""

    constant: float
    linear_D: np.ndarray
    square_DD: np.ndarray

    def __call__(self, shares_ND: np.ndarray) -> np.ndarray:
        """What runs with these shares should score (N,)."""
        return self.constant + shares_ND @ self.linear_D + np.einsum("nd,de,ne->n", shares_ND, self.square_DD, shares_ND)


def seeds(names: Sequence[str]) -> list[dict[str, float]]:
    """Mixtures to begin with: every set alone, all but one, and all, each with equal shares."""
    chosen = [(name,) for name in names] + [tuple(name for name in names if name != left) for left in names] + [tuple(names)]
    return [dict.fromkeys(part, 1 / len(part)) for part in dict.fromkeys(chosen) if part]


def figures(sets: int) -> int:
    """How many figures of a mixture of so many sets runs must tell: those of a quadratic function on the simplex."""
    return math.comb(sets + 1, 2)


def fit(shares_ND: np.ndarray, score_N: np.ndarray, ridge: float = RIDGE) -> Surface:
    """The function nearest to the scores of runs with these shares."""
    sets = shares_ND.shape[1]
    pairs = list(itertools.combinations_with_replacement(range(sets), 2))
    features = np.concatenate([shares_ND, *(shares_ND[:, [i]] * shares_ND[:, [j]] for i, j in pairs)], axis=1)
    centre, mean = features.mean(0), score_N.mean()
    moved = features - centre
    found = np.linalg.solve(moved.T @ moved + ridge * np.eye(features.shape[1]), moved.T @ (score_N - mean))
    square_DD = np.zeros((sets, sets))
    for (i, j), value in zip(pairs, found[sets:], strict=True):
        square_DD[i, j] += value / 2
        square_DD[j, i] += value / 2
    return Surface(float(mean - centre @ found), found[:sets], square_DD)


def best(surface: Surface, seed: int = 0) -> np.ndarray:
    """The mixture of the highest score (D,): gradient ascent on the simplex from many starts, since the function may have several summits."""
    sets = len(surface.linear_D)
    drawn = seeding.generator(seed, "mixtures").dirichlet(np.ones(sets), size=STARTS)
    shares = np.concatenate([np.eye(sets), np.full((1, sets), 1 / sets), drawn])
    steepest = 2 * float(np.linalg.norm(surface.square_DD, 2))
    for _ in range(STEPS):
        slope = surface.linear_D + 2 * shares @ surface.square_DD
        shares = on_simplex(shares + slope / max(steepest, 1e-9))
    return shares[int(np.argmax(surface(shares)))]


def on_simplex(points_ND: np.ndarray) -> np.ndarray:
    """The nearest mixtures to these points."""
    falling = -np.sort(-points_ND, axis=1)
    excess = (np.cumsum(falling, axis=1) - 1) / np.arange(1, points_ND.shape[1] + 1)
    last = (falling > excess).sum(1) - 1
    return np.maximum(points_ND - np.take_along_axis(excess, last[:, None], axis=1), 0.0)


def left_out(shares_ND: np.ndarray, score_N: np.ndarray, ridge: float = RIDGE) -> tuple[float, float]:
    """By how much a run is missed that the fit has not seen, and by how much the mean of the others misses it: roots of mean squares."""
    own, plain = [], []
    for run in range(len(score_N)):
        others = np.arange(len(score_N)) != run
        own.append(float(fit(shares_ND[others], score_N[others], ridge)(shares_ND[[run]])[0] - score_N[run]))
        plain.append(float(score_N[others].mean() - score_N[run]))
    return float(np.sqrt(np.mean(np.square(own)))), float(np.sqrt(np.mean(np.square(plain))))
