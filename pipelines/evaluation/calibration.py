"""Does a policy know when it is right? Expected calibration error and Brier score of the confidence that it states.

The confidence is verbalised: what the final text says after the word "confidence" (`Confidence: 80%`, `confidence is 0.8`, `8/10`,
`<confidence>0.8</confidence>`) or before the words "confident", "sure" or "certain" (`80 % sure`); the last such statement counts. A
number of at most 1 without a unit is a probability, a larger one a percentage. A response that states none has none: nothing is
inferred from its wording or from token probabilities.
"""

from __future__ import annotations

import re

import numpy as np

from pipelines.evaluation.statistics import Floats
from pipelines.verifiers.text import final_text

BINS = 10
"""Bins of equal width; a confidence of 1 belongs to the last."""
_NUMBER = r"(\d{1,3}(?:\.\d{1,6})?|\.\d{1,6})"
_UNIT = r"\s{0,3}(\\?%|percent\b|/\s{0,3}100?\b)?"
_STATED = re.compile(
    rf"\bconfidence\b(?:\s{{1,3}}(?:level|score))?[\s:=*_>]{{0,8}}(?:(?:is|of)\b[\s*_]{{0,6}})?{_NUMBER}(?![\d.]*\d){_UNIT}"
    rf"|(?<![\d./]){_NUMBER}\s{{0,3}}(\\?%|percent\b)\s{{1,3}}(?:confident|sure|certain)\b",
    re.IGNORECASE,
)


def stated_confidence(response: str) -> float | None:
    """The probability of being right that a response states last, in [0, 1]; None where it states none or one outside."""
    statements = list(_STATED.finditer(final_text(response) or ""))
    if not statements:
        return None
    found = statements[-1]
    value, unit = float(found[1] or found[3]), (found[2] or found[4] or "").replace(" ", "")
    scale = 10 if unit == "/10" else 100 if unit or value > 1 else 1
    return value / scale if value <= scale else None


def bin_sums(confidence_S: Floats, correct_S: Floats) -> Floats:
    """(BINS, 3): responses, sum of confidences and number correct in each bin."""
    place = np.minimum((confidence_S * BINS).astype(np.int64), BINS - 1)
    return np.stack([np.bincount(place, weights, BINS).astype(np.float64) for weights in (np.ones_like(confidence_S), confidence_S, correct_S)], 1)


def expected_calibration_error(sums: Floats) -> Floats:
    """ECE = sum over bins of |correct - confidence| / responses (arXiv 1706.04599) of (..., BINS, 3) sums -> (...). Empty bins add nothing."""
    return np.abs(sums[..., 2] - sums[..., 1]).sum(-1) / sums[..., 0].sum(-1)


def brier(confidence_S: Floats, correct_S: Floats) -> Floats:
    """Squared error of each confidence; its mean is the Brier score."""
    return (confidence_S - correct_S) ** 2
