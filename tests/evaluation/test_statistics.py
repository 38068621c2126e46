"""Intervals and paired tests: worked numbers, and what they promise when simulated."""

import numpy as np
import pytest

from pipelines.evaluation.statistics import bootstrap_means, mean_interval, paired_difference, wilson
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
