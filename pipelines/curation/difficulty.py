"""How hard is a problem for this policy? Pass rates, their intervals, and the band that training sees.

A group whose rollouts are all right or all wrong has no gradient under group-relative advantages (DAPO, arXiv 2503.14476), so
only problems whose pass rate lies inside a band are worth rollouts. Pass rate: correct verdicts / n, where a verdict
`infrastructure` says nothing of the response and is not counted in n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from pipelines.records import Dropped, Outcome, Problem, Verdict

Z95 = 1.959963984540054


def wilson(correct: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    p = correct / n
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def pooled(problems: Sequence[Problem]) -> dict[str, float]:
    """Pass rate of all samples of graded problems with its 95 % Wilson interval {pass_rate, low, high}; samples of one problem resemble each other,
    so it is narrow."""
    n = sum(row.pass_n or 0 for row in problems)
    correct = sum((row.pass_rate or 0) * (row.pass_n or 0) for row in problems)
    low, high = wilson(correct, n)
    return {"pass_rate": correct / n, "low": low, "high": high}


def within_limit(problems: Sequence[Problem], limit: Mapping[str, int]) -> tuple[list[Problem], list[Dropped]]:
    """The first `limit[domain]` problems of each domain by problem id; the rest as `not_graded`."""
    taken: dict[str, int] = {}
    kept, dropped = [], []
    for problem in sorted(problems, key=lambda row: row.problem_id):
        most = limit.get(problem.domain)
        if most is not None and taken.get(problem.domain, 0) >= most:
            dropped.append(Dropped(problem, "grade", "not_graded", f"its limit takes {most} of domain {problem.domain}"))
            continue
        taken[problem.domain] = taken.get(problem.domain, 0) + 1
        kept.append(problem)
    return kept, dropped


def graded(problem: Problem, verdicts: Sequence[Verdict]) -> Problem | Dropped:
    """The problem with its pass rate; dropped as `not_judged` when no verdict counts."""
    counted = [verdict for verdict in verdicts if verdict.outcome is not Outcome.INFRASTRUCTURE]
    if not counted:
        return Dropped(problem, "grade", "not_judged", verdicts[0].detail if verdicts else "no response")
    rate = sum(verdict.correct for verdict in counted) / len(counted)
    return replace(problem, pass_rate=rate, pass_n=len(counted), difficulty=1 - rate)


StopRule = Literal["never", "certain", "interval"]


def decided(correct: int, counted: int, left: int, band: tuple[float, float], rule: StopRule) -> bool:
    """Whether a problem with `correct` of `counted` right, and `left` samples to go, needs no more of them to be put in or out of the band.

    `certain`: nothing that the rest could show changes the decision, which is therefore that of all samples. `interval`: the 95 %
    Wilson interval lies inside the band or outside of it.
    """
    if rule == "never":
        return left == 0
    if rule == "certain":
        low, high = (correct / (counted + left), (correct + left) / (counted + left)) if counted + left else (0.0, 1.0)
    else:
        low, high = wilson(correct, counted)
    return left == 0 or (band[0] <= low and high <= band[1]) or high < band[0] or low > band[1]


BINS = ((0.0, "impossible"), (0.2, "very hard"), (0.4, "hard"), (0.6, "medium"), (0.8, "easy"), (1.0, "very easy"))
"""Upper bounds (open, but for 0) of the bins of Guru (arXiv 2506.14965); a rate of 1 is `perfect`."""


def bin_of(rate: float) -> str:
    """0 impossible, (0, .2) very hard, [.2, .4) hard, [.4, .6) medium, [.6, .8) easy, [.8, 1) very easy, 1 perfect."""
    if rate <= 0:
        return "impossible"
    return next((name for bound, name in BINS if rate < bound), "perfect")


def hardest(problems: Sequence[Problem], share: float) -> tuple[list[Problem], list[Dropped]]:
    """Of each domain the share, rounded up, with the lowest pass rates, in order; the others as `too_easy`. Equals go by problem id."""
    domains: dict[str, list[Problem]] = {}
    for problem in problems:
        domains.setdefault(problem.domain, []).append(problem)
    chosen = set[str]()
    for rows in domains.values():
        ranked = sorted(rows, key=lambda row: (row.pass_rate, row.problem_id))
        chosen |= {row.problem_id for row in ranked[: math.ceil(Fraction(str(share)) * len(rows))]}
    kept, dropped = [], []
    for problem in problems:
        if problem.problem_id in chosen:
            kept.append(problem)
        else:
            detail = f"pass rate {problem.pass_rate:.3f} is not among the lowest {share:g} of {problem.domain}"
            dropped.append(Dropped(problem, "grade", "too_easy", detail))
    return kept, dropped


def inside_band(problems: Sequence[Problem], band: tuple[float, float]) -> tuple[list[Problem], list[Dropped]]:
    """Problems whose pass rate lies in the closed interval; the others as `too_hard` or `too_easy`."""
    kept, dropped = [], []
    for problem in problems:
        rate = problem.pass_rate if problem.pass_rate is not None else math.nan
        if band[0] <= rate <= band[1]:
            kept.append(problem)
            continue
        reason, bound = ("too_hard", f"below {band[0]:g}") if rate < band[0] else ("too_easy", f"above {band[1]:g}")
        dropped.append(Dropped(problem, "grade", reason, f"pass rate {rate:.3f} of {problem.pass_n} samples is {bound}"))
    return kept, dropped
