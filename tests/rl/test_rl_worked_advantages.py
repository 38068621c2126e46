"""Rows against hand-computed numbers, first part: advantage estimators and classic losses. A row's test is `test_<row>`."""

import math

import pytest
import torch
from batches import NEW, OLD, batch, lengths, pg

from pipelines.rl import RECIPES, Batch, advantages, objective, recipe, route, with_advantages
from pipelines.rl.inputs.probes import potential
from pipelines.rl.slots import aggregation, auxiliary, modify, reward
from pipelines.rl.slots.advantage import scale_beta
from pipelines.rl.slots.credit import gae, step_potential, whiten
from pipelines.rl.slots.regularisers import divergence

ROWS = RECIPES


def close(got, expected, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(got).double(), torch.as_tensor(expected).double(), atol=atol, rtol=0)


def of_prompts(name_or_recipe, **tensors) -> list[float]:
    """Advantage of each response of F-adv."""
    row = ROWS[name_or_recipe] if isinstance(name_or_recipe, str) else name_or_recipe
    return advantages(row, batch(**tensors))[:, 0].tolist()


def test_reinforce():
    close(of_prompts("reinforce"), [0.5, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, -0.5])
    loss, gradient = pg(recipe("reinforce", center={"name": "none"}), 1.0, logp=torch.tensor([[-1.0, -2.5, -0.5]], dtype=torch.float64))
    assert loss == pytest.approx(4.0)
    close(gradient, [-1.0, -1.0, -1.0])


def test_ppo():
    made = Batch(
        mask_BT=torch.ones(1, 3), reward_B=torch.tensor([1.0]), group_B=torch.tensor([0]), logp_old_BT=torch.zeros(1, 3),
        value_old_BT=torch.tensor([[0.2, 0.5, 0.7]]),
    )  # fmt: skip
    row = recipe("ppo", credit={"name": "gae", "lam": 0.95})
    close(advantages(row, made)[0], [1.05883, -0.130467, -0.928363])
    close(with_advantages(row, made).return_BT[0], [0.96075, 0.985, 1.0])
    raw = gae(torch.tensor([1.0]), torch.zeros(1, 3), made.value_old_BT, made.mask_BT, lam=0.95)
    close(raw[0], [0.76075, 0.485, 0.3])
    close(auxiliary.value(torch.tensor(0.9), torch.tensor(0.5), torch.tensor(1.0), clip=0.2), 0.045)
    plain = recipe("ppo", auxiliary=[])
    assert pg(plain, 1.0)[0] == pytest.approx(-0.980273, abs=1e-6)
    assert pg(plain, -1.0)[0] == pytest.approx(1.007134, abs=1e-6)
    far = torch.full((1, 3), math.log(5.0), dtype=torch.float64) + OLD
    assert pg(plain, -1.0, logp=far)[0] == pytest.approx(5.0, abs=1e-6)
    assert pg(recipe("ppo", auxiliary=[], clip={"name": "ppo", "dual": 3.0}), -1.0, logp=far)[0] == pytest.approx(3.0, abs=1e-6)


def test_gae_skips_tokens_that_are_not_trained():
    three = gae(torch.tensor([1.0]), torch.zeros(1, 3), torch.tensor([[0.2, 0.5, 0.7]]), torch.ones(1, 3), gamma=0.9, lam=0.95)
    mask = torch.tensor([[1.0, 0, 1, 0, 0, 1, 0]])
    value = torch.tensor([[0.2, 9.0, 0.5, 9.0, 9.0, 0.7, 9.0]])
    spread = gae(torch.tensor([1.0]), torch.zeros(1, 7), value, mask, gamma=0.9, lam=0.95)
    close(spread[mask > 0], three[0])
    assert not spread[mask == 0].any()


def test_whitening_leaves_a_single_token_alone():
    one = torch.tensor([[0.7, 0.0]])
    close(whiten(one, torch.tensor([[1.0, 0.0]])), one)


def test_ppo_kl():
    made = batch(
        torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 3), logp_old_BT=torch.tensor([[0.1, -0.2, 0.3]]), logp_ref_BT=torch.zeros(1, 3),
        value_old_BT=torch.zeros(1, 3),
    )  # fmt: skip
    close(with_advantages(ROWS["ppo_kl"], made).return_BT[0], [0.998, 0.999, 0.997])


def test_rto():
    tensors = {
        "logp_dpo_BT": torch.tensor([[-1, -2, -0.2]]), "logp_sft_BT": torch.tensor([[-1.2, -1, -0.3]]), "value_old_BT": torch.zeros(1, 3),
    }  # fmt: skip
    made = batch(torch.tensor([2.0]), torch.tensor([0]), torch.ones(1, 3), logp_old_BT=torch.tensor([[-1.1, -1.2, -0.3]]), **tensors)
    total = [0.009, -0.048, 2.005]
    close(with_advantages(ROWS["rto"], made).return_BT[0], [sum(total), sum(total[1:]), total[2]])
    close(reward.token_preference(made.logp_dpo_BT, made.logp_sft_BT)[0], [0.01, -0.05, 0.005])
    capped = batch(
        torch.tensor([50.0]), torch.tensor([0]), torch.ones(1, 3), logp_old_BT=made.logp_sft_BT, **{**tensors, "logp_dpo_BT": made.logp_sft_BT}
    )
    close(with_advantages(ROWS["rto"], capped).return_BT[0], [10.0, 10.0, 10.0])


def test_reinforce_pp():
    made = batch(
        torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 3), logp_old_BT=torch.tensor([[0.1, -0.2, 0.3]]), logp_ref_BT=torch.zeros(1, 3)
    )
    close(advantages(recipe("reinforce_pp", token_modify=[]), made)[0], [0.998, 0.999, 0.997])
    close(advantages(ROWS["reinforce_pp"], made)[0], whiten(torch.tensor([[0.998, 0.999, 0.997]]), torch.ones(1, 3))[0], atol=1e-3)


def test_reinforce_pp_baseline():
    made = batch(mask=lengths(2, 3, 1, 4, 2, 2, 2, 2))
    close(advantages(ROWS["reinforce_pp_baseline"], made)[:, 0], [1.818119] + [-0.519462] * 3 + [0.649328] * 3 + [-1.688253])


def test_rloo():
    close(of_prompts("rloo"), [1.0] + [-1 / 3] * 3 + [1 / 3] * 3 + [-1.0])
    made = batch(
        torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), lengths(2, 2), logp_old_BT=torch.tensor([[0.5, 0.5], [0, 0]]), logp_ref_BT=torch.zeros(2, 2)
    )
    with_kl = recipe("rloo", reward=[{"name": "sequence_kl", "coefficient": 0.05}])
    close(advantages(with_kl, made)[:, 0], [0.95, -0.95])


def test_loop():
    assert pg(recipe("loop", aggregation={"name": "token_mean"}), 1.0)[0] == pytest.approx(-0.980273, abs=1e-6)
    assert pg(recipe("loop", aggregation={"name": "token_mean"}), -1 / 3)[0] == pytest.approx(0.335711, abs=1e-6)
    assert pg(ROWS["loop"], 1.0)[0] == pytest.approx(3 * -0.980273, abs=3e-6)
    close(of_prompts("loop"), of_prompts("rloo"))


def test_grpo():
    close(of_prompts("grpo"), [1.499997] + [-0.499999] * 3 + [0.499999] * 3 + [-1.499997])
    close(of_prompts(recipe("grpo", scale={"name": "group_std", "ddof": 0, "eps": 0.0})), [1.732051] + [-0.57735] * 3 + [0.57735] * 3 + [-1.732051])
    assert pg(ROWS["grpo"], 1.0)[0] == pytest.approx(-0.980273, abs=1e-6)
    assert pg(ROWS["grpo"], -1.0)[0] == pytest.approx(1.007134, abs=1e-6)


def test_grpo_kl():
    loss = pg(ROWS["grpo_kl"], 1.0, logp_ref_BT=NEW - 0.5)[0]
    assert loss == pytest.approx(-0.980273 + 0.04 * 0.106531, abs=1e-6)


def test_kl_estimators():
    for d, k2, k3 in ((0.5, 0.125, 0.106531), (-0.5, 0.125, 0.148721)):
        at = torch.tensor(d)
        close(divergence(at, torch.tensor(0.0), "k1"), d)
        close(divergence(at, torch.tensor(0.0), "k2"), k2)
        close(divergence(at, torch.tensor(0.0), "k3"), k3)
        close(divergence(at, torch.tensor(0.0), "k3plus"), k3)
    close(divergence(torch.tensor(-4.0), torch.tensor(0.0), "k3"), math.exp(4) - 5, atol=1e-4)
    close(divergence(torch.tensor(-4.0), torch.tensor(0.0), "k3", 10.0), 10.0)
    # Expectations over a Bernoulli policy: values, and gradients with respect to its logit
    expected = {"k1": (0.082283, 0.0), "k2": (0.078766, 0.177933), "k3": (0.082283, 0.2), "k3plus": (0.082283, 0.177933)}
    for estimator, (value, slope) in expected.items():
        logit = torch.tensor(math.log(0.7 / 0.3), dtype=torch.float64, requires_grad=True)
        logp = torch.log_softmax(torch.stack([logit, torch.zeros_like(logit)]), 0)
        terms = divergence(logp, torch.tensor([0.5, 0.5], dtype=torch.float64).log(), estimator)
        expectation = (logp.detach().exp() * terms).sum()
        assert float(expectation.detach()) == pytest.approx(value, abs=1e-6)
        assert float(torch.autograd.grad(expectation, logit)[0]) == pytest.approx(slope, abs=1e-6)


def test_dr_grpo():
    close(of_prompts("dr_grpo"), [0.75] + [-0.25] * 3 + [0.25] * 3 + [-0.75])
    loss = pg(ROWS["dr_grpo"], 1.0, response_limit=torch.tensor(4))[0]
    assert loss == pytest.approx(3 * -0.980273 / 4, abs=1e-6)
    with pytest.raises(ValueError, match="divides by the longest response"):
        pg(ROWS["dr_grpo"], 1.0)


def test_dapo():
    assert pg(ROWS["dapo"], 1.0)[0] == pytest.approx(-0.987407, abs=1e-6)
    for length, penalty in ((16384, 0.0), (18432, -0.5), (20480, -1.0)):
        mask = torch.ones(1, length)
        close(reward.overlong(torch.tensor([1.0]), mask, torch.tensor(20480)), [1.0 + penalty])
        close(reward.overlong(torch.tensor([1.0]), mask, limit=20480, buffer=4096, factor=0.5), [1.0 + penalty / 2])
    made = batch(torch.tensor([1.0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]))
    assert route(ROWS["dapo"], made).mask_BT[:, 0].tolist() == [1, 1, 0, 0]  # equal rewards leave the denominators
    # the filter reads the verifier's score: the length penalty makes no variance
    long = batch(torch.tensor([1.0, 1.0]), torch.tensor([0, 0]), lengths(10, 5), response_limit=torch.tensor(10))
    assert not route(ROWS["dapo"], long).mask_BT.any()
    cut = batch(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), truncated_B=torch.tensor([True, False]))
    assert route(recipe("dapo", routing=[{"name": "drop_truncated"}]), cut).mask_BT[:, 0].tolist() == [0, 1]


def test_gspo():
    loss, gradient = pg(ROWS["gspo"], 1.0)
    assert loss == pytest.approx(-0.967216, abs=1e-6)
    close(gradient, [-0.322405] * 3)
    loss, gradient = pg(ROWS["gspo"], -1.0)
    assert loss == pytest.approx(0.9997, abs=1e-6)
    assert gradient.tolist() == [0.0] * 3


def test_cispo():
    loss, gradient = pg(recipe("cispo", clip={"name": "weight_cap", "low": 0.0, "high": 1.2}), 1.0)
    assert loss == pytest.approx(1.054627, abs=1e-6)
    close(gradient, [-0.4, -0.246939, -0.333333])
    masked = recipe("cispo", clip={"name": "masked_score", "low": 0.2, "high": 0.2})
    close(pg(masked, 1.0)[1], [0.0, -0.246939, -0.333333])
    close(pg(masked, -1.0)[1], [0.407134, 0.0, 0.333333])


def test_soft_adaptive_po():
    r = torch.tensor([1.221403, 0.740818, 1.0], dtype=torch.float64)
    assert pg(ROWS["soft_adaptive_po"], 1.0)[0] == pytest.approx(float(-(4 / (1 + torch.exp(-(r - 1)))).mean()), abs=1e-6)
    assert pg(ROWS["soft_adaptive_po"], -1.0)[0] == pytest.approx(float((4 / 1.05 / (1 + torch.exp(-1.05 * (r - 1)))).mean()), abs=1e-6)
    close(pg(ROWS["soft_adaptive_po"], 1.0, logp=OLD)[1], [-1 / 3] * 3)  # on-policy: the policy gradient


def test_lite_ppo():
    close(of_prompts("lite_ppo"), [1.403119] + [-0.467706] * 3 + [0.467706] * 3 + [-1.403119], atol=3e-6)
    centred = recipe("lite_ppo", scale={"name": "batch_std", "of": "centred"})
    close(of_prompts(centred), [1.620185] + [-0.540062] * 3 + [0.540062] * 3 + [-1.620185], atol=4e-6)
    assert not any(of_prompts("lite_ppo", rewards=torch.ones(8)))


def test_bnpo():
    close(of_prompts("bnpo"), [0.716606] + [-0.238869] * 3 + [0.238869] * 3 + [-0.716606])
    # four prompts of five responses: success rates .2 .4 .6 .6
    rewards = torch.tensor([1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0]).double()
    groups = torch.arange(4).repeat_interleave(5)
    weight = scale_beta(torch.ones(20).double(), rewards, groups, torch.ones(20, 1))
    close(1 / weight[::5], [1.097157, 1.472994, 1.362857, 1.362857])
    one = batch(torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0, 0, 0]))
    close(advantages(ROWS["bnpo"], one)[:, 0], [0.75, -0.25, -0.25, -0.25])
    sure = batch(torch.tensor([1.0, 1, 0, 0]), torch.tensor([0, 0, 1, 1]))
    assert advantages(ROWS["bnpo"], sure)[:, 0].tolist() == [0.0] * 4


def score_losses(name: str, right: list[bool], logp: float) -> float:
    made = batch(torch.tensor(right).float(), torch.zeros(len(right)).long(), torch.ones(len(right), 3))
    made = route(ROWS[name], made)
    made = with_advantages(ROWS[name], made)
    return float(objective(ROWS[name], made, torch.full((len(right), 3), logp))[0])


def test_psr():
    assert score_losses("psr", [True, False, True], -1.2) == pytest.approx(1.2)
    assert score_losses("psr", [False, False], -1.2) == 0.0


def test_nsr():
    assert score_losses("nsr", [True, False, True], -1.2) == pytest.approx(-1.2)
    assert score_losses("nsr", [True, True], -1.2) == 0.0


def test_w_reinforce():
    assert score_losses("w_reinforce", [True], -1.2) == pytest.approx(0.12)
    assert score_losses("w_reinforce", [False], -1.2) == pytest.approx(-1.2)
    assert score_losses("w_reinforce", [True, False], -1.2) == pytest.approx((0.12 - 1.2) / 2)


def test_ace():
    advantage, c = torch.tensor([-0.5, -0.5, -0.5, 1.5]), torch.tensor([2.0, 0.0, -2.0, 2.0])
    old = torch.stack([c * 0.25, c * 0.75], -1)
    close(modify.overconfident_errors(advantage, old, torch.zeros(4, 2), torch.ones(4, 2)), [-1.563464, -0.846574, -0.563464, 1.5])
    halved = modify.overconfident_errors(advantage, old * 2, torch.zeros(4, 2), torch.ones(4, 2), norm="mean")
    close(halved, [-1.563464, -0.846574, -0.563464, 1.5])
    close(modify.overconfident_errors(advantage, old * 9, torch.zeros(4, 2), torch.ones(4, 2), cap=2.0)[0], -1.563464)
    base, changed = (advantages(ROWS[name], batch(logp_ref_BT=torch.zeros(8, 1)))[:, 0] for name in ("grpo", "ace"))
    close(changed, torch.where(base < 0, base * (1 + math.log(2)), base))


def test_pshw():
    rewards = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0])  # the row writes them as -1 and 1
    close(of_prompts("pshw", rewards=rewards), [2.076] + [-0.692] * 3 + [0.564] * 3 + [-1.692])


def test_ter():
    mask = torch.ones(1, 3, dtype=torch.float64)
    for entropy, value, sign in ((0.9, 0.00035, 1), (0.3, 0.00025, -1)):
        made = batch(torch.tensor([1.0]), torch.tensor([0]), mask, logp_old_BT=OLD, advantage_BT=0 * mask)
        live = torch.full((1, 3), entropy, dtype=torch.float64, requires_grad=True)
        loss, _ = objective(ROWS["ter"], made, NEW, {"entropy_BT": live})
        assert float(loss.detach()) == pytest.approx(value)
        close(torch.autograd.grad(loss, live)[0], sign * 0.001 / 3 * mask)


def test_sngs():
    close(of_prompts(recipe("sngs", reward=[]))[:4], [1.499997] + [-0.374999] * 3)
    close(of_prompts(recipe("sngs", reward=[]))[4:], [0.499999] * 3 + [-1.499997])  # p = .75: 0.5 + p is above 1
    close(reward.format_and_accuracy(torch.tensor([1.0, 0.0]), torch.tensor([True, True])), [1.0, 0.1])


def test_noisy_backward():
    row = recipe("noisy_backward", reward=[{"name": "backward_correction", "false_positive": 0.1, "false_negative": 0.2}])
    corrected = reward.backward_correction(torch.tensor([1.0, 0.0]), false_positive=0.1, false_negative=0.2)
    close(corrected, [1.285714, -0.142857])
    close([0.8 * corrected[0] + 0.2 * corrected[1], 0.1 * corrected[0] + 0.9 * corrected[1]], [1.0, 0.0])  # unbiased
    close(of_prompts(row), [a / 0.7 for a in of_prompts("rloo")])
    # a scale by the group's deviation cancels the correction
    grpo = recipe("grpo", reward=row.slots["reward"])
    close(of_prompts(grpo), of_prompts("grpo"), atol=1e-5)
    close(reward.backward_correction(torch.tensor([1.0]), false_positive=0.5, false_negative=0.49), [0.5 / 0.05])


def test_noisy_forward():
    row = recipe("noisy_forward", modify=[{"name": "forward_correction", "false_negative": 0.2}])
    made = batch(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
    weight = advantages(row, made)[:, 0]
    close(weight, [0.2, -0.8])
    close([0.8 * weight[0] + 0.2 * weight[1], 0.1 * weight[0] + 0.9 * weight[1]], [0.0, -0.7])  # given truly right, truly wrong


def test_spae():
    close(potential(torch.tensor([1, 0, 0, 0.8]), torch.tensor([1, 1, 0, 0.9])), [1.0, -1.0, 0.0, 0.58])
    phi = torch.tensor([[0.1, 0.95, 0.96, 0.97]])
    got = step_potential(torch.tensor([0.5]), phi, torch.tensor([[0, 1, 2, 3]]), torch.ones(1, 4))
    close(got[0], [0.282256, 1.141397, 0.130143, 0.072007])
    late = step_potential(torch.tensor([0.5]), phi, torch.tensor([[0, 1, 2, 3, 7]]), torch.ones(1, 5))
    close(late[0, 4], 0.072007)  # tokens after the last step belong to it
    none = step_potential(torch.tensor([0.5]), torch.full((1, 4), torch.nan), torch.tensor([[0, 0]]), torch.ones(1, 2))
    close(none[0], [0.5, 0.5])
    flat = step_potential(torch.tensor([0.5]), torch.full((1, 2), 0.3), torch.tensor([[0, 1]]), torch.ones(1, 2))
    close(flat[0], [0.5, 0.5])  # equal gains: no bonus
    made = batch(
        torch.tensor([1.0, 0.0]),
        torch.tensor([0, 0]),
        lengths(2, 2),
        potential_BK=torch.tensor([[0.1, 0.4], [0.2, 0.1]]),
        step_BT=torch.tensor([[0, 1], [0, 1]]),
    )
    whitened = advantages(ROWS["spae"], made)
    close([whitened.mean(), whitened.std()], [0.0, 1.0], atol=1e-5)


def test_arpo():
    made = batch(
        torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), lengths(3, 3), share_BT=torch.tensor([[1, 2, 3], [1, 4, 5]]),
    )  # fmt: skip
    row = recipe("arpo", center={"name": "none"}, scale={"name": "none"}, reward=[{"name": "rescale", "low": -0.4, "high": 1.2}])
    close(advantages(row, made), [[0.4, 1.2, 1.2], [0.4, -0.4, -0.4]])


def test_w_grpo_pairs():
    rewards = torch.tensor([1.0] + [0] * 7 + [1] * 7 + [0])
    made = batch(rewards, torch.arange(2).repeat_interleave(8))
    plain = recipe("w_grpo_pairs", modify=[], scale={"name": "group_std", "ddof": 0, "eps": 0.0})
    close(advantages(plain, made)[[0, 1, 8, 15], 0], [2.645751, -0.377964, 0.377964, -2.645751])
    row = recipe("w_grpo_pairs", scale={"name": "group_std", "ddof": 0, "eps": 0.0})
    close(advantages(row, made)[[0, 1, 8, 15], 0], [2 * 2.645751, -0.377964, 0.377964, -2 * 2.645751])
    three = batch(torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1]), torch.arange(4).repeat_interleave(4))
    masked = three.having(mask_BT=torch.cat([torch.ones(8, 1), torch.zeros(4, 1), torch.ones(4, 1)]))
    assert not route(ROWS["w_grpo_pairs"], masked).mask_BT.any()  # a group that does not train is no one's partner
    # hard: 1/4 and 2/4, easy: 3/4; 4/4 is no pair for anyone: the hardest goes with the only easy one
    assert route(ROWS["w_grpo_pairs"], three).mask_BT[:, 0].tolist() == [1] * 4 + [0] * 4 + [1] * 4 + [0] * 4


def test_rlcr():
    right, q = torch.tensor([True, False, True]), torch.tensor([0.8, 0.8, torch.nan])
    close(reward.brier(right, q), [0.96, -0.64, -1.0])
    close(reward.brier(right, q, torch.tensor([True, True, True]), form="code"), [0.5 + 0.5 + 0.48, 0.5 + 0.18, 0.0])
    assert float(reward.brier(right[:1], q[:1], torch.tensor([False]), form="code")) == 0.0
    made = batch(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), confidence_B=torch.tensor([0.8, 0.8]))
    close(advantages(ROWS["rlcr"], made)[:, 0], [0.8, -0.8])


def test_aepo():
    n, k = torch.tensor([1, 3, 3, 4, 3, 0]), torch.tensor([1, 1, 2, 4, 0, 0])
    shaped = reward.exploration(n, k, torch.ones(6).bool())
    close(shaped, [2.0, 1.57735, 1.408248, 1.25, 1 - 1 / 3, -1.0])
    close(reward.exploration(n[:1], k[:1], torch.zeros(1).bool()), [-1.0])
    made = batch(
        torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), candidates_B=torch.tensor([3, 3]), rank_B=torch.tensor([2, 0]), format_B=torch.ones(2).bool()
    )
    close(advantages(ROWS["aepo"], made)[:, 0], [1.408248 - 0.666667, 0.666667 - 1.408248])


def test_aggregations():
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0]])
    loss = torch.tensor([[1.0] * 4, [2.0] * 4, [3.0] * 4, [0.0] * 4])

    def total(function, rows, *tensors, **settings):
        return float((function(mask[:rows], *tensors, **settings)[:, None] * mask[:rows] * loss[:rows]).sum())

    assert total(aggregation.token_mean, 2) == pytest.approx(1.666667, abs=1e-6)
    assert total(aggregation.sequence_mean_token_mean, 2) == 1.5
    assert total(aggregation.sequence_mean_token_sum, 2) == 5.0
    assert total(aggregation.sequence_mean_token_sum_norm, 2, length=4) == 1.25
    assert total(aggregation.sequence_mean_token_sum_norm, 2, torch.tensor(4)) == 1.25
    assert total(aggregation.constant_sum, 2, constant=10.0) == 1.0
    assert total(aggregation.prompt_mean, 4, torch.tensor([7, 7, 9, 9])) == pytest.approx(1.583333, abs=1e-6)
    assert total(aggregation.token_mean, 4) == 1.625
    assert total(aggregation.sequence_mean_token_mean, 4) == 1.5


def test_gdpo():
    correct, form = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0]), torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 1])
    parts = {"rewards": correct + form, "components_BK": torch.stack([correct, form], -1)}
    mixed, even = 1.595321, 0.690794
    close(of_prompts("gdpo", **parts), [mixed, 0, 0, -mixed, even, even, -even, -even], atol=5e-5)
    raw = recipe("gdpo", reward=[{"name": "decoupled", "eps": 1e-6}], scale={"name": "none"})
    close(of_prompts(raw, **parts), [1.999996, 0, 0, -1.999996, 0.866024, 0.866024, -0.866024, -0.866024], atol=4e-6)
    close(of_prompts("grpo", **parts), [1.224743, 0, 0, -1.224743, 0.866024, 0.866024, -0.866024, -0.866024], atol=4e-6)
    # one part alone is GRPO up to the last scale, and no part's unit matters
    alone = of_prompts(raw, **(parts | {"components_BK": correct[:, None]}))
    close(alone, of_prompts("grpo", rewards=correct), atol=4e-6)
    close(of_prompts("gdpo", **(parts | {"components_BK": 10 * parts["components_BK"] + 3})), of_prompts("gdpo", **parts), atol=5e-4)
