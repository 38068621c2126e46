"""Rows against hand-computed numbers, fourth part: objectives that are no policy gradient, and losses beside it. A row's test is
`test_<row>`."""

import math

import pytest
import torch
from batches import NEW, OLD, ROLL, batch, lengths

from pipelines.rl import RECIPES, advantages, objective, recipe, route, weigh, with_advantages
from pipelines.rl.objectives.self_distillation import entropy_with_tail
from pipelines.rl.objectives.step_regression import step_advantages
from pipelines.rl.slots import auxiliary, credit, modify, reward
from pipelines.rl.statistics import class_balance, component_weights, distillation_weights, objective_weights

ONE = torch.ones(1, 3, dtype=torch.float64)


def close(got, expected, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(got).double(), torch.as_tensor(expected).double(), atol=atol, rtol=0)


def responses(rewards, *sums, groups=None, **tensors):
    """Responses of one token whose log-probabilities are given: (batch, logp)."""
    logp, old = (torch.tensor(values, dtype=torch.float64)[:, None] for values in sums)
    groups = torch.zeros(len(rewards)).long() if groups is None else groups
    return batch(torch.tensor(rewards), groups, torch.ones_like(logp), logp_old_BT=old, **tensors), logp


def loss_of(row, made, logp, live=None) -> float:
    return float(objective(row, made, logp, live)[0].detach())


def test_pacs():
    made, logp = responses([1.0, 0, 0, 0], [-3, -5, -4, -6], [-3.2, -4.8, -4, -6])
    plain = recipe("pacs", objective={"name": "implicit_critic", "balanced": False})
    assert loss_of(plain, made, logp) == pytest.approx(0.630912, abs=1e-6)
    assert loss_of(RECIPES["pacs"], made, logp) == pytest.approx(0.610167, abs=1e-6)
    leaf = made.logp_old_BT.clone().requires_grad_()  # on-policy: psi = 0, dL/dpsi = w (0.5 - y) / B
    (gradient,) = torch.autograd.grad(objective(RECIPES["pacs"], made, leaf)[0], leaf)
    d = torch.tensor([2 * -0.5, 2 / 3 * 0.5, 2 / 3 * 0.5, 2 / 3 * 0.5]) / 4
    close(gradient[:, 0], [float(d[i] - (d.sum() - d[i]) / 3) for i in range(4)])


def nft(reward_: float, weight: str = "dr_grpo", logp=NEW):
    leaf = logp.clone().requires_grad_()
    row = recipe("nft", routing=[], objective={"name": "negative_aware", "weight": weight}, aggregation={"name": "constant_sum", "constant": 1.0})
    made = batch(torch.tensor([reward_]), torch.tensor([0]), ONE, logp_old_BT=OLD)
    made = weigh(row, made).having(rate_B=torch.tensor([0.25], dtype=torch.float64))
    loss, _ = objective(row, made, leaf)
    return float(loss.detach()), torch.autograd.grad(loss, leaf)[0][0]


def test_nft():
    assert nft(1.0)[0] == pytest.approx(-0.15 + 0.225, abs=1e-6)
    loss, gradient = nft(0.0)
    assert loss == pytest.approx(-0.062148, abs=1e-6)
    close(gradient, [0.305351, 0.170476, 0.25])
    # on-policy: Dr.GRPO's gradient with w = 1 - q, the population GRPO's with sqrt((1-q)/q)
    close(nft(1.0, logp=OLD)[1], [-0.75] * 3)
    close(nft(0.0, logp=OLD)[1], [0.25] * 3)
    close(nft(1.0, "grpo", OLD)[1], [-math.sqrt(3)] * 3)
    close(nft(0.0, "grpo", OLD)[1], [math.sqrt(1 / 3)] * 3)
    made = batch(torch.tensor([1.0, 0, 0, 0]), torch.zeros(4).long())
    close(weigh(RECIPES["nft"], made).rate_B, [0.25] * 4)


def test_rover():
    new, old = torch.tensor([[2.0, 1, 0, 0], [0, 0, 1, 0]]), torch.tensor([[1.8, 1, 0, 0.2], [0, 0, 0.6, 0.2]])
    logp, logp_old = (torch.log_softmax(logits.double(), -1) for logits in (new, old))
    at = torch.tensor([[0], [2]])
    made = batch(
        torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 2).double(), logp_old_BT=logp_old.gather(-1, at)[None, :, 0],
        vocab_mean_old_BT=logp_old.mean(-1)[None], advantage_BT=torch.full((1, 2), 0.75).double(),
    )  # fmt: skip
    live = {"vocab_mean_BT": logp.mean(-1)[None]}
    close(logp.gather(-1, at)[:, 0] - made.logp_old_BT[0], [0.103113, 0.274436])
    assert loss_of(RECIPES["rover"], made, logp.gather(-1, at)[None, :, 0], live) == pytest.approx(0.276285, abs=1e-6)
    leaf = made.logp_old_BT.clone().requires_grad_()  # first inner step: -2 rho r / N
    (gradient,) = torch.autograd.grad(objective(RECIPES["rover"], made, leaf, {"vocab_mean_BT": made.vocab_mean_old_BT})[0], leaf)
    close(gradient, [[-0.75, -0.75]])


def test_laser():
    logp, right = torch.tensor([-13.0, -23, -20, -25]), torch.tensor([True, False, False, False])
    anchor = torch.tensor(-23.0)
    even = torch.full((4,), 0.25)
    close(auxiliary.self_reward(logp, anchor, right, even, coefficient=1.0), 0.0325)
    balance = class_balance(right, torch.ones(4, 1))
    close(auxiliary.self_reward(logp, anchor, right, balance, coefficient=1.0), 0.021667)
    close(class_balance(right, torch.ones(4, 1), torch.tensor([False, False, False, True])), [1.5 / 4, 0.75 / 4, 0.75 / 4, 0.0])
    close(class_balance(torch.ones(4).bool(), torch.ones(4, 1)), [0.0] * 4)
    # after the warm-up the advantage mixes in the z-score of the verdict, where it deviates enough
    a, groups = torch.tensor([1.0, -1, 1, -1]), torch.tensor([0, 0, 1, 1])
    verdict = torch.tensor([-13.0, -23, -23.0, -23.5])
    mixed = modify.self_rewarded(a, verdict, anchor, groups, torch.tensor(201))
    close(mixed, [0.9 + 0.1 * 0.707106, -0.9 - 0.1 * 0.707106, 1.0, -1.0])
    close(modify.self_rewarded(a, verdict, anchor, groups, torch.tensor(200)), a)
    made = batch(torch.tensor([1.0, 0, 0, 0]), torch.zeros(4).long(), special_old_B=logp, special_anchor=anchor, step=torch.tensor(10))
    loss = loss_of(RECIPES["laser"], with_advantages(RECIPES["laser"], made), torch.zeros(4, 1), {"special_B": logp})
    assert loss == pytest.approx(0.1 * 0.021667, abs=1e-6)  # GRPO's own is 0 on-policy
    late = with_advantages(RECIPES["laser"], made.having(step=torch.tensor(201)))  # z of the verdicts 1, 0, .3, 0
    z = (torch.tensor([1.0, 0.0, 0.3, 0.0]) - 0.325) / 0.471699
    close(late.advantage_BT[:, 0], 0.9 * torch.tensor([1.5, -0.5, -0.5, -0.5]) + 0.1 * z, atol=1e-5)


def test_calib_rl():
    for right, x, a, loss in ((True, 0.5, 0.75, -0.1875), (True, -0.5, 0.75, 0.375), (False, 0.5, -0.25, 0.125), (False, -0.5, -0.25, -0.0625)):
        got = auxiliary.expert(torch.tensor([[x]]), torch.zeros(1, 1), torch.tensor([[a]]), torch.tensor([right]), coefficient=1.0)
        close(got, [[loss]])
    unknown = torch.full((1, 1), torch.nan)
    close(auxiliary.expert(torch.zeros(1, 1), unknown, torch.ones(1, 1), torch.tensor([True]), coefficient=1.0), [[0.0]])
    close(advantages(RECIPES["calib_rl"], batch())[:, 0], advantages(RECIPES["dr_grpo"], batch())[:, 0])


def test_stable_reinforce():
    f, c, s = (torch.tensor(values).float() for values in ([1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 1, 1]))
    close(reward.consistency(c, f, s), [2.0, 1.5, 0.5, 1.5])
    z = credit.whiten(torch.tensor([[0.0] * 15 + [10.0]]), torch.ones(1, 16), ddof=0)
    close(z[0, [0, 15]], [-0.258199, 3.872983])
    raw, mask = torch.tensor([[0.0] * 15 + [10.0]]), torch.ones(1, 16)
    close(credit.zero_outliers(z, raw, mask)[0, [0, 15]], [-0.258199, 0.0])
    close(credit.zero_outliers(z, raw, mask, limit=3.5, around="raw_mean")[0, [0, 15]], [-0.258199, 3.872983])  # 3.87 - .625 is inside
    row = recipe("stable_reinforce", clip={"name": "none"})
    for far, ratio in ((10.0, 1000.0), (-10.0, 0.001)):
        made = batch(torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 1).double(), advantage_BT=torch.ones(1, 1).double())
        assert loss_of(row, made, torch.full((1, 1), far).double()) == pytest.approx(-ratio, rel=1e-6)


def test_a_lol():
    made, logp = responses([0.9], [-3.0], [-3.0], logp_ref_BT=torch.tensor([[-2.9]]).double(), baseline_B=torch.tensor([0.5]))
    made = with_advantages(RECIPES["a_lol"], made)
    assert loss_of(RECIPES["a_lol"], made, logp) == pytest.approx(1.085805, abs=1e-6)
    two, logp = responses([0.9, 0.3], [-3.0, -3.0], [-3.0, -3.0], logp_ref_BT=torch.full((2, 1), -2.9).double(), baseline_B=torch.tensor([0.5, 0.5]))
    two = with_advantages(RECIPES["a_lol"], route(RECIPES["a_lol"], two))
    assert loss_of(RECIPES["a_lol"], two, logp) == pytest.approx(1.085805, abs=1e-6)  # what is not better leaves the mean
    poor, logp = responses([0.3], [-3.0], [-3.0], logp_ref_BT=torch.tensor([[-2.9]]).double(), baseline_B=torch.tensor([0.5]))
    assert loss_of(RECIPES["a_lol"], with_advantages(RECIPES["a_lol"], poor), logp) == 0.0
    far, logp = responses([0.9], [-1.0], [-1.0], logp_ref_BT=torch.tensor([[-2.9]]).double(), baseline_B=torch.tensor([0.5]))
    assert loss_of(RECIPES["a_lol"], with_advantages(RECIPES["a_lol"], far), logp) == pytest.approx(0.4 * 1.9 * 1.0, abs=1e-6)


def test_direct_advantage():
    row = recipe("direct_advantage", objective={"name": "step_regression", "beta": 0.5})
    for a, loss in ((0.1, 0.0), (-0.2, 0.18)):
        made, logp = responses(
            [1.0], [-1.8], [-2.0], logp_ref_BT=torch.tensor([[-2.0]]).double(), step_value_BK=torch.tensor([[1.0 - a]], dtype=torch.float64), step_BT=torch.tensor([[0]])
        )  # fmt: skip
        assert loss_of(row, made, logp) == pytest.approx(loss, abs=1e-9)
    steps, logp = responses(
        [1.0, 1.0], [-1.8, -2.0], [-2.0, -2.0], logp_ref_BT=torch.full((2, 1), -2.0).double(),
        step_value_BK=torch.tensor([[1.2, torch.nan], [0.5, 0.5]], dtype=torch.float64), step_BT=torch.tensor([[0], [1]]),
    )  # fmt: skip
    # losses of the three steps: (-.4 - .2)^2 / 2, 0 and (.5 / .5)^2 / 2; one mean over all of them
    assert loss_of(row, steps, logp) == pytest.approx((0.18 + 0.0 + 0.5) / 3, abs=1e-9)
    values = torch.tensor([[0.2, 0.5, torch.nan], [0.2, 0.5, 0.4]])
    close(step_advantages(values, torch.tensor([True, False]))[0, :2], [0.3, 0.5])
    close(step_advantages(values, torch.tensor([True, False]))[1], [0.3, -0.1, -0.4])


def test_copg():
    row = recipe("copg", objective={"name": "contrastive", "beta": 0.5})
    made, logp = responses([1.0, 0.0], [-3, -5], [-3, -5], logp_ref_BT=torch.tensor([[-3.2], [-4.5]]).double())
    assert loss_of(row, made, logp) == pytest.approx(0.4225, abs=1e-6)
    leaf = logp.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(row, made, leaf)[0], leaf)
    close(gradient[:, 0], [-0.65, 0.65])  # -(Rb1 - Rb2) (grad log pi1 - grad log pi2)
    # three responses: the sum over pairs, by hand
    made, logp = responses([1.0, 0.0, 0.5], [-3, -5, -4], [-3, -5, -4], logp_ref_BT=torch.tensor([[-3.2], [-4.5], [-4.0]]).double())
    pairs = (0.9 - 0.25) ** 2 + (0.9 - 0.5) ** 2 + (0.25 - 0.5) ** 2
    assert loss_of(row, made, logp) == pytest.approx(pairs / (2 * 0.5 * 2), abs=1e-6)


PAIR = {"logp_ref_BT": torch.tensor([[-11.0], [-11.5]]).double()}


def test_dpo():
    made, logp = responses([1.0, 0.0], [-10, -12], [-10, -12], **PAIR)
    assert loss_of(RECIPES["dpo"], made, logp) == pytest.approx(0.620957, abs=1e-6)
    assert loss_of(RECIPES["dpo"], made.having(level_B=torch.tensor([1, 1])), logp) == pytest.approx(0.620957, abs=1e-6)
    equal, logp = responses([1.0, 1.0], [-10, -12], [-10, -12], **PAIR)
    assert loss_of(RECIPES["dpo"], equal, logp) == 0.0  # no pair differs


def test_ipo():
    made, logp = responses([1.0, 0.0], [-10, -12], [-10, -12], **PAIR)
    assert loss_of(RECIPES["ipo"], made, logp) == pytest.approx(12.25, abs=1e-6)
    per_token = recipe("ipo", objective={"name": "preference", "link": "square", "beta": 0.1, "mean": True})
    long = batch(
        torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), lengths(2, 1).double(), logp_ref_BT=torch.tensor([[-11.0, -11], [-11.5, 0]]).double()
    )
    assert loss_of(per_token, long, torch.tensor([[-10.0, -10], [-12, 0]]).double()) == pytest.approx((1.5 - 5) ** 2, abs=1e-6)


def test_orpo():
    made, logp = responses([1.0, 0.0], [-0.5, -0.9], [-0.5, -0.9])
    assert loss_of(RECIPES["orpo"], made, logp) == pytest.approx(0.536773, abs=1e-6)
    sure, logp = responses([1.0, 0.0], [0.0, -0.9], [0.0, -0.9])
    assert math.isfinite(loss_of(RECIPES["orpo"], sure, logp))


def test_simpo():
    made, logp = responses([1.0, 0.0], [-0.5, -0.8], [-0.5, -0.8])
    assert loss_of(RECIPES["simpo"], made, logp) == pytest.approx(1.053701, abs=1e-6)
    long = batch(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), lengths(2, 1).double())
    assert loss_of(RECIPES["simpo"], long, torch.tensor([[-0.2, -0.8], [-0.8, 0]]).double()) == pytest.approx(1.053701, abs=1e-6)  # mean of tokens
    # without a margin and at one length it is DPO's of a constant reference
    bare = recipe("simpo", objective={"name": "normalised_preference", "beta": 0.1, "gamma": 0.0})
    flat = made.having(logp_ref_BT=torch.full((2, 1), -1.0).double())
    assert loss_of(bare, made, logp) == pytest.approx(loss_of(RECIPES["dpo"], flat, logp), abs=1e-12)


def test_alpha_po():
    made, logp = responses([1.0, 0.0], [-0.5, -0.8], [-0.5, -0.8])
    assert loss_of(RECIPES["alpha_po"], made, logp) == pytest.approx(0.376545, abs=1e-6)
    flat = recipe("alpha_po", objective={"name": "normalised_preference", "beta": 2.5, "gamma": 0.1})
    assert loss_of(flat, made, logp) == pytest.approx(0.420055, abs=1e-6)
    near = recipe("alpha_po", objective={"name": "normalised_preference", "beta": 2.5, "gamma": 0.1, "alpha": 1e-6})
    assert loss_of(near, made, logp) == pytest.approx(0.420055, abs=1e-5)  # alpha -> 0 is SimPO


def test_kto():
    mismatched = torch.tensor([0.2, -0.5, 0.6]).double()
    made, logp = responses(
        [1.0, 0.0, 0.0], [-1.5, -3.7, -3.7], [-1.5, -3.7, -3.7], groups=torch.tensor([0, 1, 2]),
        logp_ref_BT=torch.full((3, 1), -3.0).double(), mismatched_B=mismatched,
    )  # fmt: skip
    desirable, undesirable = 0.465057, 0.480011  # D 1.5 and -.7 against z0 = .1
    assert loss_of(RECIPES["kto"], made, logp) == pytest.approx((desirable + 2 * undesirable) / 3, abs=1e-6)
    weighted = recipe("kto", objective={"name": "unpaired", "beta": 0.1, "desirable": 2.0})
    assert loss_of(weighted, made, logp) == pytest.approx((2 * desirable + 2 * undesirable) / 3, abs=1e-6)
    below = made.having(mismatched_B=-mismatched.abs())  # z0 is no less than 0
    assert loss_of(RECIPES["kto"], below, logp) == pytest.approx((1 / (1 + math.exp(0.15)) + 2 / (1 + math.exp(0.07))) / 3, abs=1e-6)
    leaf = logp.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(RECIPES["kto"], made, leaf)[0], leaf)
    up, down = (s * (1 - s) * 0.1 / 3 for s in (desirable, undesirable))
    close(gradient[:, 0], [-up, down, down])


def test_trpa():
    made, logp = responses(
        [1.0, 0.0, 0.0], [0.2, -0.1, 0.0], [0.2, -0.1, 0.0], logp_ref_BT=torch.zeros(3, 1).double(), level_B=torch.tensor([1, 2, 2])
    )  # fmt: skip
    assert loss_of(RECIPES["trpa"], made, logp) == pytest.approx(0.662405, abs=1e-6)
    off = made.having(logp_old_BT=logp - 0.5)  # the trust region is around the old policy
    assert loss_of(RECIPES["trpa"], off, logp) == pytest.approx(0.662405 + 0.001 * 0.106531, abs=1e-6)
    ragged = batch(
        torch.tensor([1.0, 0.0]), torch.tensor([0, 1]), lengths(1, 4).double(), logp_ref_BT=torch.zeros(2, 4).double(), level_B=torch.tensor([1, 2])
    )
    q = torch.tensor([[0.4] * 4, [-0.2] * 4]).double()  # a mean over responses, however long
    bare = recipe("trpa", regularisers=[])
    assert loss_of(bare, ragged, q) == pytest.approx((math.log(1 + math.exp(-0.4)) + math.log(1 + math.exp(-0.2))) / 2, abs=1e-6)
    alike = made.having(level_B=torch.tensor([1, 1, 1]))  # no pairs: -mean log sigmoid(q)
    expected = sum(math.log(1 + math.exp(-q)) for q in (0.2, -0.1, 0.0)) / 3
    assert loss_of(RECIPES["trpa"], alike, logp) == pytest.approx(expected, abs=1e-6)


def distilled(divergence: float, roll: float = 0.0) -> float:
    student, teacher = (torch.tensor([[[p]]]).double().log() for p in (0.7, 0.4))
    row = recipe("sdpo", objective={"name": "self_distillation", "divergence": divergence})
    made = batch(
        torch.tensor([1.0]),
        torch.tensor([0]),
        torch.ones(1, 1).double(),
        logp_roll_BT=torch.full((1, 1), roll).double(),
        reprompt_B=torch.tensor([True]),
        topk_BTK=torch.zeros(1, 1, 1).long(),
        teacher_topk_BTK=teacher,
    )
    return loss_of(row, made, torch.zeros(1, 1).double(), {"student_topk_BTK": student})


def test_sdpo():
    assert distilled(0.5) == pytest.approx(0.046201, abs=1e-6)
    assert distilled(0.0) == pytest.approx(0.192042, abs=1e-6)
    assert distilled(1.0) == pytest.approx(0.183787, abs=1e-6)
    assert distilled(1.0, roll=-math.log(1.5)) == pytest.approx(1.5 * 0.183787, abs=1e-6)  # token TIS, at most 2
    assert distilled(1.0, roll=-9.0) == pytest.approx(2 * 0.183787, abs=1e-6)


def test_srpo():
    # teachers of entropy .1 and 1 over two tokens and the rest: (.979494, 0, rest) and (.550062, .224969, rest)
    teachers = torch.tensor([[[0.9794945, 1e-12]], [[0.5500616, 0.2249692]]])
    close(entropy_with_tail(teachers.log())[:, 0], [0.1, 1.0], atol=1e-5)
    both = distillation_weights(teachers.log(), torch.zeros(2).bool(), torch.ones(2).bool(), torch.ones(2, 1))
    close(both[:, 0], [1.421899, 0.578101], atol=1e-5)
    teacher = torch.tensor([[[0.9]], [[0.5]], [[0.5]]]).log()
    right, teachable = torch.tensor([False, False, True]), torch.tensor([True, True, True])
    weight = distillation_weights(teacher, right, teachable, torch.ones(3, 1))[:, 0]
    entropy = torch.tensor([-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)), math.log(2)])
    close(weight[:2], (-entropy).exp() / (-entropy).exp().mean())
    assert float(weight[2]) == 0.0
    # one shared denominator: two policy tokens of loss -.5, two distilled ones of .2 and .4
    made = batch(
        torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.ones(2, 2).double(), advantage_BT=torch.tensor([[0.5, 0.5], [-9, -9]]).double(),
        reprompt_B=torch.tensor([True, True]), topk_BTK=torch.zeros(2, 2, 1).long(), teacher_topk_BTK=torch.full((2, 2, 1), 0.4).double().log(),
    )  # fmt: skip
    row = recipe("srpo", auxiliary=[{"name": "distil", "divergence": 0.0}])
    jsd = 0.192042  # of both tokens; the weights make 0.2 and 0.4 of it
    made = weigh(row, made).having(distil_weight_BT=torch.tensor([[0, 0], [1.421899 * 0.2 / jsd, 0.578101 * 0.4 / jsd]]).double())
    student = torch.full((2, 2, 1), 0.7).double().log()
    assert loss_of(row, made, torch.zeros(2, 2).double(), {"student_topk_BTK": student}) == pytest.approx(-0.121095, abs=2e-6)


def test_recap():
    mean, earlier, deviation = torch.tensor([0.5, 0.8]), torch.tensor([0.5, 1.0]), torch.tensor([0.01, 0.3])
    close(objective_weights(mean, earlier, deviation), [1.004333, 0.995667])
    close(objective_weights(mean, earlier, deviation, form="code"), [1.002167, 0.997833])
    close(component_weights(torch.rand(2, 19)), [1.0, 1.0])  # two windows are not full yet
    history = torch.cat([torch.full((2, 10), 1.0), torch.tensor([[0.5] * 10, [0.8] * 10])], 1)
    close(component_weights(history), objective_weights(torch.tensor([0.5, 0.8]), torch.ones(2), torch.zeros(2)))
    # a loss per part: GRPO of each, weighed
    parts = torch.tensor([[1.0, 1], [0, 0], [1, 0], [1, 0]])
    weights = torch.tensor([1.2, 0.8])
    made = with_advantages(RECIPES["recap"], batch(parts[:, 1], torch.zeros(4).long(), components_BK=parts, component_weight_K=weights))
    logp = torch.tensor([[0.1], [-0.3], [0.5], [0.0]])
    single = [with_advantages(RECIPES["grpo"], made.having(reward_B=parts[:, k], advantage_BT=None)) for k in range(2)]
    expected = sum(float(w) * loss_of(RECIPES["grpo"], one, logp) for w, one in zip(weights, single, strict=True)) / 2
    assert loss_of(RECIPES["recap"], made, logp) == pytest.approx(expected, abs=1e-6)


TAUGHT = torch.tensor([[-0.6, -2.8, -0.5]]).double()


def test_on_policy_distillation():
    made = batch(torch.tensor([1.0]), torch.tensor([0]), ONE, logp_old_BT=OLD, logp_roll_BT=ROLL, logp_taught_BT=TAUGHT)
    made = with_advantages(RECIPES["on_policy_distillation"], made)
    close(made.advantage_BT, [[0.4, -0.8, 0.0]])  # whatever the reward
    leaf = NEW.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(RECIPES["on_policy_distillation"], made, leaf)[0], leaf)
    close(gradient, [[-0.147356, 0.0, 0.0]])  # the second token lies outside the window
    same = with_advantages(RECIPES["on_policy_distillation"], made.having(advantage_BT=None, logp_taught_BT=OLD))
    close(same.advantage_BT, [[0.0, 0.0, 0.0]])  # a teacher that is the student
    both = recipe("on_policy_distillation", reward=[], center={"name": "const", "value": 0.5})
    close(advantages(both, made), [[0.9, -0.3, 0.5]])  # on top of a reward of 1 with baseline .5


def test_iw_opd():
    made = batch(torch.tensor([1.0]), torch.tensor([0]), ONE, logp_old_BT=ROLL, logp_roll_BT=ROLL, logp_taught_BT=TAUGHT)
    made = with_advantages(RECIPES["iw_opd"], made)
    close(made.advantage_BT, [[0.5 * 1.5, -1.8 * 1.391304, 0.0]])
    assert loss_of(RECIPES["iw_opd"], made, NEW) == pytest.approx(-1.72, abs=1e-5)
    same = with_advantages(RECIPES["iw_opd"], made.having(advantage_BT=None, logp_taught_BT=ROLL))
    close(same.advantage_BT, [[0.0, 0.0, 0.0]])  # no gap: weights of 1, not of 0 / 0


def of_three(divergence: float) -> float:
    student, teacher = (torch.tensor([[[p, q]]]).double().log() for p, q in ((0.7, 0.2), (0.5, 0.3)))  # and .1 and .2 for the rest
    row = recipe("topk_distillation", objective={"name": "distillation", "divergence": divergence})
    made = batch(torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 1).double(), topk_BTK=torch.zeros(1, 1, 2).long(), taught_topk_BTK=teacher)
    return loss_of(row, made, torch.zeros(1, 1).double(), {"student_topk_BTK": student})


def test_topk_distillation():
    assert of_three(0.0) == pytest.approx(0.092033, abs=1e-6)
    assert of_three(1.0) == pytest.approx(0.085123, abs=1e-6)
    assert of_three(0.5) == pytest.approx(0.021901, abs=1e-6)
    made = batch(torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 1).double(), topk_BTK=torch.zeros(1, 1, 2).long(),
                 taught_topk_BTK=torch.tensor([[[0.5, 0.3]]]).double().log())  # fmt: skip
    assert loss_of(RECIPES["topk_distillation"], made, torch.zeros(1, 1).double(), {"student_topk_BTK": torch.tensor([[[0.7, 0.2]]]).double().log()}) == pytest.approx(0.085123, abs=1e-6)


def test_ssb():
    """The student holds .5 of the token that the teacher holds .25 of, and both know the rest as one bucket."""
    known = {"stored_logp_BTK": torch.tensor([[[0.25]]]).log().double()}
    made = batch(torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 1).double(), **known)
    live = {"student_stored_BTK": torch.tensor([[[0.5]]]).log().double()}
    divergence = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert loss_of(RECIPES["ssb"], made, torch.zeros(1, 1).double(), live) == pytest.approx(divergence, abs=1e-6)
    warm = recipe("ssb", objective={"name": "stored_distillation", "divergence": 1.0, "temperature": 2.0})
    assert loss_of(warm, made, torch.zeros(1, 1).double(), live) == pytest.approx(4 * divergence, abs=1e-6)
    same = batch(torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 1).double(), stored_logp_BTK=live["student_stored_BTK"])
    assert loss_of(RECIPES["ssb"], same, torch.zeros(1, 1).double(), live) == pytest.approx(0.0, abs=1e-9)


def test_stored_distillation():
    def loss(kept, said):
        """kept, said: probabilities, None past the last that the teacher kept; what the student says there must not matter."""
        teacher = torch.tensor([[[math.log(p) if p else -1e4 for p in kept]]]).double()
        made = batch(torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 1).double(), stored_topk_BTK=torch.zeros(1, 1, len(kept)).long(), stored_logp_BTK=teacher)
        return loss_of(RECIPES["stored_distillation"], made, torch.zeros(1, 1).double(), {"student_stored_BTK": torch.tensor([[said]]).double().log()})

    assert loss([0.6, 0.3], [0.5, 0.3]) == pytest.approx(0.040078, abs=1e-6)  # renormalised it would be .226908
    assert loss([0.6, 0.3, None], [0.5, 0.3, 0.15]) == pytest.approx(0.040078, abs=1e-6)
    assert loss([1.0], [0.25]) == pytest.approx(math.log(4), abs=3e-6)  # the response itself: cross-entropy
