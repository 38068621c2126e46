"""What a reward model is worth, on problems that it has not seen, and the temperature that makes its probabilities true.

    accuracy      share of pairs of responses to one prompt, one better than the other, that it orders rightly (ties count half)
    auc           likewise of responses to any prompts
    ece, brier    of its probabilities, with the temperature T (arXiv 1706.04599) and without (`ece_before`)

Intervals are over problems. Shapes: S responses, P pairs, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.calibration import bin_sums, brier, expected_calibration_error
from pipelines.evaluation.statistics import Floats, mean_interval, percentiles

RESAMPLES = 1000
COMPARED = 2000
"""Responses of which auc compares each with each, the first ones; the time it takes grows with their square."""
COLDEST, HOTTEST = 1e-2, 1e2
"""Temperatures that are searched."""
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """Responses with what they are worth. target: the truth, score: what the model says, tokens: their length, problem: number of the problem."""

    target_S: Floats
    score_S: Floats
    tokens_S: Floats
    problem_S: Places


@dataclass(frozen=True)
class Pairs:
    """Places of the better and the worse response of each pair in `Scored`."""

    better_P: Places
    worse_P: Places


def within(scored: Scored, group_S: Sequence[object]) -> Pairs:
    """All pairs of responses of one group whose targets differ."""
    members: dict[object, list[int]] = {}
    for place, group in enumerate(group_S):
        members.setdefault(group, []).append(place)
    found = [(a, b) for group in members.values() for a in group for b in group if scored.target_S[a] > scored.target_S[b]]
    better, worse = zip(*found, strict=True) if found else ((), ())
    return Pairs(np.array(better, np.int64), np.array(worse, np.int64))


def ordering(scored: Scored, pairs: Pairs, generator: np.random.Generator) -> dict[str, float]:
    """Accuracy with its interval; of pairs whose better response is the shorter, and the longer; and how length and score go together."""
    gap_P = scored.score_S[pairs.better_P] - scored.score_S[pairs.worse_P]
    right_P = (gap_P > 0) + 0.5 * (gap_P == 0)
    longer_P = scored.tokens_S[pairs.better_P] - scored.tokens_S[pairs.worse_P]
    found = mean_interval(right_P, RESAMPLES, generator, _numbered(scored.problem_S[pairs.better_P]))
    told = {"accuracy": found.mean, "accuracy_low": found.low, "accuracy_high": found.high, "pairs": float(len(gap_P))}
    for name, part_P in {"shorter": right_P[longer_P < 0], "longer": right_P[longer_P > 0]}.items():
        told[f"pairs_better_{name}"] = float(len(part_P))
        if len(part_P):
            told[f"accuracy_better_{name}"] = float(part_P.mean())
    if len(np.unique(scored.tokens_S)) > 1 and len(np.unique(scored.score_S)) > 1:
        told["length_correlation"] = float(np.corrcoef(scored.tokens_S, scored.score_S)[0, 1])
    return told


def discrimination(scored: Scored, generator: np.random.Generator) -> dict[str, float]:
    """Area under the ROC curve, for targets that are no classes the share of ordered pairs, with its interval by resampled problems; none where all
    targets are one."""
    target_S, score_S = scored.target_S[:COMPARED], scored.score_S[:COMPARED]
    larger_SS = (target_S[:, None] > target_S).astype(np.float64)
    if not larger_SS.any():
        return {}
    right_SS = larger_SS * ((score_S[:, None] > score_S) + 0.5 * (score_S[:, None] == score_S))
    told = {"auc": float(right_SS.sum() / larger_SS.sum())}
    problem_S = _numbered(scored.problem_S[:COMPARED])
    count = int(problem_S.max()) + 1
    drawn_RS = np.stack([np.bincount(row, minlength=count) for row in generator.integers(count, size=(RESAMPLES, count))])[:, problem_S]
    weight_RS = drawn_RS.astype(np.float64)
    pairs_R = ((weight_RS @ larger_SS) * weight_RS).sum(1)
    means_R = ((weight_RS @ right_SS) * weight_RS).sum(1)[pairs_R > 0] / pairs_R[pairs_R > 0]
    low, high = percentiles(means_R, count) if count > 1 else (0.0, 1.0)
    return told | {"auc_low": low, "auc_high": high}


def classes(probability_S: Floats, target_S: Floats, problem_S: Places, generator: np.random.Generator) -> dict[str, float]:
    """Share of the responses whose class is the likelier one, with its interval, and the share that are right, which a constant answer has too."""
    right_S = ((probability_S > 0.5) == (target_S > 0.5)).astype(np.float64)
    found = mean_interval(right_S, RESAMPLES, generator, _numbered(problem_S))
    return {"class_accuracy": found.mean, "class_accuracy_low": found.low, "class_accuracy_high": found.high, "right": float(target_S.mean())}


def calibration(probability_S: Floats, before_S: Floats, true_S: Floats) -> dict[str, float]:
    """ECE and Brier score with the temperature, and before it."""
    told = {"ece": float(expected_calibration_error(bin_sums(probability_S, true_S))), "brier": float(brier(probability_S, true_S).mean())}
    before = {"ece_before": float(expected_calibration_error(bin_sums(before_S, true_S))), "brier_before": float(brier(before_S, true_S).mean())}
    return told | before


def temperature_of_margins(margin_S: Floats) -> float:
    """T with the largest likelihood where s(margin / T) is the probability of what came true. That counts as (S + 1) / (S + 2) of a time (Platt
    1999): a model that is right on all of a few responses is not certain of others."""
    true = (len(margin_S) + 1) / (len(margin_S) + 2)
    return temperature(lambda inverse: float((margin_S * (sigmoid(inverse * margin_S) - true)).sum()))


def temperature_of_classes(logits_SK: Floats, target_SK: Floats) -> float:
    """T with the least cross-entropy of softmax(logits / T) to the targets."""
    return temperature(lambda inverse: float(((softmax(inverse * logits_SK) - target_SK) * logits_SK).sum()))


def temperature(slope: Callable[[float], float]) -> float:
    """Where the slope of a loss that is convex in 1 / T, by 1 / T, is 0: by bisection between COLDEST and HOTTEST."""
    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))


def softmax(logits_SK: Floats) -> Floats:
    shifted = np.exp(logits_SK - logits_SK.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _numbered(problem_S: Places) -> Places:
    """Problems numbered from 0 without a gap."""
    return np.unique(problem_S, return_inverse=True)[1].astype(np.int64)
