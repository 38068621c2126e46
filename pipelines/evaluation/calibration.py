"""Does a policy know when it is right? Expected calibration error and Brier score of the confidence that it states (verifiers/confidence.py)."""

from __future__ import annotations

import numpy as np

from pipelines.evaluation.statistics import Floats

BINS = 10
"""Bins of equal width; a confidence of 1 belongs to the last."""


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
