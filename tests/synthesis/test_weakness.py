"""Weak topics and the share of the budget that each gets."""

import random

import pytest

from pipelines.records import Problem
from pipelines.synthesis.weakness import allocate, topics_of


def row(number: int, rate: float, topics: tuple[str, ...] = (), domain: str = "math", n: int = 8) -> Problem:
    return Problem(f"{number:04d}", domain, "p", "1", "integer", "math", topics=topics, pass_rate=rate, pass_n=n)


def test_sws_budget_shares() -> None:
    # failure rates of SwS (arXiv 2506.08989): shares .1193 .2187 .2309 .0902 .1697 .0566 .1147
    failures = [0.078, 0.143, 0.151, 0.059, 0.111, 0.037, 0.075]
    assert [part / 10_000 for part in allocate(10_000, failures)] == pytest.approx(
        [0.1193, 0.2187, 0.2309, 0.0902, 0.1697, 0.0566, 0.1147], abs=1.5e-4
    )
    # N = 100: floors 11 21 23 9 16 5 11 make 96; the largest remainders .97 (no. 5), .93 (1), .87 (2), .66 (6) get one more
    assert allocate(100, failures) == [12, 22, 23, 9, 17, 6, 11]


def test_allocation_sums_to_the_budget() -> None:
    rng = random.Random(1)
    for _ in range(200):
        weights = [rng.random() for _ in range(rng.randrange(1, 9))]
        budget = rng.randrange(0, 50)
        parts = allocate(budget, weights)
        assert sum(parts) == budget
        assert all(abs(part - budget * weight / sum(weights)) < 1 for part, weight in zip(parts, weights, strict=True))
    assert allocate(3, [1, 1]) == [2, 1] and allocate(5, []) == [] and allocate(5, [0, 0]) == [0, 0]


def test_topics_are_pooled_over_rollouts_and_weakest_first() -> None:
    rows = [
        row(1, 1.0, ("word", "level 1")),
        row(2, 0.0, ("word", "level 2"), n=8),
        row(3, 1.0, ("word", "level 2"), n=24),
        row(4, 0.25),
        row(5, 0.5),
        row(6, 0.5, domain="code"),
        Problem("0007", "math", "p", "1", "integer", "math"),  # not graded
    ]
    found = topics_of(rows[::-1], 0.6)
    assert [(topic.domain, topic.topics, topic.problems, topic.rollouts, topic.pass_rate) for topic in found] == [
        ("math", (), 2, 16, 0.375),
        ("code", (), 1, 8, 0.5),
        ("math", ("word", "level 2"), 2, 32, 0.75),
        ("math", ("word", "level 1"), 1, 8, 1.0),
    ]
    assert [problem.problem_id for problem in found[0].weakest] == ["0004", "0005"]
    assert [problem.problem_id for problem in found[2].weakest] == ["0002"] and found[3].weakest == ()


@pytest.mark.parametrize("rate", [0.6, 0.61])
def test_the_bound_itself_is_not_weak(rate: float) -> None:
    assert topics_of([row(1, rate)], 0.6)[0].weakest == ()
