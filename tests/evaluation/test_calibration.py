"""Stated confidences: how they are read, and what ECE and Brier score make of them."""

import numpy as np
import pytest

from pipelines.evaluation.calibration import BINS, bin_sums, brier, expected_calibration_error
from pipelines.seeding import generator
from pipelines.verifiers.confidence import stated_confidence


@pytest.mark.parametrize(
    ("response", "confidence"),
    [
        ("\\boxed{4}\nConfidence: 80%", 0.8),
        ("**Confidence:** 0.8", 0.8),
        ("confidence level: 85", 0.85),
        ("My confidence is 8/10.", 0.8),
        ("confidence 80/100", 0.8),
        ("<confidence>.35</confidence>", 0.35),
        ("I am 90 % sure, or rather 70\\% certain.", 0.7),
        ("confidence: 1", 1.0),
        ("<think>Confidence: 10%</think>4. Confidence: 60 percent", 0.6),
        ("Confidence: 120%", None),
        ("confidence: 12345", None),
        ("<confidence>1.8</confidence>", None),
        ("confidence: 8", None),
        ("<confidence>-1</confidence>", None),
        ("<confidence>high</confidence> 4", None),
        ("<confidence>0.3</confidence> 70", 0.3),
        ("very high confidence", None),
        ("95 % confidence interval", None),
        ("<think>Confidence: 10%</think>4", None),
        ("4", None),
    ],
)
def test_what_a_response_states(response: str, confidence: float | None) -> None:
    assert stated_confidence(response) == (None if confidence is None else pytest.approx(confidence))


def ece(confidence: list[float], correct: list[int]) -> float:
    return float(expected_calibration_error(bin_sums(np.array(confidence, float), np.array(correct, float))))


def test_worked_numbers() -> None:
    eighty = np.array([1.0] * 80 + [0.0] * 20)
    assert ece([0.8] * 100, [*eighty]) == pytest.approx(0.0, abs=1e-12)
    assert brier(np.full(100, 0.8), eighty).mean() == pytest.approx(0.16)
    assert ece([1.0] * 10, [1, 0] * 5) == pytest.approx(0.5)
    assert brier(np.ones(10), np.array([1.0, 0.0] * 5)).mean() == pytest.approx(0.5)
    assert bin_sums(np.ones(3), np.ones(3))[-1].tolist() == [3, 3, 3], "certainty belongs to the last bin"


def test_ece_is_the_weighted_gap_of_each_bin() -> None:
    draw = generator("ece")
    confidence, correct = draw.random(300), draw.integers(2, size=300).astype(float)
    gaps = 0.0
    for i in range(BINS):
        inside = (confidence >= i / BINS) & (confidence < (i + 1) / BINS)
        if inside.any():
            gaps += inside.sum() / 300 * abs(correct[inside].mean() - confidence[inside].mean())
    assert ece([*confidence], [*correct]) == pytest.approx(gaps)
