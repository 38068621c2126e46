"""Rows against hand-computed numbers, second part: off-policy ratios, clipping, mismatch. A row's test is `test_<row>`."""

import math
from dataclasses import replace

import pytest
import torch
from batches import NEW, OLD, ROLL, batch, lengths, pg

from pipelines.records import Outcome, Problem, Trajectory, one_turn
from pipelines.rl import RECIPES, advantages, objective, recipe, with_advantages
from pipelines.rl.history import History
from pipelines.rl.slots import mismatch
from pipelines.rl.tasks import Draw, DropHighPass, draw

GAP = OLD - ROLL
ONE = torch.ones(1, 3, dtype=torch.float64)


def close(got, expected, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(got).double(), torch.as_tensor(expected).double(), atol=atol, rtol=0)


def single(row, reward: float, logp: float, roll: float, **tensors) -> float:
    """Loss of one response of one token."""
    made = batch(
        torch.tensor([reward]).double(), torch.tensor([0]), torch.ones(1, 1).double(), logp_roll_BT=torch.tensor([[roll]]).double(), **tensors
    )
    return float(objective(row, with_advantages(row, made), torch.tensor([[logp]]).double())[0])


def test_topr():
    row = RECIPES["topr"]
    assert single(row, 1.0, -4.0, -3.0) == pytest.approx(4.0)
    assert single(row, 0.0, -4.0, -3.0) == pytest.approx(-1.471518, abs=1e-6)
    assert single(row, 0.0, -2.0, -3.0) == pytest.approx(-2.0)  # the taper never exceeds 1
    # a baseline changes which fraction of the gradient is positive: p (1 - c) / (1 + (1 - 2p) c)
    for c, fraction in ((0.5, 0.25), (-0.5, 0.75)):
        moved = recipe("topr", center={"name": "const", "value": c})
        a = advantages(moved, batch(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), logp_roll_BT=torch.zeros(2, 1)))[:, 0]
        assert float(a[0] / a.abs().sum()) == pytest.approx(fraction)


def test_ctpo():
    row = recipe("ctpo", mismatch=[])
    assert pg(row, 1.0)[0] == pytest.approx(-0.953649, abs=1e-6)
    assert pg(row, -1.0)[0] == pytest.approx(0.991385, abs=1e-6)
    assert pg(RECIPES["ctpo"], 1.0)[0] == pytest.approx(-0.953649 * 0.40657, abs=2e-6)  # sequence TIS multiplies
    # tool tokens neither advance the place nor add to the product
    mask = torch.tensor([[1.0, 0, 1, 0, 1]], dtype=torch.float64)
    old, new = (torch.zeros(1, 5, dtype=torch.float64).masked_scatter(mask > 0, value) for value in (OLD, NEW))
    old[mask == 0], new[mask == 0] = -3.0, -1.0
    made = batch(torch.tensor([1.0]), torch.tensor([0]), mask, logp_old_BT=old, advantage_BT=mask)
    assert float(objective(row, made, new)[0]) == pytest.approx(-0.953649, abs=1e-6)


def test_ctpo_geometric():
    row = recipe("ctpo_geometric", mismatch=[])
    # mean log ratios .2, -.05, -.033333; bounds [-.025, .05] n^-.5
    expected = [-math.exp(0.05), -math.exp(-0.05), -math.exp(-0.1 / 3)]
    assert pg(row, 1.0)[0] == pytest.approx(sum(expected) / 3, abs=1e-6)


def test_tis():
    close(mismatch.token_truncated(GAP), [[1.105171, 0.367879, 1.0]])
    close(mismatch.token_truncated(GAP, cap=1.05), [[1.05, 0.367879, 1.0]])
    tokens = torch.tensor([-1.2 * 1.105171, -0.740818 * 0.367879, -1.0])
    assert pg(RECIPES["tis"], 1.0)[0] == pytest.approx(float(tokens.mean()), abs=1e-6)


def test_sequence_tis():
    close(mismatch.sequence_truncated(GAP), [[0.40657] * 3])
    close(mismatch.sequence_truncated(-GAP, cap=2.0), [[2.0] * 3])
    assert pg(RECIPES["sequence_tis"], 1.0)[0] == pytest.approx(-0.980273 * 0.40657, abs=1e-6)


def test_mis():
    close(mismatch.sequence_window(GAP, high=2.0), ONE)
    close(mismatch.sequence_window(-GAP, high=2.0), 0 * ONE)
    close(mismatch.sequence_window(GAP, low=0.5, high=2.0), 0 * ONE)
    close(mismatch.veto(GAP), ONE)
    close(mismatch.veto(torch.tensor([[0.0, -10.0, 0.0]])), torch.zeros(1, 3))
    close(mismatch.token_window(GAP, low=0.5, high=1.05, keep="one"), [[0.0, 0.0, 1.0]])
    assert pg(RECIPES["mis"], 1.0)[0] == pytest.approx(-0.980273, abs=1e-6)


def test_geometric_rs():
    assert math.exp(float(GAP.mean())) == pytest.approx(0.740818, abs=1e-6)
    close(mismatch.geometric_window(GAP, ONE), 0 * ONE)
    close(mismatch.geometric_window(GAP, ONE, low=0.7, high=0.8), ONE)
    assert pg(RECIPES["geometric_rs"], 1.0)[0] == 0.0
    # k2 = mean(.01, 1, 0)/2 = .168333, k3 = mean(.005171, .367879, 0) = .12435
    close(mismatch.divergence_limit(GAP, ONE, estimator="k2", limit=0.17), ONE)
    close(mismatch.divergence_limit(GAP, ONE, estimator="k2", limit=0.16), 0 * ONE)
    close(mismatch.divergence_limit(GAP, ONE, estimator="k3", limit=0.125), ONE)
    close(mismatch.divergence_limit(GAP, ONE, estimator="k3", limit=0.124), 0 * ONE)


def test_weights_can_be_divided_by_their_mean():
    row = recipe("tis", mismatch=[{"name": "token_truncated", "cap": 2.0}, {"name": "divide_by_mean"}])
    mean = (1.105171 + 0.367879 + 1.0) / 3
    assert pg(row, 1.0)[0] == pytest.approx(pg(RECIPES["tis"], 1.0)[0] / mean, abs=1e-6)


def test_masked_tokens_stay_in_the_denominator_unless_asked():
    row = RECIPES["icepop"]
    by_token = recipe("icepop", aggregation={"name": "token_mean"}, denominator={"name": "kept"})
    assert pg(row, 1.0)[0] == pytest.approx((-1.2 * 1.105171 - 1.0) / 3, abs=1e-6)
    assert pg(by_token, 1.0)[0] == pytest.approx((-1.2 * 1.105171 - 1.0) / 2, abs=1e-6)


def test_icepop():
    assert pg(RECIPES["icepop"], 1.0)[0] == pytest.approx(-0.775402, abs=1e-6)


def test_icepop_one_ratio():
    loss, gradient = pg(RECIPES["icepop_one_ratio"], 1.0)
    k = (NEW - ROLL).exp()[0]
    assert loss == pytest.approx(float(-k.mean()), abs=1e-6)
    close(gradient, -k / 3)
    assert pg(recipe("icepop_one_ratio", clip={"name": "window", "low": 0.5, "high": 5.0}), 1.0)[1][1] == 0.0


def test_mini_rl():
    loss, gradient = pg(RECIPES["mini_rl"], 1.0)
    close(gradient, [-1.349859, -0.272532, -1.0])
    masked = recipe("mini_rl", clip={"name": "masked_score", "low": 0.2, "high": 0.2})
    close(pg(masked, 1.0)[1], [0.0, -0.272532, -1.0])
    assert loss == pytest.approx(1.349859 * 0.8 + 0.272532 * 2.3 + 0.5, abs=1e-5)


def test_areal():
    assert pg(RECIPES["areal"], 1.0)[0] == pytest.approx(-0.866246, abs=1e-6)
    capped = recipe("areal", mismatch=[{"name": "token_capped", "cap": 1.05}])
    assert pg(capped, 1.0)[0] == pytest.approx((-0.740818 * 0.367879 - 1.0) / 3, abs=1e-6)


def test_remix():
    start, behaviour = (torch.tensor([value], dtype=torch.float64) for value in ([-0.9, -2.1, -0.5], [-1, -2, -0.5]))
    row = recipe("remix", regularisers=[])
    made = batch(torch.tensor([1.0]), torch.tensor([0]), ONE, logp_old_BT=start, logp_roll_BT=behaviour, advantage_BT=ONE)
    assert float(objective(row, made, NEW)[0]) == pytest.approx(-0.987407, abs=1e-6)
    # KL-convex: lam(50) = 1, lam(51) = .9, lam(75) = .7, lam(100) = .5
    for step, lam in ((50, 1.0), (51, 0.9), (75, 0.7), (100, 0.5), (1000, 0.5)):
        made = batch(
            torch.tensor([1.0]), torch.tensor([0]), ONE, logp_old_BT=NEW, logp_roll_BT=NEW, advantage_BT=0 * ONE,
            logp_ref_BT=NEW - 0.5, logp_prev_BT=NEW + 0.5, step=torch.tensor(step),
        )  # fmt: skip
        expected = 0.001 * (lam * 0.106531 + (1 - lam) * 0.148721) - 0.001 * 0.7
        assert float(objective(RECIPES["remix"], made, NEW, {"entropy_BT": 0.7 * ONE})[0]) == pytest.approx(expected, abs=1e-8)


def test_scale_rl():
    close(advantages(RECIPES["scale_rl"], batch())[:, 0], [1.620185] + [-0.540062] * 3 + [0.540062] * 3 + [-1.620185], atol=4e-6)
    made = batch(torch.zeros(4), torch.tensor([0, 0, 1, 1]), lengths(2, 4, 1, 1), logp_roll_BT=torch.zeros(4, 4), advantage_BT=-torch.ones(4, 4))
    logp = torch.tensor([[1.0] * 4, [2.0] * 4, [3.0] * 4, [0.0] * 4]).requires_grad_()
    loss, _ = objective(recipe("scale_rl", clip={"name": "score"}), made, logp)
    assert float(loss.detach()) == pytest.approx(1.583333, abs=1e-6)
    loss, _ = objective(RECIPES["scale_rl"], made, logp)  # weights min(e^logp, 5)
    tokens = [math.e * 1, 5 * 2, 5 * 3, 1 * 0]
    assert float(loss.detach()) == pytest.approx(((2 * tokens[0] + 4 * tokens[1]) / 6 + (tokens[2] + tokens[3]) / 2) / 2, abs=1e-5)


def problem(name: str) -> Problem:
    return Problem(name, "math", name, "1", "integer", "math")


def test_scale_rl_drops_prompts_that_are_solved(tmp_path):
    history = History(tmp_path)
    made = [rollout("easy", 0, right=True, sample=n) for n in range(10)] + [rollout("hard", 1, right=n < 8, sample=n) for n in range(10)]
    history.add(1, made)
    pool = [problem("easy"), problem("hard"), problem("new")]
    at = Draw(2, (1, "s"), 2, 0, history)
    assert [p.prompt for p in DropHighPass()(pool, at)] == ["hard", "new"]
    chosen = [draw(pool, [DropHighPass()], replace(at, step=step)) for step in range(2, 7)]
    assert {p.prompt for step in chosen for p in step} == {"hard", "new"}
    assert all(step[0] != step[1] for step in chosen)


def rollout(name: str, group: int, right: bool, sample: int = 0, step: int = 1) -> Trajectory:
    outcome = Outcome.CORRECT if right else Outcome.WRONG
    return Trajectory(
        name,
        group,
        sample,
        step,
        "t",
        one_turn([1], [2], [-0.1], [0]),
        "stop",
        outcome=outcome.value,
        reward=float(right),
        reward_parts={"correct": float(right)},
    )
