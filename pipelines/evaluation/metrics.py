"""Metrics of one problem from n samples of which c are correct; a benchmark's figure is the mean over its problems.

All are exact expectations over a draw of k of the n samples without replacement, so none depends on the order of samples.
    pass@k     at least one of k is correct: 1 - C(n-c,k)/C(n,k)                 (Codex, arXiv 2107.03374)
    pass^k     all k are correct: C(c,k)/C(n,k)                                  (tau-bench, arXiv 2406.12045)
    avg@k      mean correctness: c/n whatever k, so it is pass@1
    worst@k    mean over the draws of the lowest score; for scores of 0 and 1 it is pass^k
    maj@k      the most frequent answer is correct                               (self-consistency, arXiv 2203.11171)
    G-pass@k   at least ceil(tau k) of k are correct                             (arXiv 2412.13147)
k > n is refused: the estimate does not exist. Naive 1 - (1 - c/n)^k is biased.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from math import comb


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k samples is correct. Worked: (10, 3, 1) .3; (10, 3, 5) .9167; (4, 1, 2) .5."""
    _check(n, c, k)
    return 1.0 - comb(n - c, k) / comb(n, k)


def pass_hat_k(n: int, c: int, k: int) -> float:
    """pass^k, probability that all k samples are correct."""
    _check(n, c, k)
    return comb(c, k) / comb(n, k)


def avg_at_k(n: int, c: int, k: int) -> float:
    """Expected share of correct samples among k."""
    _check(n, c, k)
    return c / n


def g_pass_at_k(n: int, c: int, k: int, tau: float) -> float:
    """Probability that at least max(ceil(tau k), 1) of k samples are correct, a hypergeometric tail.

    n = 16, c = 8, k = 4: tau 0, .25, .5, .75, 1 -> .9615, .9615, .7154, .2846, .0385.
    """
    _check(n, c, k)
    if not 0.0 <= tau <= 1.0:
        raise ValueError(f"tau must lie in [0, 1], got {tau}")
    # 0.1 * 30 is 3.0000000000000004 in floating point: rounding first keeps its ceiling at 3.
    least = max(math.ceil(round(tau * k, 9)), 1)
    return sum(comb(c, j) * comb(n - c, k - j) for j in range(least, min(c, k) + 1)) / comb(n, k)


def mg_pass_at_k(n: int, c: int, k: int) -> float:
    """mG-pass@k: (2/k) * sum of G-pass@k at tau = i/k for i from ceil(k/2) + 1 to k."""
    first = (k + 1) // 2 + 1
    return 2.0 / k * sum(g_pass_at_k(n, c, k, i / k) for i in range(first, k + 1))


def worst_at_k(scores: Sequence[float], k: int) -> float:
    """Expected lowest score among k: the i-th lowest of n is the lowest of C(n-i, k-1) of the C(n, k) draws."""
    n = len(scores)
    _check(n, 0, k)
    return sum(score * comb(n - i, k - 1) for i, score in enumerate(sorted(scores), 1)) / comb(n, k)


def maj_at_k(labels: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """Probability that a vote of k samples elects a correct answer.

    labels: the equivalence class of each sample's answer, None where there is none: it casts no vote but may be drawn. correct: per
    sample; samples of one class must agree. Ties are settled by a fair draw among the leading classes; no vote at all is wrong.

    The expectation over all draws is exact. For every height h of the winning class, the draws in which no class gets more than h votes are
    counted by (samples drawn, classes at h, correct classes at h), one class after the other.
    """
    n = len(labels)
    sizes: dict[Hashable, int] = {}
    right: dict[Hashable, bool] = {}
    for label, good in zip(labels, correct, strict=True):
        if label is None:
            continue
        sizes[label] = sizes.get(label, 0) + 1
        if right.setdefault(label, good) != good:
            raise ValueError(f"samples of the answer {label!r} are both correct and wrong: equivalent answers must be judged alike")
    _check(n, 0, k)
    silent = n - sum(sizes.values())
    total = 0.0
    for height in range(1, max((size for label, size in sizes.items() if right[label]), default=0) + 1):
        ways = _ways(sizes, right, height, k)
        for (drawn, tied, winning), count in ways.items():
            if winning and k - drawn <= silent:
                total += count * comb(silent, k - drawn) * winning / tied
    return total / comb(n, k)


def _ways(sizes: dict[Hashable, int], right: dict[Hashable, bool], height: int, k: int) -> dict[tuple[int, int, int], int]:
    """Number of ways to draw votes with at most `height` per class, by (votes, classes at `height`, correct ones among these)."""
    ways = {(0, 0, 0): 1}
    for label, size in sizes.items():
        grown: dict[tuple[int, int, int], int] = {}
        for (drawn, tied, winning), count in ways.items():
            for votes in range(min(size, height, k - drawn) + 1):
                top = votes == height
                state = (drawn + votes, tied + top, winning + (top and right[label]))
                grown[state] = grown.get(state, 0) + count * comb(size, votes)
        ways = grown
    return ways


def answer_entropy(labels: Sequence[Hashable | None]) -> float:
    """Shannon entropy of the empirical distribution of answers, nats; None, no answer, is one class (arXiv 2507.14843).

    32 equal answers -> 0; 32 different ones -> ln 32 = 3.466.
    """
    counts = Counter(labels).values()
    return max(0.0, -sum(count / len(labels) * math.log(count / len(labels)) for count in counts))


def _check(n: int, c: int, k: int) -> None:
    if not 0 <= c <= n:
        raise ValueError(f"{c} correct of {n} samples is impossible")
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} needs at least as many samples, there are {n}")
