"""Losses of reward models and what is measured of them, by numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from pipelines.evaluation import reward_models as figures
from pipelines.evaluation.calibration import bin_sums, expected_calibration_error
from pipelines.models.reward_model import SIGMA, edges
from pipelines.reward_model import losses

BETTER, WORSE, NONE = torch.tensor([1.2, 0.1, 2.0]), torch.tensor([0.3, 0.4, -1.0]), torch.zeros(3)


def close(found: torch.Tensor, wanted: list[float]) -> bool:
    return torch.allclose(found, torch.tensor(wanted, dtype=found.dtype), atol=2e-6)


def test_bradley_terry_is_the_softplus_of_the_gap():
    better = BETTER.clone().requires_grad_()
    loss = losses.bradley_terry(better, WORSE, NONE)
    assert close(loss.detach(), [0.341154, 0.854355, 0.048587])
    loss.mean().backward()
    assert better.grad is not None and close(better.grad, [-0.09635, -0.191481, -0.015809])


@pytest.mark.parametrize(
    ("given", "margin", "mean"),
    [({}, [0, 0, 0], 0.414699), ({}, [0, 0, 1], 0.440812), ({"centre": 0.01}, [0, 0, 0], 0.426365), ({"noise": 0.3}, [0, 0, 0], 0.774699)],
)
def test_margin_centre_and_noise(given, margin, mean):
    assert float(losses.bradley_terry(BETTER, WORSE, torch.tensor(margin, dtype=torch.float32), **given).mean()) == pytest.approx(mean, abs=2e-6)


@pytest.mark.parametrize(
    ("score", "wanted", "mean"),
    [(0.5, [0.02234, 0.22994, 0.49544, 0.22994, 0.02234], 0.5), (0.33, [0.181686, 0.493431, 0.28845, 0.035561, 0.000872], 0.336101)],
)
def test_a_score_becomes_a_gaussian_over_bins(score, wanted, mean):
    border = torch.linspace(0, 1, 6)
    target = losses.histogram(torch.tensor([score]), border, 0.15)[0]
    assert close(target, wanted) and float(target @ ((border[1:] + border[:-1]) / 2)) == pytest.approx(mean, abs=2e-6)


def test_hl_gauss_is_the_cross_entropy_to_it():
    logits = torch.tensor([[0.1, -0.2, 0.3, 0.5, -0.4]], requires_grad=True)
    loss = losses.hl_gauss(logits, losses.histogram(torch.tensor([0.33]), torch.linspace(0, 1, 6), 0.15))
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(1.698031, abs=2e-6)
    assert logits.grad is not None and close(logits.grad[0], [0.01592, -0.347041, -0.047094, 0.259233, 0.118982])


def test_bins_reach_three_deviations_past_the_span_so_that_its_ends_are_no_border():
    border = edges((0.0, 1.0), 8)
    width = float(border[1] - border[0])
    assert width == pytest.approx(1 / 3.5) and float(border[0]) == pytest.approx(-3 * SIGMA * width) and float(border[-1]) == pytest.approx(1 + 3 * SIGMA * width)
    target = losses.histogram(torch.tensor([1.0]), border, SIGMA * width)[0]
    assert float(target @ ((border[1:] + border[:-1]) / 2)) == pytest.approx(0.998, abs=2e-3)
    cut = losses.histogram(torch.tensor([1.0]), torch.linspace(0, 1, 6), 0.15)[0]
    assert float(cut @ torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])) == pytest.approx(0.861971, abs=2e-6)


def test_binary_is_the_likelihood_of_the_verdict():
    loss = losses.binary(torch.tensor([2.0, 2.0, 0.0]), torch.tensor([1.0, 0.0, 1.0]))
    assert close(loss, [math.log(1 + math.exp(-2)), math.log(1 + math.exp(2)), math.log(2)])


def scored(target, score, tokens, problem) -> figures.Scored:
    return figures.Scored(*(np.array(each, dtype=np.float64) for each in (target, score, tokens)), np.array(problem))


def test_order_of_pairs_of_one_prompt_by_length_with_ties_as_halves():
    made = scored([1, 0, 1, 0, 1, 1], [2.0, 1.0, 0.5, 0.5, 0.0, 9.0], [3, 5, 8, 2, 4, 4], [0, 0, 1, 1, 2, 2])
    pairs = figures.within(made, ["a", "a", "b", "b", "c", "c"])
    assert [*zip(pairs.better_P.tolist(), pairs.worse_P.tolist(), strict=True)] == [(0, 1), (2, 3)], "c has no worse one"
    told = figures.ordering(made, pairs, np.random.default_rng(0))
    assert told["accuracy"] == 0.75 and told["pairs"] == 2 and told["accuracy_low"] < 0.75 < told["accuracy_high"] <= 1
    assert (told["pairs_better_shorter"], told["accuracy_better_shorter"], told["pairs_better_longer"], told["accuracy_better_longer"]) == (1, 1.0, 1, 0.5)
    assert told["length_correlation"] == pytest.approx(np.corrcoef(made.tokens_S, made.score_S)[0, 1])


def test_pairs_of_one_problem_are_one_piece_of_evidence():
    def low(problem) -> float:
        made = scored([1, 0] * 40, [1.0, 0.0] * 30 + [0.0, 1.0] * 10, [1] * 80, problem)
        places = np.arange(80)
        return figures.ordering(made, figures.Pairs(places[::2], places[1::2]), np.random.default_rng(0))["accuracy_low"]

    assert low([place // 2 for place in range(80)]) == pytest.approx(0.5981, abs=2e-3), "Wilson's interval of 30 of 40"
    assert low([place // 20 for place in range(80)]) < 0.3, "four problems"


def test_area_under_the_curve_counts_ties_as_halves():
    told = figures.discrimination(scored([1, 1, 0, 0], [0.9, 0.5, 0.5, 0.1], [1] * 4, [0, 1, 2, 3]), np.random.default_rng(0))
    assert told["auc"] == 3.5 / 4 and told["auc_low"] < told["auc"] <= told["auc_high"]
    assert figures.discrimination(scored([1, 1], [0.9, 0.5], [1, 1], [0, 1]), np.random.default_rng(0)) == {}


def test_the_temperature_is_the_one_of_the_largest_likelihood():
    # 3 of 4 come true at a margin of 2, each 5/6 of a time: 3 (5/6 - s) = 5/6 - (1 - s), so s(2 / T) = 2/3 and T = 2 / ln 2
    assert figures.temperature_of_margins(np.array([2.0, 2.0, 2.0, -2.0])) == pytest.approx(2 / math.log(2), abs=1e-9)
    # 2 of 2 at a margin of 1: s(1 / T) = 3/4
    assert figures.temperature_of_margins(np.array([1.0, 1.0])) == pytest.approx(1 / math.log(3), abs=1e-9)
    assert figures.temperature_of_margins(np.array([-1.0, -1.0])) == pytest.approx(figures.HOTTEST), "it is always wrong"
    logits, target = np.array([[2.0, 0.0]] * 4), np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    heat = figures.temperature_of_classes(logits, target)
    assert heat == pytest.approx(2 / math.log(3), abs=1e-9), "3 of 4 are of the class whose logit is 2 more"
    claimed, before, true = figures.sigmoid(np.full(4, 2 / heat)), figures.sigmoid(np.full(4, 2.0)), np.array([1.0, 1.0, 1.0, 0.0])
    told = figures.calibration(claimed, before, true)
    sure = 1 / (1 + math.exp(-2))
    assert told["ece"] == pytest.approx(0, abs=1e-9) and told["ece_before"] == pytest.approx(sure - 0.75) and told["brier"] == pytest.approx(0.1875)
    assert told["brier_before"] == pytest.approx((3 * (1 - sure) ** 2 + sure**2) / 4)
    assert told["ece_before"] == pytest.approx(float(expected_calibration_error(bin_sums(before, true))))


def test_classes_are_told_with_the_share_that_a_constant_answer_has():
    told = figures.classes(np.array([0.9, 0.6, 0.2, 0.4]), np.array([1.0, 0.0, 0.0, 1.0]), np.array([0, 1, 2, 3]), np.random.default_rng(0))
    assert told["class_accuracy"] == 0.5 and told["right"] == 0.5 and told["class_accuracy_low"] < 0.5 < told["class_accuracy_high"]
