"""Where the policy is weak, and how many new problems each weakness gets (SwS, arXiv 2506.08989).

Graded problems are grouped by domain and topics ("word problem", "level 3"). A group is weak when its pass rate F is below a
bound; the budget N is shared in proportion to failure: N_d = N (1 - F_d) / sum (1 - F). SwS itself calls a problem weak by its
accuracy over epochs of a preliminary RL run; here the difficulty stage has measured the SFT policy already.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.records import Problem


@dataclass(frozen=True)
class Topic:
    """Problems of one kind: pooled pass rate over `rollouts` samples; `weakest` are those below the bound, by problem id."""

    domain: str
    topics: tuple[str, ...]
    problems: int
    rollouts: int
    pass_rate: float
    weakest: tuple[Problem, ...]


def topics_of(graded: Sequence[Problem], weak_below: float) -> list[Topic]:
    """Every topic of the graded problems, the weakest first. Problems without topics form one group per domain."""
    groups: dict[tuple[str, tuple[str, ...]], list[Problem]] = defaultdict(list)
    for problem in graded:
        if problem.pass_n:
            groups[problem.domain, problem.topics].append(problem)
    found = []
    for (domain, topics), rows in groups.items():
        rollouts = sum(row.pass_n or 0 for row in rows)
        correct = sum((row.pass_rate or 0) * (row.pass_n or 0) for row in rows)
        weakest = sorted((row for row in rows if (row.pass_rate or 0) < weak_below), key=lambda row: row.problem_id)
        found.append(Topic(domain, topics, len(rows), rollouts, correct / rollouts, tuple(weakest)))
    return sorted(found, key=lambda topic: (topic.pass_rate, topic.domain, topic.topics))


def allocate(budget: int, weights: Sequence[float]) -> list[int]:
    """`budget` whole things in proportion to `weights` by largest remainder (ties to the earlier): the parts sum to the budget."""
    total = sum(weights)
    if total <= 0:
        return [0] * len(weights)
    quotas = [budget * weight / total for weight in weights]
    parts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(weights)), key=lambda i: (parts[i] - quotas[i], i))
    for i in by_remainder[: budget - sum(parts)]:
        parts[i] += 1
    return parts
