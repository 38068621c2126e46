"""Sample-count metrics against worked numbers and against every subset there is."""

import math
from itertools import combinations, permutations

import pytest

from pipelines.evaluation.metrics import answer_entropy, avg_at_k, g_pass_at_k, maj_at_k, mg_pass_at_k, pass_at_k, pass_hat_k, worst_at_k


def draws(n: int, c: int, k: int) -> list[int]:
    """Number of correct samples in each of the C(n, k) draws."""
    return [sum(i < c for i in chosen) for chosen in combinations(range(n), k)]


def test_worked_numbers() -> None:
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(10, 3, 5) == pytest.approx(0.9167, abs=5e-5)
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    assert pass_hat_k(4, 2, 2) == pytest.approx(1 / 6)
    assert avg_at_k(8, 6, 3) == 0.75
    assert [round(g_pass_at_k(16, 8, 4, tau), 4) for tau in (0, 0.25, 0.5, 0.75, 1)] == [0.9615, 0.9615, 0.7154, 0.2846, 0.0385]
    assert round(mg_pass_at_k(16, 8, 4), 4) == 0.1615


@pytest.mark.parametrize("n", range(1, 9))
def test_formulas_equal_all_subsets(n: int) -> None:
    for c in range(n + 1):
        for k in range(1, n + 1):
            seen = draws(n, c, k)
            assert pass_at_k(n, c, k) == pytest.approx(sum(s > 0 for s in seen) / len(seen))
            assert pass_hat_k(n, c, k) == pytest.approx(sum(s == k for s in seen) / len(seen))
            assert avg_at_k(n, c, k) == pytest.approx(sum(seen) / k / len(seen))
            for least in range(1, k + 1):
                assert g_pass_at_k(n, c, k, least / k) == pytest.approx(sum(s >= least for s in seen) / len(seen))


def test_monotony_and_limits() -> None:
    for c in range(17):
        rising = [pass_at_k(16, c, k) for k in range(1, 17)]
        falling = [pass_hat_k(16, c, k) for k in range(1, 17)]
        assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
        assert rising[0] == pytest.approx(c / 16) == pytest.approx(falling[0])


def test_threshold_of_g_pass_does_not_suffer_from_rounding() -> None:
    # 0.1 * 30 > 3 in floating point; three correct of thirty drawn must do.
    assert g_pass_at_k(30, 3, 30, 0.1) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 5, 1), (4, -1, 1), (4, 1, 0)])
def test_what_does_not_exist_is_refused(n: int, c: int, k: int) -> None:
    for metric in (pass_at_k, pass_hat_k, avg_at_k):
        with pytest.raises(ValueError):
            metric(n, c, k)


def test_worst_equals_all_subsets_and_pass_hat_on_verdicts() -> None:
    scores = [0.2, 0.9, 0.9, 0.0, 0.5]
    for k in range(1, 6):
        lowest = [min(chosen) for chosen in combinations(scores, k)]
        assert worst_at_k(scores, k) == pytest.approx(sum(lowest) / len(lowest))
        assert worst_at_k([1, 1, 0, 1, 0], k) == pytest.approx(pass_hat_k(5, 3, k))


def test_entropy_of_answers() -> None:
    assert answer_entropy(["7"] * 32) == 0.0
    assert answer_entropy(range(32)) == pytest.approx(math.log(32)) == pytest.approx(3.466, abs=5e-4)
    assert answer_entropy(["7", None, None, "7"]) == pytest.approx(math.log(2)), "no answer is one class"


def vote_by_hand(labels: list[str | None], right: set[str], k: int) -> float:
    """maj@k by looking at every draw."""
    total = 0.0
    chosen_sets = list(combinations(labels, k))
    for chosen in chosen_sets:
        votes = {label: chosen.count(label) for label in chosen if label is not None}
        leaders = [label for label, count in votes.items() if count == max(votes.values())]
        total += sum(label in right for label in leaders) / len(leaders) if leaders else 0.0
    return total / len(chosen_sets)


@pytest.mark.parametrize(
    "labels",
    [
        ["a", "a", "b", "b", "c", None],
        ["b", "b", "b", "a", "a", "c", "c"],
        ["a", "b", "c", "d", None, None],
        [None, None, None],
        ["a", "a", "a"],
        ["a", "x", "a", "x", "b", "b", "c"],
    ],
)
def test_majority_vote_equals_all_draws(labels: list[str | None]) -> None:
    right = {"a", "x"}
    good = [label in right for label in labels]
    for k in range(1, len(labels) + 1):
        assert maj_at_k(labels, good, k) == pytest.approx(vote_by_hand(labels, right, k))


def test_majority_vote_does_not_depend_on_order() -> None:
    labels = ["a", "a", "b", "b", "c"]
    assert {round(maj_at_k(order, [label == "a" for label in order], 3), 12) for order in permutations(labels)} == {round(13 / 30, 12)}


def test_majority_vote_by_hand() -> None:
    # One vote: a wins with probability 2/4. All four votes: a 2, b 1, the silent one casts none.
    labels, good = ["a", "a", "b", None], [True, True, False, False]
    assert maj_at_k(labels, good, 1) == pytest.approx(0.5)
    assert maj_at_k(labels, good, 4) == 1.0
    # A tie of two classes, one correct.
    assert maj_at_k(["a", "b"], [True, False], 2) == pytest.approx(0.5)


def test_majority_vote_needs_consistent_verdicts() -> None:
    with pytest.raises(ValueError, match="both correct and wrong"):
        maj_at_k(["a", "a"], [True, False], 1)
