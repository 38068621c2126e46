"""Where one method becomes another: the reductions that the papers claim."""


import pytest
import torch
from batches import batch, loss_and_gradients, pg, ragged

from pipelines.rl import RECIPES, advantages, objective, recipe
from pipelines.rl.statistics import objective_weights

MADE, LIVE = ragged(11)


def same_loss(first, second, made=MADE, live=LIVE, factor=1.0):
    (a, grad_a), (b, grad_b) = loss_and_gradients(first, made, live), loss_and_gradients(second, made, live)
    assert b == pytest.approx(factor * a, abs=1e-9)
    torch.testing.assert_close(grad_b["logp_BT"], factor * grad_a["logp_BT"], atol=1e-9, rtol=0)


def one_token(made=MADE, live=LIVE):
    """The first token of every response alone."""
    made = made.having(mask_BT=torch.ones_like(made.mask_BT)).narrow(1)
    return made.having(advantage_BT=None), {name: value[:, :1] if "_BT" in name else value for name, value in live.items()}


def on_policy(made=MADE, live=LIVE):
    logp = live["logp_BT"]
    return made.having(logp_old_BT=logp, logp_roll_BT=logp)


PPO_TOKEN_MEAN = recipe("grpo", aggregation={"name": "token_mean"})


def test_gspo_in_its_token_form_is_gspo():
    logp = LIVE["logp_BT"].clone().requires_grad_()
    a, mask = advantages(RECIPES["gspo"], MADE)[:, 0], MADE.mask_BT
    s = (((logp - MADE.logp_old_BT) * mask).sum(-1) / mask.sum(-1)).exp()
    loss = torch.maximum(-a * s, -a * s.clamp(1 - 3e-4, 1 + 4e-4)).mean()
    (gradient,) = torch.autograd.grad(loss, logp)
    value, gradients = loss_and_gradients(RECIPES["gspo"], MADE, LIVE)
    assert value == pytest.approx(float(loss.detach()), abs=1e-12)
    torch.testing.assert_close(gradients["logp_BT"], gradient, atol=1e-12, rtol=0)


def test_with_one_token_sequence_cumulative_and_token_ratios_are_one():
    made, live = one_token()
    clip = {"name": "ppo", "low": 0.2, "high": 0.2}
    for level in ("sequence_geometric", "sequence_product", "cumulative_product", "cumulative_geometric"):
        same_loss(RECIPES["grpo"], recipe("grpo", ratio={"name": level}, clip=clip), made, live)


def test_ctpo_without_growth_is_ppo_in_log_space():
    made, live = one_token()
    low, high = 0.2231435513, 0.1823215568  # log 0.8, log 1.2
    log_space = recipe("ctpo", mismatch=[], clip={"name": "ppo_log_adaptive", "low": low, "high": high, "dual": None, "power": 0.0})
    a, b = loss_and_gradients(PPO_TOKEN_MEAN, made, live), loss_and_gradients(log_space, made, live)
    assert a[0] == pytest.approx(b[0], abs=1e-9)


def test_the_last_cumulative_ratio_is_that_of_the_response():
    clip = {"name": "none"}
    value = pg(recipe("ctpo", clip=clip, mismatch=[]), 1.0)[0]
    ratios = torch.tensor([0.2, -0.1, -0.1]).exp()
    assert value == pytest.approx(-float(ratios.mean()), abs=1e-6)
    assert pg(recipe("grpo", ratio={"name": "sequence_product"}, clip=clip), 1.0)[0] == pytest.approx(-float(ratios[-1]), abs=1e-6)


def test_on_policy_cispo_ppo_and_reinforce_have_one_gradient():
    made = on_policy()
    plain = {"routing": [], "reward": [], "aggregation": {"name": "token_mean"}}
    gradients = [
        loss_and_gradients(row, made, LIVE)[1]["logp_BT"]
        for row in (recipe("cispo", **plain), PPO_TOKEN_MEAN, recipe("grpo", clip={"name": "score"}, aggregation={"name": "token_mean"}))
    ]
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], atol=1e-12, rtol=0)


def test_corrections_vanish_when_the_engines_agree():
    made = MADE.having(logp_roll_BT=MADE.logp_old_BT)
    same_loss(RECIPES["grpo"], RECIPES["icepop"], made)
    for name in ("areal", "tis", "sequence_tis", "mis", "geometric_rs"):
        same_loss(PPO_TOKEN_MEAN, RECIPES[name], made)
    same_loss(PPO_TOKEN_MEAN, recipe("remix", regularisers=[]), made)


def test_topr_is_weighted_sft_on_rewards_and_reinforce_on_policy():
    rewards = MADE.having(reward_B=torch.rand(12, dtype=torch.float64))
    raw = {"reward": [], "scale": {"name": "none"}, "center": {"name": "none"}}
    sft = recipe("reinforce", center={"name": "none"})
    same_loss(sft, recipe("topr", **raw), rewards)
    same_loss(recipe("reinforce", center={"name": "none"}, reward=[{"name": "rescale"}]), RECIPES["topr"], on_policy())


def test_bnpo_reduces_to_centring_and_to_grpo():
    groups = torch.arange(3).repeat_interleave(4)
    spread = torch.tensor([1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0]).double()  # rates .25 .5 .75: a = b = 1.5, alpha = beta = 1.5
    made = batch(spread, groups, torch.ones(12, 1).double())
    population = advantages(recipe("grpo", scale={"name": "group_std", "ddof": 0, "eps": 0.0}), made)
    ratio = advantages(RECIPES["bnpo"], made) / population
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0])), atol=1e-9, rtol=0)
    extreme = torch.tensor([1.0] * 8 + [0.0] * 4 + [1.0, 0, 0, 0])  # rates 1 1 0 .25: the fit is flat, alpha = beta = 1
    made = batch(extreme, torch.arange(4).repeat_interleave(4))
    torch.testing.assert_close(advantages(RECIPES["bnpo"], made), advantages(RECIPES["dr_grpo"], made), atol=1e-6, rtol=0)
    single = batch(spread[:4], groups[:4])
    torch.testing.assert_close(advantages(RECIPES["bnpo"], single), advantages(RECIPES["dr_grpo"], single))


@pytest.mark.parametrize(
    ("base", "changed"),
    [
        (RECIPES["grpo"], recipe("ace", modify=[{"name": "overconfident_errors", "alpha": 0.0}])),
        (recipe("sngs", modify=[]), recipe("sngs", modify=[{"name": "success_scaled_negatives", "floor": 1.0}])),
        (recipe("ulorl", token_mask=[]), recipe("ulorl", token_mask=[{"name": "unmastered", "sigma": 0.0}])),
        (PPO_TOKEN_MEAN, recipe("resrl", credit={"name": "projection_residual", "positive": 1.0, "least": 1.0})),
        (recipe("spae", credit={"name": "broadcast"}), recipe("spae", credit={"name": "step_potential", "alpha": 0.0, "xi": 0.0})),
        (recipe("grpo", aggregation={"name": "token_mean"}, clip={"name": "ppo", "low": 1.0, "high": 9.0}), recipe("lp_reg", inputs={"low_BT": {"share": 0.0}})),
        (recipe("siren", regularisers=[]), recipe("siren", regularisers=[{"name": "entropy_anchor", "coefficient": 0.0}])),
        (RECIPES["grpo"], recipe("dsdr", reward=[{"name": "diversity", "coefficient": 0.0}], regularisers=[{"name": "entropy_correct", "coefficient": 0.0}])),
        (recipe("calib_rl", auxiliary=[]), recipe("calib_rl", auxiliary=[{"name": "expert", "coefficient": 0.0}])),
        (RECIPES["dapo"], recipe("delta", token_weight=[{"name": "discriminative", "low": 1.0, "high": 1.0}])),
        (recipe("w_grpo_pairs", modify=[]), recipe("w_grpo_pairs", modify=[{"name": "pair_roles"}])),
        (recipe("laser", modify=[], auxiliary=[]), recipe("laser", modify=[{"name": "self_rewarded", "share": 0.0}], auxiliary=[{"name": "self_reward", "coefficient": 0.0}])),
        (RECIPES["grpo"], recipe("rapo", regularisers=[{"name": "kl_forward", "coefficient": 0.0}])),
    ],
    ids=["ace", "sngs", "ulorl", "resrl", "spae", "lp_reg", "siren", "dsdr", "calib_rl", "delta", "w_grpo_pairs", "laser", "rapo"],
)  # fmt: skip
def test_a_method_without_its_term_is_its_base(base, changed):
    same_loss(base, changed)


def test_recap_at_a_high_temperature_weighs_all_parts_alike():
    weights = objective_weights(torch.tensor([0.5, 0.1]), torch.tensor([0.9, 0.3]), torch.tensor([0.2, 0.0]), temperature=1e9)
    torch.testing.assert_close(weights, torch.ones(2))


def test_rloo_is_dr_grpo_scaled():
    torch.testing.assert_close(advantages(RECIPES["rloo"], MADE), 4 / 3 * advantages(RECIPES["dr_grpo"], MADE))


def test_copg_descends_the_gradient_of_rloo_on_policy():
    made = MADE.having(logp_ref_BT=LIVE["logp_BT"])  # no KL yet
    copg = loss_and_gradients(recipe("copg", objective={"name": "contrastive", "beta": 0.5}), made, LIVE)[1]["logp_BT"]
    rloo = loss_and_gradients(RECIPES["rloo"], made, LIVE)[1]["logp_BT"]
    mixed = rloo.abs() > 0
    ratio = copg[mixed] / rloo[mixed]
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0])), atol=1e-9, rtol=0)
    assert float(ratio[0]) > 0


def test_advantages_ignore_shifts_and_some_ignore_scale():
    moved = MADE.having(reward_B=MADE.reward_B + 5)
    scaled = MADE.having(reward_B=3 * MADE.reward_B)
    for name in ("grpo", "dr_grpo", "rloo", "lite_ppo"):
        torch.testing.assert_close(advantages(RECIPES[name], MADE), advantages(RECIPES[name], moved))
    for name in ("grpo", "lite_ppo"):
        torch.testing.assert_close(advantages(RECIPES[name], MADE), advantages(RECIPES[name], scaled), atol=1e-5, rtol=0)
        noisy = recipe(name, reward=[{"name": "backward_correction", "false_positive": 0.1, "false_negative": 0.2}])
        torch.testing.assert_close(advantages(RECIPES[name], MADE), advantages(noisy, MADE), atol=1e-5, rtol=0)


def test_a_group_of_one_gets_no_advantage():
    single = batch(torch.tensor([1.0]), torch.tensor([3]))
    for name in ("grpo", "dr_grpo", "rloo", "bnpo"):
        assert float(advantages(RECIPES[name], single)) == 0.0
    for name, center in (("grpo", "group_mean"), ("rloo", "leave_one_out")):  # as verl has it
        kept = recipe(name, center={"name": center, "singleton": "keep"})
        assert float(advantages(kept, single)) == pytest.approx(1.0, abs=1e-5)


def test_where_ppo_clips_the_gradient_is_zero_and_cispo_keeps_one():
    made = batch(
        torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 4).double(), logp_roll_BT=torch.zeros(1, 4).double(),
        advantage_BT=torch.tensor([[1.0, 1.0, -1.0, -1.0]]).double(),
    )  # fmt: skip
    logp = torch.tensor([[0.5, -0.5, 0.5, -0.5]]).double().requires_grad_()  # ratios 1.65 and .61
    gradient = {name: torch.autograd.grad(objective(RECIPES[name], made, logp)[0], logp)[0][0] for name in ("grpo", "cispo")}
    assert (gradient["grpo"] == 0).tolist() == [True, False, False, True]
    assert (gradient["cispo"] != 0).all()
    assert gradient["cispo"].sign().tolist() == [-1, -1, 1, 1]
