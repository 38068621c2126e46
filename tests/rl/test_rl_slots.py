"""Slots against the worked numbers of the objectives' specification."""

import math

import pytest
import torch

from pipelines.errors import UserError
from pipelines.rl import RECIPES, Batch, advantages, objective, recipe
from pipelines.rl import aggregation as agg
from pipelines.rl.objective import route
from pipelines.rl.regularisers import kl_k1, kl_k2, kl_k3
from pipelines.rl.reward import overlong

REWARDS = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0])
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def batch(rewards=REWARDS, groups=GROUPS, mask=None, **tensors) -> Batch:
    mask = torch.ones(len(rewards), 1) if mask is None else mask
    return Batch(mask_BT=mask, reward_B=rewards, group_B=groups, logp_old_BT=tensors.pop("old", torch.zeros_like(mask)), **tensors)


@pytest.mark.parametrize(
    ("row", "overrides", "first", "second"),
    [
        ("grpo", {}, [1.499997] + [-0.499999] * 3, [0.499999] * 3 + [-1.499997]),
        ("grpo", {"scale": {"name": "group_std", "ddof": 0}}, [1.732047] + [-0.577349] * 3, [0.577349] * 3 + [-1.732047]),
        ("dr_grpo", {}, [0.75] + [-0.25] * 3, [0.25] * 3 + [-0.75]),
        ("rloo", {}, [1.0] + [-1 / 3] * 3, [1 / 3] * 3 + [-1.0]),
        ("reinforce", {}, [0.5] + [-0.5] * 3, [0.5] * 3 + [-0.5]),
    ],
)
def test_advantages_match_the_worked_examples(row, overrides, first, second):
    got = advantages(recipe(row, **overrides), batch())[:, 0]
    torch.testing.assert_close(got, torch.tensor(first + second), atol=2e-6, rtol=0)


def pg(advantage: float, row: str, **overrides):
    """The specification's F-pg fixture: one sequence of three tokens."""
    logp = torch.tensor([[-0.8, -2.3, -0.5]], dtype=torch.float64, requires_grad=True)
    fixture = batch(
        torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 3, dtype=torch.float64),
        old=torch.tensor([[-1.0, -2.0, -0.5]], dtype=torch.float64), advantage_BT=torch.full((1, 3), advantage, dtype=torch.float64),
    )  # fmt: skip
    loss, figures = objective(recipe(row, **overrides), fixture, logp)
    (gradient,) = torch.autograd.grad(loss, logp)
    return float(loss.detach()), gradient[0].tolist(), figures


@pytest.mark.parametrize(
    ("row", "advantage", "loss"),
    [
        ("grpo", 1.0, -0.980273),
        ("grpo", -1.0, 1.007134),
        ("dapo", 1.0, -0.987407),
        ("gspo", 1.0, -0.967216),
        ("gspo", -1.0, 0.9997),
    ],
)
def test_losses_match_the_worked_examples(row, advantage, loss):
    assert pg(advantage, row)[0] == pytest.approx(loss, abs=1e-6)


def test_gspo_gradient_is_shared_by_the_tokens_and_zero_where_clipped():
    assert pg(1.0, "gspo")[1] == pytest.approx([-0.322405] * 3, abs=1e-6)
    assert pg(-1.0, "gspo")[1] == [0.0] * 3


def test_dual_clip_bounds_the_loss_of_a_negative_advantage():
    logp = torch.full((1, 1), math.log(5.0))
    one = batch(torch.tensor([1.0]), torch.tensor([0]), advantage_BT=torch.full((1, 1), -1.0))
    assert float(objective(recipe("grpo"), one, logp)[0]) == pytest.approx(5.0, abs=1e-5)
    assert float(objective(recipe("grpo", clip={"name": "ppo", "dual": 3.0}), one, logp)[0]) == pytest.approx(3.0, abs=1e-6)


def test_cispo_keeps_a_gradient_where_ppo_has_none():
    ppo, cispo = pg(1.0, "grpo")[1], pg(1.0, "cispo")[1]
    assert ppo[0] == 0.0
    assert cispo == pytest.approx([-1.2 / 3, -0.740818 / 3, -1 / 3], abs=1e-6)


def test_aggregators_match_the_worked_examples():
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0]])
    loss = torch.tensor([[1.0] * 4, [2.0] * 4, [3.0] * 4, [0.0] * 4])
    two = batch(torch.zeros(2), torch.tensor([7, 7]), mask[:2])
    assert float(agg.token_mean(loss[:2], two)) == pytest.approx(1.666667, abs=1e-6)
    assert float(agg.sequence_mean_token_mean(loss[:2], two)) == 1.5
    assert float(agg.sequence_mean_token_sum(loss[:2], two)) == 5.0
    assert float(agg.sequence_mean_token_sum_norm(loss[:2], two, length=4)) == 1.25
    four = batch(torch.zeros(4), torch.tensor([7, 7, 9, 9]), mask)
    assert float(agg.prompt_mean(loss, four)) == pytest.approx(1.583333, abs=1e-6)
    assert float(agg.token_mean(loss, four)) == 1.625
    assert float(agg.sequence_mean_token_mean(loss, four)) == 1.5


def ragged(seed: int, rows: int = 12, width: int = 7) -> tuple[Batch, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=g)
    mask = (torch.arange(width) < lengths[:, None]).double()
    logp = -torch.rand(rows, width, generator=g, dtype=torch.float64) * mask
    old = (logp + 0.3 * torch.randn(rows, width, generator=g, dtype=torch.float64)) * mask
    made = Batch(
        mask_BT=mask, reward_B=torch.randint(0, 2, (rows,), generator=g).double(), group_B=torch.arange(rows) // 4,
        logp_old_BT=old, logp_roll_BT=old, logp_ref_BT=old * 0.9,
    )  # fmt: skip
    return made, logp


def loss_and_gradient(row: str, made: Batch, logp: torch.Tensor, micro: int | None = None) -> tuple[float, torch.Tensor]:
    chosen = RECIPES[row]
    made = route(chosen, made)
    made = Batch(**{**vars(made), "advantage_BT": advantages(chosen, made)})
    leaf = logp.clone().requires_grad_()
    total = 0.0
    for index in torch.arange(len(logp)).split(micro or len(logp)):
        loss, _ = objective(chosen, made.rows(index), leaf[index])
        loss.backward()
        total += float(loss.detach())
    assert leaf.grad is not None
    return total, leaf.grad


@pytest.mark.parametrize("row", RECIPES)
def test_micro_batches_permutation_and_padding_change_nothing(row):
    made, logp = ragged(3)
    loss, gradient = loss_and_gradient(row, made, logp)
    assert math.isfinite(loss) and gradient.abs().sum() > 0
    for micro in (1, 5):
        split_loss, split_gradient = loss_and_gradient(row, made, logp, micro)
        assert split_loss == pytest.approx(loss, abs=1e-9)
        torch.testing.assert_close(split_gradient, gradient, atol=1e-9, rtol=0)

    order = torch.randperm(len(logp), generator=torch.Generator().manual_seed(1))
    shuffled = Batch(**{k: (v[order] if isinstance(v, torch.Tensor) else v) for k, v in vars(made).items()})
    loss_shuffled, gradient_shuffled = loss_and_gradient(row, shuffled, logp[order])
    assert loss_shuffled == pytest.approx(loss, abs=1e-9)
    torch.testing.assert_close(gradient_shuffled, gradient[order], atol=1e-9, rtol=0)

    wide = Batch(**{k: (torch.nn.functional.pad(v, (0, 3)) if isinstance(v, torch.Tensor) and v.ndim == 2 else v) for k, v in vars(made).items()})
    loss_wide, gradient_wide = loss_and_gradient(row, wide, torch.nn.functional.pad(logp, (0, 3)))
    assert loss_wide == pytest.approx(loss, abs=1e-9)
    torch.testing.assert_close(gradient_wide[:, :-3], gradient, atol=1e-9, rtol=0)


def has_a_potential(row: str) -> bool:
    """Whether the loss's value is what its gradient descends: not so where a weight or a sequence mean is a stop-gradient."""
    slots = RECIPES[row].slots
    return slots["clip"]["name"] != "weight_cap" and slots["ratio"]["name"] != "sequence"


@pytest.mark.parametrize("row", filter(has_a_potential, RECIPES))
def test_gradient_agrees_with_finite_differences(row):
    made, logp = ragged(5, rows=4, width=3)
    chosen = RECIPES[row]
    made = route(chosen, made)
    made = Batch(**{**vars(made), "advantage_BT": advantages(chosen, made)})
    leaf = logp.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective(chosen, made, x)[0], (leaf,), atol=1e-6)


@pytest.mark.parametrize("row", RECIPES)
def test_an_empty_mask_gives_zero_with_zero_gradient(row):
    made, logp = ragged(4)
    empty = Batch(**{**vars(made), "mask_BT": torch.zeros_like(made.mask_BT)})
    loss, gradient = loss_and_gradient(row, empty, logp)
    assert loss == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("row", ["grpo", "dr_grpo", "dapo", "rloo", "gspo", "cispo", "lite_ppo"])
def test_groups_without_variance_do_not_train(row):
    made, logp = ragged(6)
    flat = Batch(**{**vars(made), "reward_B": torch.ones_like(made.reward_B)})
    assert not loss_and_gradient(row, flat, logp)[1].any()


def test_group_advantages_ignore_a_shift_of_the_rewards():
    made, _ = ragged(7)
    shifted = Batch(**{**vars(made), "reward_B": made.reward_B + 5})
    for row in ("grpo", "dr_grpo", "rloo"):
        torch.testing.assert_close(advantages(RECIPES[row], made), advantages(RECIPES[row], shifted))


def test_a_group_of_one_gets_no_advantage():
    single = batch(torch.tensor([1.0]), torch.tensor([3]))
    for row in ("grpo", "dr_grpo", "rloo"):
        assert float(advantages(RECIPES[row], single)) == 0.0


def test_dapo_masks_groups_without_variance_out_of_the_denominator():
    made = batch(torch.tensor([1.0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]))
    assert route(RECIPES["dapo"], made).mask_BT[:, 0].tolist() == [1, 1, 0, 0]


def test_overlong_penalty_matches_the_worked_examples():
    for length, penalty in ((16384, 0.0), (18432, -0.5), (20480, -1.0)):
        made = batch(torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, length))
        assert float(overlong(made.reward_B, made)) == pytest.approx(1.0 + penalty)


def test_kl_estimators_match_the_worked_examples():
    for d, k2, k3 in ((0.5, 0.125, 0.106531), (-0.5, 0.125, 0.148721)):
        made = batch(torch.tensor([1.0]), torch.tensor([0]), logp_ref_BT=torch.zeros(1, 1))
        logp = torch.full((1, 1), d)
        assert float(kl_k1(logp, made)) == pytest.approx(d)
        assert float(kl_k2(logp, made)) == pytest.approx(k2)
        assert float(kl_k3(logp, made)) == pytest.approx(k3, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: recipe("gropo"), "did you mean 'grpo'"),
        (lambda: recipe("grpo", clipp={"name": "ppo"}), "did you mean 'clip'"),
        (lambda: recipe("grpo", clip={"name": "pppo"}), "did you mean 'ppo'"),
        (lambda: recipe("grpo", clip={"name": "ppo", "hgih": 0.3}), "did you mean 'high'"),
        (lambda: recipe("grpo", clip="ppo"), "expected a mapping with a name"),
        (lambda: recipe("grpo", aggregation={"name": "sequence_mean_token_sum_norm"}), "setting 'length' is missing"),
    ],
)
def test_a_wrong_recipe_names_what_is_wrong(call, words):
    with pytest.raises(UserError, match=words):
        call()
