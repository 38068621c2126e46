"""Intervals and paired tests: worked numbers, brute force, and what they promise when simulated."""

from itertools import product

import numpy as np
import pytest

from pipelines.evaluation.statistics import (
    bootstrap_means,
    difference_of,
    effective_count,
    holm,
    mcnemar,
    mean_interval,
    paired_difference,
    share_interval,
    sign_flip,
    standard_error,
    t_quantile,
    verdict,
    wilson,
)
from pipelines.seeding import generator


def test_wilson_worked_numbers() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)
    low, high = wilson(10, 10)
    assert (low, high) == pytest.approx((0.7225, 1.0), abs=5e-5)


def test_bootstrap_resamples_problems_with_replacement() -> None:
    # Three problems: a mean of 0 needs the first drawn three times, probability 1/27.
    means = bootstrap_means(np.array([0.0, 1.0, 1.0]), 40_000, generator(0, "test"))
    assert set(np.round(means * 3).astype(int)) == {0, 1, 2, 3}
    assert float((means == 0).mean()) == pytest.approx(1 / 27, abs=0.003)
    assert float(means.mean()) == pytest.approx(2 / 3, abs=0.005)


def test_columns_share_their_resamples() -> None:
    values = generator(1).random(20)
    means = bootstrap_means(np.stack([values, 1 - values], 1), 500, generator(2))
    assert np.allclose(means.sum(1), 1.0)
    assert np.allclose(bootstrap_means(values, 500, generator(2)), means[:, 0])


def test_interval_widens_to_wilson_where_all_problems_agree() -> None:
    zero = mean_interval(np.zeros(10), 200, generator(0))
    assert (zero.mean, zero.low, round(zero.high, 4)) == (0.0, 0.0, 0.2775)


def test_interval_matches_the_normal_one_for_many_problems() -> None:
    values = generator(3).random(2000)
    interval = mean_interval(values, 4000, generator(4))
    error = values.std(ddof=1) / np.sqrt(2000)
    assert (interval.low, interval.high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error)


def test_identical_checkpoints_do_not_differ() -> None:
    values = generator(5).random(50)
    same = paired_difference(values, values, 500, generator(6))
    assert (same.mean, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_constant_gain_is_certain() -> None:
    values = generator(7).random(50)
    gain = paired_difference(values + 0.1, values, 999, generator(8))
    assert (gain.low, gain.high) == pytest.approx((0.1, 0.1))
    assert gain.p == pytest.approx(2 / 1000)  # as small as 999 resamples can say


def test_difference_is_antisymmetric() -> None:
    a, b = generator(9).random(40), generator(10).random(40)
    one, other = paired_difference(a, b, 800, generator(11)), paired_difference(b, a, 800, generator(11))
    assert (one.mean, one.low, one.high, one.p) == pytest.approx((-other.mean, -other.high, -other.low, other.p))


def test_pairing_narrows_the_interval() -> None:
    hard = generator(12).random(100)
    a, b = hard + 0.05 * generator(13).random(100), hard + 0.05 * generator(14).random(100)
    paired = paired_difference(a, b, 1000, generator(15))
    alone = mean_interval(a, 1000, generator(15))
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)


def test_no_difference_is_rejected_about_five_times_in_a_hundred() -> None:
    rejected = 0
    for trial in range(300):
        draw = generator(16, trial)
        hard = draw.random(60)
        a, b = (draw.binomial(8, hard) / 8 for _ in range(2))
        rejected += paired_difference(a, b, 400, draw).p < 0.05
    assert 3 <= rejected <= 30  # 15 expected


def test_intervals_cover_the_truth_about_ninety_five_times_in_a_hundred() -> None:
    covered = 0
    for trial in range(300):
        draw = generator(17, trial)
        interval = mean_interval(draw.binomial(8, draw.random(60)) / 8, 400, draw)
        covered += interval.low <= 0.5 <= interval.high
    assert 270 <= covered <= 297


def test_unequal_lengths_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="3 and 4 problems"):
        paired_difference(np.zeros(3), np.zeros(4), 10, generator(0))


def test_standard_error_of_single_problems_and_of_clusters() -> None:
    values = generator(18).random(12)
    assert standard_error(values) == pytest.approx(values.std(ddof=1) / np.sqrt(12))
    # Miller's formula, pair by pair: problems of one cluster vary together, others do not.
    clusters = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3])
    off = values - values.mean()
    pairs = sum(off[i] * off[j] for i, j in product(range(12), repeat=2) if clusters[i] == clusters[j])
    assert standard_error(values, clusters) == pytest.approx(np.sqrt(4 / 3 * pairs) / 12)
    assert standard_error(values[:1]) is None


def test_copies_of_a_problem_in_one_cluster_add_no_evidence() -> None:
    values = generator(19).binomial(1, 0.6, 40).astype(float)
    copied, clusters = np.repeat(values, 5), np.repeat(np.arange(40), 5)
    assert standard_error(copied, clusters) == pytest.approx(standard_error(values))
    assert np.allclose(bootstrap_means(copied, 300, generator(20), clusters), bootstrap_means(values, 300, generator(20)))
    assert effective_count(values.mean(), standard_error(values), 40, 40) == pytest.approx(40)
    # 40 at most: t with 39 degrees of freedom and the exact variance make it less
    assert 36 < effective_count(values.mean(), standard_error(copied, clusters), 200, 40) <= 40


def test_one_binary_answer_per_problem_gets_wilsons_own_interval() -> None:
    interval = share_interval(np.array([1.0] * 8 + [0.0] * 2))
    assert (interval.low, interval.high) == pytest.approx((0.4902, 0.9433), abs=5e-5)


def test_quantiles_of_student() -> None:
    assert [round(t_quantile(0.975, freedom), 3) for freedom in (1, 2, 9, 10, 29, 200)] == [12.706, 4.303, 2.262, 2.228, 2.045, 1.972]


@pytest.mark.parametrize(("count", "samples", "skew"), [(10, 1, False), (30, 1, True), (10, 8, False), (30, 8, True)])
def test_intervals_of_few_problems_cover_the_truth(count: int, samples: int, skew: bool) -> None:
    covered = 0
    for trial in range(400):
        draw = generator(21, count, samples, trial)
        hard = draw.beta(0.5, 4, count) if skew else draw.random(count)
        interval = share_interval(draw.binomial(samples, hard) / samples)
        covered += interval.low <= (1 / 9 if skew else 0.5) <= interval.high
    assert covered >= 0.92 * 400  # percentiles of the bootstrap cover 69 to 95 % here


def test_only_clustered_intervals_cover_the_truth_of_clustered_problems() -> None:
    clustered = naive = 0
    clusters = np.repeat(np.arange(20), 5)
    for trial in range(400):
        draw = generator(22, trial)
        values = draw.binomial(4, np.repeat(draw.random(20), 5)) / 4
        aware, blind = share_interval(values, clusters), share_interval(values)
        clustered += aware.low <= 0.5 <= aware.high
        naive += blind.low <= 0.5 <= blind.high
    assert 0.92 * 400 <= clustered <= 0.99 * 400
    assert naive < 0.8 * 400


def test_mcnemar_by_the_book_and_by_all_swaps() -> None:
    assert mcnemar(10, 2) == pytest.approx(0.0386, abs=5e-5)
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0
    for only_a, only_b in ((3, 1), (5, 0), (2, 4)):
        swaps = [abs(sum(signs)) >= abs(only_a - only_b) for signs in product((-1, 1), repeat=only_a + only_b)]
        assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a) == pytest.approx(sum(swaps) / len(swaps))


def test_sign_flips_equal_all_swaps_and_mcnemar_on_binary_answers() -> None:
    deltas = np.array([0.5, 0.25, -0.25, 0.75, 0.0, 0.5, 0.125, 0.25])
    swaps = [abs(np.dot(signs, deltas)) >= deltas.sum() - 1e-9 for signs in product((-1, 1), repeat=8)]
    binary = np.array([1.0] * 10 + [-1.0] * 2 + [0.0] * 8)
    (graded,) = sign_flip(deltas[:, None], 40_000, generator(23))
    (single,) = sign_flip(binary[:, None], 40_000, generator(23))
    assert graded == pytest.approx(np.mean(swaps), abs=0.005)
    assert single == pytest.approx(mcnemar(10, 2), abs=0.005)
    whole = np.repeat(np.arange(3), [10, 2, 8])
    assert sign_flip(binary[:, None], 4000, generator(23), whole) == [pytest.approx(1.0, abs=0.02)], "two clusters that differ say nothing"


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_better_needs_the_interval_and_the_adjusted_p() -> None:
    assert verdict(0.01, 0.2, 0.05) == "better" and verdict(-0.2, -0.01, 0.001) == "worse"
    assert {verdict(0.01, 0.2, 0.051), verdict(-0.01, 0.2, 0.001), verdict(0.0, 0.0, 1.0)} == {"no difference shown"}


def test_size_of_the_tests_and_of_the_family() -> None:
    """Six comparisons of equal checkpoints on few problems: 5 % at most per test, per family, and for the word 'better'."""
    single = family = said = covered = 0
    for trial in range(400):
        draw = generator(24, trial)
        hard = draw.random(16)
        deltas = np.stack([(draw.binomial(4, hard) - draw.binomial(4, hard)) / 4 for _ in range(6)], 1)
        means, ps = bootstrap_means(deltas, 300, draw), sign_flip(deltas, 300, draw)
        found = [difference_of(deltas[:, i], means[:, i]) for i in range(6)]
        single += ps[0] <= 0.05
        family += min(holm(ps)) <= 0.05
        said += any(verdict(d.low, d.high, p) != "no difference shown" for d, p in zip(found, holm(ps), strict=True))
        covered += found[0].low <= 0 <= found[0].high
    assert 0.02 * 400 <= single <= 0.08 * 400
    assert said <= family <= 0.08 * 400
    assert 0.92 * 400 <= covered <= 0.99 * 400


def test_one_problem_says_nothing_of_others() -> None:
    lone = paired_difference(np.ones(1), np.zeros(1), 50, generator(25))
    assert (lone.mean, lone.low, lone.high, lone.p, lone.se) == (1.0, -1.0, 1.0, 1.0, None)
