"""Derivatives written by hand, in numpy, for each kind of function that stops a gradient somewhere: what a finite difference cannot see.

d(loss)/d(log pi) of one response of three tokens (`pg`'s fixture: mean over tokens, A on every token), or of a group. Nothing here calls autograd but
through the code under test.
"""

import math

import numpy as np
import pytest
import torch
from batches import NEW, OLD, ROLL, batch

from pipelines.rl import objective, recipe, weigh
from pipelines.rl.slots import auxiliary, regularisers

new, old, roll = (tensor[0].numpy() for tensor in (NEW, OLD, ROLL))
r = np.exp(new - old)
T = 3
ONE = torch.ones(1, T, dtype=torch.float64)


def gradient(row, advantage=1.0, name="logp_BT", live=None, **tensors):
    """d loss / d `name` (T,) of the fixture."""
    made = batch(
        torch.tensor([1.0]), torch.tensor([0]), ONE, **{"logp_old_BT": OLD, "logp_roll_BT": ROLL, "advantage_BT": advantage * ONE, **tensors}
    )
    leaves = {"logp_BT": NEW.clone(), **{key: value.clone() for key, value in (live or {}).items()}}
    leaves = {key: value.requires_grad_() for key, value in leaves.items()}
    loss, _ = objective(row, made, leaves["logp_BT"], {key: value for key, value in leaves.items() if key != "logp_BT"})
    (found,) = torch.autograd.grad(loss, leaves[name], allow_unused=True)
    return np.zeros(T) if found is None else found[0].numpy()


def plain(**slots):
    return recipe("grpo", **{"aggregation": {"name": "token_mean"}, **slots})


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


FAR = {"logp_old_BT": torch.tensor([[-2.5, -2.0, -0.1]], dtype=torch.float64)}
far = np.exp(new - FAR["logp_old_BT"][0].numpy())  # 5.47, 0.74, 0.67

CLIPS = {
    # clip -> A -> derivative of the loss of each token, before the mean
    "none": lambda a: -a * far,
    "ppo": lambda a: np.where((a > 0) & (far > 1.2) | (a < 0) & (far < 0.8), 0.0, -a * far),
    "soft_gate": lambda a: -a * 4 * (s := sigmoid((1.0 if a > 0 else 1.05) * (far - 1))) * (1 - s) * far,
    "window": lambda a: -a * far * ((far >= 0.2) & (far <= 5.0)),
    "score": lambda a: -a * np.ones(T),
    "score_ratio": lambda a: -a * far,
    "weight_cap": lambda a: -a * np.minimum(far, 5.0),
    "masked_score": lambda a: np.where((a > 0) & (far > 1.2) | (a < 0) & (far < 0.8), 0.0, -a * far),
    "taper": lambda a: -a * (np.ones(T) if a > 0 else np.minimum(far, 1.0)),
}


@pytest.mark.parametrize("advantage", [1.0, -0.7])
@pytest.mark.parametrize("name", CLIPS)
def test_clips(name, advantage):
    close(gradient(plain(clip={"name": name}), advantage, **FAR), CLIPS[name](advantage) / T)


def test_score_functions_have_the_gradient_of_the_log_probability_alone():
    """The weight is a number: were it differentiated too, -w A log pi would give -w A (1 + log pi)."""
    found = gradient(plain(clip={"name": "score_ratio"}))
    close(found, -r / T)
    assert np.abs(found + r * (1 + new) / T).max() > 0.1


@pytest.mark.parametrize("advantage", [1.0, -0.7])
def test_clip_around_the_replayed_policy(advantage):
    centre = np.exp(old - roll)
    k = np.exp(new - roll)
    clipped = (advantage > 0) & (k > centre + 0.2) | (advantage < 0) & (k < centre - 0.2)
    close(gradient(plain(clip={"name": "ppo_centred"}, anchor={"name": "roll"}), advantage), np.where(clipped, 0.0, -advantage * k) / T)


def test_low_probability_tokens_are_held_near_the_proxy():
    """-A r + beta (q/pi - log(q/pi) - 1) where the token is low and below the proxy; the condition itself has no gradient."""
    proxy = torch.tensor([[-0.5, -2.0, -0.9]], dtype=torch.float64)  # above, above, below
    low = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    row = recipe("lp_reg", aggregation={"name": "token_mean"})
    gap = proxy[0].numpy() - new
    held = np.array([True, False, False])
    expected = np.where(held, 0.7 * r + 1.0 * (1 - np.exp(gap)), 0.7 * r)  # A = -0.7; d/dlogp of (e^g - g - 1) is 1 - e^g
    close(gradient(row, -0.7, logp_proxy_BT=proxy, low_BT=low, coefficient_B=torch.tensor([1 / T], dtype=torch.float64)), expected / T)


RATIOS = {
    # each token has the ratio's value and its own gradient: for one advantage their sum is the derivative of the ratio of the whole
    "token": r,
    "sequence_geometric": np.full(T, math.exp((new - old).mean())),
    "sequence_product": np.full(T, math.exp((new - old).sum())),
    "cumulative_product": np.exp(np.cumsum(new - old)),
    "cumulative_geometric": np.exp(np.cumsum(new - old) / np.arange(1, T + 1)),
}


@pytest.mark.parametrize("name", RATIOS)
def test_ratios(name):
    close(gradient(plain(ratio={"name": name}, clip={"name": "none"}), 0.8), -0.8 * RATIOS[name] / T)
    apart = torch.tensor([[0.0, 0.0, 0.8]], dtype=torch.float64)  # an advantage on the last token: the others' tokens do not move
    close(gradient(plain(ratio={"name": name}, clip={"name": "none"}), advantage_BT=apart), [0, 0, -0.8 * RATIOS[name][2] / T])


def test_the_sequence_ratio_of_gspo_is_differentiated_through_every_token():
    """L = -A s, s = exp(mean log r): dL/dlogp_t = -A s / T for every t."""
    close(gradient(recipe("gspo", clip={"name": "none"}), 0.8), -0.8 * np.full(T, math.exp((new - old).mean()) / T))


def test_engine_weights_multiply_and_do_not_move():
    w = np.minimum(np.exp(old - roll), 2.0)
    close(gradient(plain(clip={"name": "none"}, mismatch=[{"name": "token_truncated", "cap": 2.0}])), -w * r / T)


def test_mastered_tokens_leave_the_sum_and_the_mask_has_no_gradient():
    sure = torch.tensor([[-0.001, -2.3, -0.5]], dtype=torch.float64)
    entropy = torch.full((1, T), 0.1, dtype=torch.float64)
    row = recipe("ulorl", clip={"name": "none"})
    found = gradient(row, 0.8, live={"logp_BT": sure, "entropy_BT": entropy}, correct_B=torch.tensor([True]), entropy_old_BT=entropy)
    close(found, -0.8 * np.array([0.0, *np.exp(sure[0].numpy() - old)[1:]]) / T)
    assert not gradient(row, 0.8, "entropy_BT", {"logp_BT": sure, "entropy_BT": entropy}, correct_B=torch.tensor([True]), entropy_old_BT=entropy).any()


ref = np.array([-1.0, -1.5, -0.6])
REF = {"logp_ref_BT": torch.tensor(ref)[None]}
d = new - ref
KL = {
    ("k1", False): np.ones(T),
    ("k2", False): d,
    ("k3", False): 1 - np.exp(-d),
    ("k3plus", False): d,  # k3's value with k2's gradient
    ("k1", True): r + r * d,  # d/dlogp of r k = r k + r k'
    ("k2", True): r * d,  # the ratio is a number beside k2
    ("k3", True): r * (np.exp(-d) + d - 1) + r * (1 - np.exp(-d)),
    ("k3plus", True): r * d,
}


@pytest.mark.parametrize(("estimator", "importance"), KL)
def test_kl_terms(estimator, importance):
    row = plain(clip={"name": "score"}, regularisers=[{"name": "kl", "coefficient": 0.3, "estimator": estimator, "importance": importance}])
    close(gradient(row, 0.0, **REF), 0.3 * KL[estimator, importance] / T)


def test_other_kl_terms():
    at = {"logp_prev_BT": OLD, "step": torch.tensor(75), **REF}
    row = plain(clip={"name": "score"}, regularisers=[{"name": "kl_convex", "coefficient": 0.3}])
    close(gradient(row, 0.0, **at), 0.3 * (0.7 * (1 - np.exp(-d)) + 0.3 * (1 - np.exp(-(new - old)))) / T)
    row = plain(clip={"name": "score"}, regularisers=[{"name": "kl_old", "coefficient": 0.3}])
    close(gradient(row, 0.0), 0.3 * (1 - np.exp(-(new - old))) / T)
    row = plain(clip={"name": "score"}, regularisers=[{"name": "kl_forward", "coefficient": 0.3}])
    close(gradient(row, 0.0, logp_tempered_BT=torch.tensor(ref)[None]), -0.3 * -d * np.exp(-d) / T)  # d/dx (e^x x - e^x + 1) = x e^x, x = -d


H = np.array([0.2, 0.9, 0.4])
ENTROPY = {"entropy_BT": torch.tensor(H)[None]}


def test_entropy_terms():
    row = plain(clip={"name": "score"}, regularisers=[{"name": "entropy_bonus", "coefficient": 0.3}])
    close(gradient(row, 0.0, "entropy_BT", ENTROPY), np.full(T, -0.3 / T))
    for target, sign in ((0.4, 1), (0.6, -1)):  # the mean is 0.5
        row = plain(clip={"name": "score"}, regularisers=[{"name": "entropy_target", "coefficient": 0.3, "target": target}])
        close(gradient(row, 0.0, "entropy_BT", ENTROPY), np.full(T, sign * 0.3 / T))
        # of a slice that knows the whole batch's entropy (0.7 at these targets): the slope is the whole's
        close(gradient(row, 0.0, "entropy_BT", ENTROPY, entropy_sum=torch.tensor(0.7, dtype=torch.float64)), np.full(T, 0.3 / T))
    right = {"correct_B": torch.tensor([True]), "diversity_weight_B": torch.tensor([0.6], dtype=torch.float64)}
    row = plain(clip={"name": "score"}, regularisers=[{"name": "entropy_correct", "coefficient": 0.3}])
    close(gradient(row, 0.0, "entropy_BT", ENTROPY, diversity_B=torch.tensor([0.5]).double(), **right)[:1], [-0.3 * 1.0 / T])  # softmax of one


def test_peak_entropy_moves_its_peaks_alone():
    """coefficient (mean over peaks - anchor)^2: the quantile that chooses the peaks has no gradient."""
    row = plain(clip={"name": "score"}, regularisers=[{"name": "entropy_anchor", "coefficient": 0.3}], inputs={"peak_entropy_B": {"quantile": 0.5}})
    found = gradient(row, 0.0, "nucleus_entropy_BT", {"nucleus_entropy_BT": torch.tensor(H)[None]}, entropy_anchor=torch.tensor(0.5).double())
    close(found, [0.0, 0.3 * 2 * (0.9 - 0.5), 0.0])  # only .9 is above the median .4
    slope = regularisers.of_whole(lambda h: h**2, (here := torch.tensor(0.3).double().requires_grad_()), torch.tensor(0.8).double(), torch.tensor(0.5).double())
    assert float(slope.detach()) == pytest.approx(0.8**2 * 0.5) and float(torch.autograd.grad(slope, here)[0]) == pytest.approx(2 * 0.8)


def test_auxiliary_losses():
    value = torch.tensor([[0.9, 0.2, 0.0]], dtype=torch.float64)
    known = {"value_old_BT": torch.full((1, T), 0.5).double(), "return_BT": torch.tensor([[1.0, 1.0, 0.1]]).double()}
    row = plain(clip={"name": "score"}, auxiliary=[{"name": "value", "coefficient": 0.4, "clip": 0.2}])
    # clipped values .7, .3, .3: the larger error wins, and a clipped one has no gradient
    close(gradient(row, 0.0, "value_BT", {"value_BT": value}, **known), 0.4 * np.array([0.0, 0.2 - 1.0, 0.0]) / T)
    s = torch.tensor([-13.0, -22.0]).double().requires_grad_()
    weight, right = np.array([0.3, 0.7]), np.array([1.0, 0.0])
    loss = auxiliary.self_reward(s, torch.tensor(-23.0).double(), torch.tensor([True, False]), torch.tensor(weight), coefficient=0.4)
    verdict = 0.1 * (np.array([-13.0, -22.0]) + 23)
    close(torch.autograd.grad(loss, s)[0].numpy(), 0.4 * 2 * weight * (verdict - right) * 0.1)
    row = plain(clip={"name": "score"}, auxiliary=[{"name": "expert", "coefficient": 0.4, "slope": 0.5}])
    expert = np.array([-1.0, -1.0, np.nan])
    found = gradient(row, -0.5, logp_expert_BT=torch.tensor(expert)[None], correct_B=torch.tensor([False]))
    close(found - 0.5 / T, 0.4 * 0.5 * np.array([1.0, 0.5, 0.0]) / T)  # z = logp - expert = .2, -1.3; slope 1 above 0, .5 below; -A log pi gives +.5/T


GROUP = {"groups": torch.zeros(3).long(), "rewards": torch.tensor([1.0, 0.0, 0.0])}
own, before = np.array([-3.0, -5.0, -4.0]), np.array([-3.2, -4.8, -4.1])
refs = np.array([-2.5, -5.0, -4.4])


def of_group(row, **tensors):
    """d loss / d log pi (3,) of three responses of one token."""
    column = torch.tensor(own)[:, None].clone().requires_grad_()
    made = batch(
        GROUP["rewards"].double(), GROUP["groups"], torch.ones(3, 1).double(),
        logp_old_BT=torch.tensor(before)[:, None], logp_ref_BT=torch.tensor(refs)[:, None], **tensors,
    )  # fmt: skip
    loss, _ = objective(row, weigh(row, made), column)
    return torch.autograd.grad(loss, column)[0][:, 0].numpy()


def test_implicit_critic():
    """psi_i = s_i - mean of the others', differentiated through both: dL/ds_j = sum_i w_i (sigmoid(psi_i) - y_i) dpsi_i/ds_j / 3."""
    s, y = own - before, np.array([1.0, 0.0, 0.0])
    psi = s - (s.sum() - s) / 2
    weight = np.array([0.5 / (1 / 3), 0.5 / (2 / 3), 0.5 / (2 / 3)])
    outer = weight * (sigmoid(psi) - y) / 3
    close(of_group(recipe("pacs")), [outer[j] - (outer.sum() - outer[j]) / 2 for j in range(3)])


def test_negative_aware():
    """Right: -w; wrong: w q r / (1 - q) / max((1 - q r) / (1 - q), floor), the floor in the value and not in the gradient."""
    q = 1 / 3
    ratio, weight = np.exp(own - before), 1 - q
    inner = (1 - q * ratio) / (1 - q)
    wrong = weight * q * ratio / (1 - q) / np.maximum(inner, 1.0)
    expected = np.array([-weight, wrong[1], wrong[2]])
    assert inner[1] > 1 > inner[2]  # one on each side of the floor
    close(of_group(recipe("nft", routing=[], aggregation={"name": "constant_sum", "constant": 1.0})), expected)


def test_random_policy_value():
    """2 rho (Q - y) on the token itself; the target, with its look ahead, is a number."""
    mean, mean_old = np.array([-4.0, -5.0, -6.0]), np.array([-4.2, -4.5, -6.1])
    ahead = np.array([*(mean - mean_old)[1:], 0.0])
    row = recipe("rover")
    tensors = {"vocab_mean_old_BT": torch.tensor(mean_old)[None]}
    live = {"vocab_mean_BT": torch.tensor(mean)[None]}
    close(gradient(row, 0.75, live=live, **tensors), 2 * ((new - old) - (0.75 + ahead)) / T)
    assert not gradient(row, 0.75, "vocab_mean_BT", live, **tensors).any()


def test_preferences():
    """Pairs (1, 2) and (1, 3)."""
    gap = own - refs
    for link, slope in (("logistic", lambda x: -0.1 * sigmoid(-0.1 * x)), ("square", lambda x: 2 * (x - 5))):
        first, second = slope(gap[0] - gap[1]), slope(gap[0] - gap[2])
        row = recipe("dpo", objective={"name": "preference", "link": link, "beta": 0.1})
        close(of_group(row), np.array([first + second, -first, -second]) / 2)
    odds = 1 / (1 - np.exp(own))  # d/da of a - log(1 - e^a)
    o = own - np.log(1 - np.exp(own))
    pull = [-0.1 * sigmoid(-(o[0] - o[j])) for j in (1, 2)]
    close(of_group(recipe("orpo")), np.array([-2 + (pull[0] + pull[1]) * odds[0], -pull[0] * odds[1], -pull[1] * odds[2]]) / 2)
    h = [-0.1 * 2.5 * sigmoid(-0.1 * 2.5 * (gap[0] - gap[j])) for j in (1, 2)]
    bare = recipe("trpa", regularisers=[])
    close(of_group(bare, level_B=torch.tensor([1, 2, 2])), np.array([h[0] + h[1], -h[0], -h[1]]) / 2)


def test_contrastive_policy_gradient():
    """-(2 / (beta (k-1) 2)) beta sum_j (Rb_i - Rb_j) for each i."""
    bounded = np.array([1.0, 0.0, 0.0]) - 0.1 * (own - refs)
    close(of_group(recipe("copg")), [-sum(bounded[i] - bounded[j] for j in range(3)) / 2 for i in range(3)])


def test_step_regression():
    """-(A_k / beta - sum of the step's log-ratios) on each of its tokens, over the number of steps."""
    value = torch.tensor([[0.2, 0.6]], dtype=torch.float64)
    advantage = np.array([0.4, 1.0 - 0.6])
    error = advantage / 0.1 - np.array([d[0] + d[1], d[2]])
    found = gradient(recipe("direct_advantage"), step_value_BK=value, step_BT=torch.tensor([[0, 0, 1]]), correct_B=torch.tensor([True]), **REF)
    close(found, -error[[0, 0, 1]] / 2)


@pytest.mark.parametrize("divergence", [0.0, 0.5, 1.0])
def test_self_distillation(divergence):
    """Through the student's probabilities alone: the teacher, and the weight min(pi/pi_old, cap), are numbers."""
    student, teacher = np.array([0.7, 0.2, 0.5]), np.array([0.4, 0.5, 0.45])
    tensors = {"teacher_topk_BTK": torch.tensor(teacher).log()[None, :, None], "topk_BTK": torch.zeros(1, T, 1).long(), "reprompt_B": torch.tensor([True])}
    live = {"student_topk_BTK": torch.tensor(student).log()[None, :, None]}
    row = recipe("sdpo", mismatch=[], objective={"name": "self_distillation", "divergence": divergence, "cap": 1.1})
    s, t = np.stack([student, 1 - student]), np.stack([teacher, 1 - teacher])
    change = np.stack([student, -student])  # d s / d log s_1
    if divergence == 0.0:
        slope = (-t / s * change).sum(0)
    elif divergence == 1.0:
        slope = (change * (np.log(s / t) + 1)).sum(0)
    else:
        slope = 0.5 * (change * np.log(2 * s / (s + t))).sum(0)
    weight = np.minimum(r, 1.1)
    close(gradient(row, 0.0, "student_topk_BTK", live, **tensors)[:, 0], weight * slope / T)
    assert not gradient(row, 0.0, live=live, **tensors).any()


def test_a_part_of_the_reward_has_its_own_clipped_loss():
    parts = torch.tensor([[0.8, -0.6]], dtype=torch.float64)
    weights = torch.tensor([1.5, 0.5], dtype=torch.float64)
    made = {"components_BK": parts, "component_advantage_BK": parts, "component_weight_K": weights}
    row = recipe("recap", aggregation={"name": "token_mean"})
    scale = (parts * weights)[0].numpy() / 2
    expected = sum(np.where((a > 0) & (r > 1.2) | (a < 0) & (r < 0.8), 0.0, -a * r) for a in scale)
    close(gradient(row, 0.0, **made), expected / T)


def test_token_weights_are_numbers():
    """delta's weights come of what the policy was before the update."""
    made = batch(
        torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.ones(2, 1).double(), logp_old_BT=torch.tensor([[-1.0], [-2.0]]).double(),
        advantage_BT=torch.tensor([[0.5], [-0.5]]).double(), hidden_old_BTH=torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).double(),
    )  # fmt: skip
    row = recipe("delta", clip={"name": "none"}, routing=[])
    weighed = weigh(row, made)
    leaf = made.logp_old_BT.clone().requires_grad_()
    (found,) = torch.autograd.grad(objective(row, weighed.having(logp_old_BT=made.logp_old_BT), leaf)[0], leaf)
    close(found[:, 0].numpy(), weighed.weight_BT[:, 0].numpy() * np.array([-0.5, 0.5]) / 2)
