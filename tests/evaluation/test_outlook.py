"""What a curve under way will come to, on curves whose end is known."""

import numpy as np
import pytest

from pipelines.evaluation.outlook import MARGIN, end, outlook

STEPS = 60
NOISE = 0.02 * np.array([1, -1, -1, 1, 0, 1, 0, -1, 0, 0] * 6)


def sigmoid(first, last, middle, steepness=3.0):
    with np.errstate(divide="ignore"):
        return first + (last - first) / (1 + (middle / np.arange(float(STEPS))) ** steepness) + NOISE


def stopped_at(rates, best):
    """The step after which it is found hopeless, looked at after each."""
    return next((step for step in range(1, STEPS) if (seen := outlook(rates[:step], STEPS, best)) and seen.hopeless), None)


def test_the_end_is_the_mean_of_the_last_tenth_and_five_steps_at_least():
    assert end(np.arange(100.0)) == 94.5
    assert end(np.arange(20.0)) == 17.0
    assert end(np.array([1.0, 2.0])) == 1.5


def test_nothing_is_said_of_few_steps_nor_of_a_run_that_is_over():
    rates = sigmoid(0.3, 0.5, 10)
    assert outlook(rates[:23], STEPS, 0.9) is None and outlook(rates[:24], STEPS, 0.9) is not None
    assert outlook(rates, STEPS, 0.9) is None
    assert outlook(rates[:7], 16, 0.9) is None, "four parameters want eight points"


def test_a_curve_that_has_come_to_rest_is_hopeless_against_a_better_one_and_not_against_a_worse():
    rates = sigmoid(0.3, 0.5, 8)
    seen = outlook(rates[:30], STEPS, 0.7)
    assert seen and seen.hopeless and seen.low <= end(rates) <= seen.high < 0.7 - MARGIN
    assert (seen.step, seen.steps) == (30, STEPS)
    assert stopped_at(rates, 0.7) == 24
    assert stopped_at(rates, 0.5) is None and stopped_at(rates, None) is None


def test_a_margin_lies_between():
    seen = outlook(sigmoid(0.3, 0.5, 8)[:30], STEPS, 0.0)
    assert seen
    at_the_margin, beyond = (outlook(sigmoid(0.3, 0.5, 8)[:30], STEPS, seen.high + MARGIN + more) for more in (-1e-6, 1e-6))
    assert at_the_margin and beyond and not at_the_margin.hopeless and beyond.hopeless


@pytest.mark.parametrize("middle", [30, 40, 50])
def test_a_curve_that_rises_late_goes_on(middle):
    """It stands far below the best when it is first looked at, and ends above it."""
    rates = sigmoid(0.2, 0.95, middle, 5.0)
    best = end(rates) - 0.05
    assert rates[:24].mean() < best - 0.2
    assert stopped_at(rates, best) is None


def test_a_curve_that_falls_is_hopeless():
    rates = 0.6 - 0.005 * np.arange(STEPS) + NOISE
    assert stopped_at(rates, 0.75) is not None


def test_a_curve_that_has_not_moved_may_yet_rise_until_half_of_the_run_is_over():
    rates = 0.3 + NOISE
    assert not outlook(rates[:24], STEPS, 0.8).hopeless
    assert 24 < stopped_at(rates, 0.8) <= 42
