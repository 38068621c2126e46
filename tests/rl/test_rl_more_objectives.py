"""Rows against hand-computed numbers: critics that learn otherwise, a policy held to a part of the vocabulary, constraints, masks of the weights."""

from pathlib import Path

import pytest
import torch
from batches import batch, leaves
from killing import Killed
from loops import run

from pipelines.config.common import OptimiserSettings
from pipelines.config.learning import KlControl
from pipelines.errors import UserError
from pipelines.models.value_head import ValueHead, bin_edges, expected, histogram
from pipelines.rl import RECIPES, advantages, objective, recipe
from pipelines.rl.critic_warmup import DONE, explained_variance, warms

DOUBLE = torch.float64
UNIT = torch.linspace(0, 1, 6, dtype=DOUBLE)
"""Edges of five bins over [0, 1]."""


def double(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def close(got, expected, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(got).double(), torch.as_tensor(expected).double(), atol=atol, rtol=0)


def same_runs(first, second):
    """Weights, journal (but for the clock) and rollouts."""
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert first[1] == second[1] and first[2] == second[2]


def killed_and_resumed(folder: Path, start, row: str, at: int, **changes):
    """That a run killed after step `at` ends as one that was left alone. Returns what that one left."""
    alone = run(folder / "alone", start, row=row, **changes)
    with pytest.raises(Killed):
        run(folder / "killed", start, stop_at=at, row=row, **changes)
    same_runs(run(folder / "killed", start, row=row, **changes), alone)
    return alone


def test_hl_gauss():
    mean = (UNIT[1:] + UNIT[:-1]) / 2
    close(histogram(double(0.5, 0.33), UNIT, sigma=0.75), [[0.02234, 0.22994, 0.49544, 0.22994, 0.02234], [0.181686, 0.493431, 0.28845, 0.035561, 0.000872]])
    close(histogram(double(0.5, 0.33), UNIT, sigma=0.75) @ mean, [0.5, 0.336101])
    close(histogram(double(0.33), UNIT, sigma=0.0), [[0, 0.85, 0.15, 0, 0]])
    close(histogram(double(0.0, 1.0, 7.0), UNIT, sigma=0.0) @ mean, [0.1, 0.9, 0.9])
    # at the border of the range the Gaussian is cut; bins beyond it mend that, and a return beyond those counts as the outermost
    close(histogram(double(1.0), UNIT, sigma=0.75) @ mean, [0.861971])
    wide = torch.linspace(-0.45, 1.45, 9, dtype=DOUBLE)
    close(histogram(double(1.0), wide, sigma=0.75) @ ((wide[1:] + wide[:-1]) / 2), [0.99669])
    close(histogram(double(1e6), wide, sigma=0.75), histogram(double(1.45), wide, sigma=0.75))
    edges = bin_edges()
    assert len(edges) == 52 and float(edges[0]) == pytest.approx(-2.25 / 46.5) and float(edges[-1]) == pytest.approx(1 + 2.25 / 46.5)
    assert float(histogram(torch.tensor(1.0), edges, sigma=0.75) @ ((edges[1:] + edges[:-1]) / 2)) == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(UserError, match="4 bins with a margin of 2.25 on each side leave none for returns from 0 to 1"):
        bin_edges(bins=4)
    logits = double(0.1, -0.2, 0.3, 0.5, -0.4)
    close(expected(logits[None], UNIT), [0.49858])
    # an advantage of 0 leaves the value loss alone, here 0.5 * 1.698031
    one = torch.ones(1, 1, dtype=DOUBLE)
    made = batch(double(0.33), torch.tensor([0]), one, advantage_BT=0 * one, return_BT=0.33 * one, value_old_BT=0 * one, value_edges_K=UNIT)
    here = leaves({"logp_BT": -one, "value_logits_BTK": logits[None, None]})
    loss, _ = objective(RECIPES["hl_gauss"], made, here.pop("logp_BT"), here)
    (gradient,) = torch.autograd.grad(loss, here["value_logits_BTK"])
    close(loss.detach(), 0.5 * 1.698031)
    close(gradient[0, 0], [0.5 * each for each in (0.01592, -0.347041, -0.047094, 0.259233, 0.118982)])


def test_a_head_of_bins_starts_in_their_middle_and_learns(tmp_path, start):
    head = ValueHead(4, bin_edges())
    assert head.weight.shape == (51, 4) and head.value(head(torch.randn(3, 4))).tolist() == pytest.approx([0.5] * 3)
    assert ValueHead(4).value(ValueHead(4)(torch.ones(2, 4))).tolist() == [0.0, 0.0]
    weights, rows, _ = run(tmp_path, start, row="hl_gauss", steps=8, optimiser=OptimiserSettings(lr=1e-2, schedule="constant"))
    assert rows[0]["explained_variance"] == pytest.approx(0.0, abs=1e-6) and rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert not any("value_head" in name for name in weights)


def test_wsrl(tmp_path):
    row = RECIPES["wsrl"]
    mask = torch.ones(1, 4, dtype=DOUBLE)

    def explains(returns, values):
        return explained_variance(batch(double(1.0), torch.tensor([0]), mask, return_BT=double(returns), value_old_BT=double(values)))

    assert explains([1, 0, 1, 0], [0, 0, 0, 0]) == pytest.approx(0.0)
    assert explains([1, 0, 1, 0], [0.9, 0.2, 0.8, 0.1]) == pytest.approx(0.9)
    assert explains([1, 1, 1, 1], [0.9, 0.2, 0.8, 0.1]) is None
    # what a wrong critic makes of a right answer, and one that has learnt
    plain = recipe("wsrl", token_modify=[])
    for value, expect in (([2.0, 2.0, 2.0], [-1, -1, -1]), ([0.9, 0.95, 0.97], [0.1, 0.05, 0.03])):
        made = batch(double(1.0), torch.tensor([0]), mask[:, :3], value_old_BT=double(value))
        close(advantages(plain, made), [expect])
    # at most five steps; fewer where the head explains enough; once they are over they stay over
    done: dict[str, float] = {}
    assert [warms(row, step, 0.1, done) for step in range(1, 8)] == [True] * 5 + [False] * 2 and done == {DONE: 5.0}
    done = {}
    assert [warms(row, step, value, done) for step, value in ((1, None), (2, 0.2), (3, 0.6), (4, 0.1))] == [True, True, False, False]
    assert done == {DONE: 2.0}
    done = {}
    assert not warms(RECIPES["ppo"], 1, 0.0, done) and not warms(RECIPES["grpo"], 1, None, done) and not done


WARM = {"overrides": {"inputs": {"value_old_BT": {"warmup": 3, "epochs": 2, "enough": 0.99}}}, "checkpoint_every": 1}
COSINE = OptimiserSettings(lr=1e-3, schedule="cosine", warmup=0.0, weight_decay=0.1)


def test_the_policy_stays_while_the_critic_warms_up(tmp_path, start):
    """Bit by bit, weight decay or not; then it begins as if it were its first step. Killed inside, the run goes on inside."""
    control = {"optimiser": COSINE, "kl_control": KlControl(target=1e-9), "steps": 5}
    overrides = WARM["overrides"] | {"token_reward": [{"name": "kl", "coefficient": 0.01}]}
    weights, rows, _ = killed_and_resumed(tmp_path, start, "wsrl", 2, **(WARM | control | {"overrides": overrides}))
    assert any(not torch.equal(weights[name], start[name]) for name in start)
    assert [row["lr"] for row in rows] == pytest.approx([1e-3] * 4 + [1e-4])
    assert ["kl_scale" in row for row in rows] == [False] * 3 + [True] * 2
    stayed, rows, _ = run(tmp_path / "warm", start, row="wsrl", **(WARM | {"steps": 3, "optimiser": COSINE, "minibatches": 2}))
    assert all(torch.equal(stayed[name], start[name]) for name in start)
    state = torch.load(tmp_path / "warm" / "checkpoints" / "step-00000003.pt")["model"]
    assert state["value_head.weight"].abs().sum() > 0 and all(row["ratio"] == 1 for row in rows)
