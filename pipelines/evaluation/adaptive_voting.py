"""Adaptive self-consistency (Video-RTS, arXiv 2507.06485): answers in levels, until those of a level agree.

Level i = 0, 1, ... asks `samples` answers with temperature 0.7 + 0.1 i and top_p max(0.5, 0.9 - 0.1 i), each of at most b 2^i tokens. Where all of a
level are equal, that is the answer; at the last level it is the one given most often, of two given as often the earlier. What cannot be read never
agrees and has no vote. The paper's budget b is of video frames; here it is of the tokens of an answer.

Its nearest relative is the majority vote of a fixed number of answers (`metrics.maj_at_k`), which spends as much on what everybody agrees about.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.config.common import GenerationSettings
from pipelines.evaluation.benchmarks import judge
from pipelines.evaluation.metrics import maj_at_k
from pipelines.evaluation.scores import rows_by_problem
from pipelines.generation import Generator, respond
from pipelines.records import Outcome, Problem
from pipelines.verifiers import VerifierPool

PURPOSE = "adaptive voting"


@dataclass(frozen=True)
class Vote:
    """What became of one problem. level: the last that was asked. tokens: of all its answers. agreed: those of the last level were all equal."""

    problem_id: str
    correct: bool
    level: int
    samples: int
    tokens: int
    agreed: bool


def settings_of(settings: GenerationSettings, level: int) -> GenerationSettings:
    """How a level samples; `settings.max_new_tokens` is the budget of the first."""
    how = {"temperature": 0.7 + 0.1 * level, "top_p": max(0.5, 0.9 - 0.1 * level), "max_new_tokens": settings.max_new_tokens * 2**level}
    return settings.model_copy(update=how)


def agree(labels: Sequence[Hashable | None]) -> bool:
    """Whether all are the same answer; None is none."""
    return labels[0] is not None and len(set(labels)) == 1


def elected(labels: Sequence[Hashable | None]) -> Hashable | None:
    """The answer given most often, of equals the earliest; None where there is no answer."""
    counts = Counter(label for label in labels if label is not None)
    return max(counts, key=lambda label: counts[label], default=None)


def vote(
    create: Callable[[GenerationSettings], Generator],
    settings: GenerationSettings,
    problems: Sequence[Problem],
    pool: VerifierPool,
    seed: int,
    samples: int = 5,
    levels: int = 3,
) -> list[Vote]:
    """The vote on each problem, in order; none without levels. create: an engine with the settings of a level, made only where a problem is left for
    it, and closed after it."""
    found: dict[str, Vote] = {}
    waiting = list(problems)
    for level in range(levels):
        if not waiting:
            break
        with contextlib.closing(create(settings_of(settings, level))) as generator:
            table = judge(waiting, respond(generator, waiting, samples, (seed, PURPOSE, level)), seed, pool)
        for problem, first in zip(waiting, range(0, len(table), samples), strict=True):
            rows = table.slice(first, samples).to_pylist()
            labels = [row["vote"] for row in rows]
            winner = elected(labels)
            before = found.get(problem.problem_id)
            found[problem.problem_id] = Vote(
                problem.problem_id,
                winner is not None and rows[winner]["outcome"] == Outcome.CORRECT.value,
                level,
                samples * (level + 1),
                sum(row["response_tokens"] for row in rows) + (before.tokens if before else 0),
                agree(labels),
            )
        waiting = [problem for problem in waiting if not found[problem.problem_id].agreed]
    return list(found.values())


def summary(votes: Sequence[Vote], table: pa.Table) -> dict[str, float]:
    """Share of problems that the vote gets right, mean tokens and answers of a problem, and the share that agreed in the end; beside them
    the majority of as many answers of `table` (SAMPLE_SCHEMA) as take no more tokens, one at least."""
    count = len(votes)
    spent = sum(vote.tokens for vote in votes) / count
    groups = [[row for row in rows if row.outcome != Outcome.INFRASTRUCTURE] for rows in rows_by_problem(table)[0].values()]
    groups = [rows for rows in groups if rows]
    each = sum(row.tokens for rows in groups for row in rows) / sum(map(len, groups))
    k = max(1, min(*map(len, groups), int(spent / each)))
    majority = [maj_at_k([row.vote for row in rows], [row.outcome == Outcome.CORRECT for row in rows], k) for rows in groups]
    return {
        "accuracy": sum(vote.correct for vote in votes) / count,
        "tokens": spent,
        "samples": sum(vote.samples for vote in votes) / count,
        "agreed": sum(vote.agreed for vote in votes) / count,
        "majority_samples": float(k),
        "majority_accuracy": sum(majority) / len(majority),
        "majority_tokens": k * each,
    }
