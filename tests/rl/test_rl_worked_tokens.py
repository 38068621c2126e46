"""Rows against hand-computed numbers, third part: token masks, token weights, regularisers. A row's test is `test_<row>`."""

import math

import pytest
import torch
from batches import batch, lengths

from pipelines.models.scoring import chosen
from pipelines.rl import RECIPES, advantages, aggregates, objective, recipe, weigh
from pipelines.rl.inputs.scores import nucleus_entropy, proxy
from pipelines.rl.slots import clip, regularisers, reward, weighting
from pipelines.rl.slots.credit import projection_distance, projection_residual
from pipelines.rl.statistics import diversity_weights, least_likely


def close(got, expected, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(got).double(), torch.as_tensor(expected).double(), atol=atol, rtol=0)


def of_probabilities(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def test_ulorl():
    p = torch.tensor([[0.995, 0.5, 0.999]])
    made = batch(torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 3), logp_old_BT=p.log(), advantage_BT=torch.full((1, 3), 0.75))
    row = recipe("ulorl", routing=[])
    for entropy, loss in ((0.1, -0.25), (0.3, -0.75)):
        got, _ = objective(row, made, p.log(), {"entropy_BT": torch.full((1, 3), entropy)})
        assert float(got) == pytest.approx(loss, abs=1e-6)
    wrong = batch(torch.tensor([0.0]), torch.tensor([0]), torch.ones(1, 3), logp_old_BT=p.log(), advantage_BT=torch.full((1, 3), -0.75))
    assert float(objective(row, wrong, p.log(), {"entropy_BT": torch.full((1, 3), 0.1)})[0]) == pytest.approx(0.75)
    # with `denominator: kept` the two tokens taken out leave it too: all of what is left is one token of loss -.75
    kept = recipe("ulorl", routing=[], denominator={"name": "kept"})
    with_old = batch(
        torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 3), logp_old_BT=p.log(), advantage_BT=torch.full((1, 3), 0.75),
        entropy_old_BT=torch.full((1, 3), 0.1),
    )  # fmt: skip
    assert float(objective(kept, with_old, p.log(), {"entropy_BT": torch.full((1, 3), 0.1)})[0]) == pytest.approx(-0.75)
    assert "entropy_old_BT" in kept.before


def test_resrl():
    basis = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [2, 0, 0], [-2, 0, 0]])
    distance = projection_distance(basis, torch.tensor([[3.0, 1, 0], [0, 2, 0], [1, 0, 0]]), rank=1)
    close(distance, [1 / 3, 4 / 3, 0.0])
    # The whole function on features that layer normalisation leaves alone up to scale: rows of mean 0 and equal norm
    a, b, c = torch.tensor([1.0, -1, 0, 0]), torch.tensor([0.0, 0, 1, -1]), torch.tensor([1.0, 1, -1, -1]) / 2**0.5
    hidden = torch.stack([torch.stack([a, -a, a, -a]), torch.stack([b, a, c, c])]) * 2**0.5
    weight = projection_residual(torch.ones(2), hidden, torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.ones(2, 4), rank=1)
    unit = torch.nn.functional.layer_norm(hidden, (4,))[1]
    left = ((unit - (unit @ (a / a.norm()))[:, None] * a / a.norm()) ** 2).mean(-1)
    bottom, top = torch.quantile(left, torch.tensor([0.2, 0.8]))
    close(weight[0], [0.1] * 4)
    close(weight[1], 0.1 + 0.9 * ((left - bottom) / (top - bottom)).clamp(0, 1), atol=1e-4)
    assert float(weight[1, 1]) == pytest.approx(0.1, abs=1e-4)  # a wrong token that right responses use too
    # groups of one sign, or with fewer than four right tokens: wrong tokens keep weight 1, right responses still count a tenth
    for rewards, mask in (([0.0, 0.0], torch.ones(2, 4)), ([1.0, 0.0], lengths(3, 4))):
        plain = projection_residual(torch.ones(2), hidden, torch.tensor(rewards), torch.tensor([0, 0]), mask, rank=1)
        close(plain, mask * torch.where(torch.tensor(rewards) > 0, 0.1, 1.0)[:, None])
    full = projection_residual(torch.ones(2), hidden, torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.ones(2, 4), positive=1.0, least=1.0)
    close(full, torch.ones(2, 4))
    row = recipe("resrl", credit={"name": "projection_residual", "rank": 1})
    made = batch(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.ones(2, 4), hidden_old_BTH=hidden)
    made = made.having(advantage_BT=advantages(row, made))
    close(made.advantage_BT, 0.7071058 * torch.stack([weight[0], -weight[1]]))
    assert float(objective(row, made, made.logp_old_BT)[0]) == pytest.approx(-0.7071058 * float(weight[0].sum() - weight[1].sum()) / 8, abs=1e-6)


def test_delta():
    # hidden is phi where the sampled token's probability is 0
    hidden = torch.tensor([[[1.0, 0], [0, 1]], [[-1, 0], [0, 1]]])
    settings = {"temperature": 1.0, "refinements": 0}
    tensors = (torch.full((2, 2), -1e9), torch.tensor([[1.0, 1], [-1, -1]]), torch.ones(2, 2))
    raw = torch.sigmoid(torch.tensor([2.0, 0.0])) * 0.4 + 0.8
    close(raw, [1.152319, 1.0])
    close(weighting.discriminative(hidden, *tensors, **settings)[0], [1.07077, 0.92923])
    close(weighting.discriminative(hidden, *tensors)[0].mean(), 1.0)
    one_sided = weighting.discriminative(hidden, tensors[0], torch.ones(2, 2), tensors[2])
    close(one_sided, torch.ones(2, 2))
    row = recipe("delta", token_weight=[{"name": "discriminative", **settings}])
    made = batch(
        torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), tensors[2], logp_old_BT=tensors[0], hidden_old_BTH=hidden, advantage_BT=tensors[1] * torch.tensor([[1.0], [0.5]])
    )  # fmt: skip
    leaf = tensors[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(row, made, leaf)[0], leaf)
    close(gradient, torch.tensor([[-1.07077, -0.92923], [0.5 * 1.07077, 0.5 * 0.92923]]) / 4)
    scored = advantages(row, batch(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), lengths(2, 10), response_limit=torch.tensor(10.0)))
    close(scored[:, 0], [0.707106, -0.707106])  # rewards 1 and -1 - 1: the overlong one is cut by 1 more, which the deviation takes out


def test_siren():
    p = of_probabilities([0.5, 0.3, 0.15, 0.05])
    close(nucleus_entropy(p, {}, p=0.85), [0.661563])
    close(nucleus_entropy(p, {}, p=0.85, rule="inclusive"), [0.993268])
    close(nucleus_entropy(p, {}, p=0.4), [0.0])  # the likeliest alone
    close(nucleus_entropy(p, {}, p=0.4, rule="strict"), [0.0])
    h = torch.tensor([[0.1, 0.2, 0.3, 0.4, 1.0]], requires_grad=True)
    mask = torch.ones(1, 5)
    loss = regularisers.entropy_anchor(regularisers.peak_entropy(h, mask), torch.tensor(0.8), coefficient=0.005)
    assert float(loss.detach()) == pytest.approx(0.0002)
    close(torch.autograd.grad(loss, h)[0], [[0, 0, 0, 0, 0.005 * 2 * 0.2]])
    assert float(regularisers.entropy_anchor(regularisers.peak_entropy(h, mask)).detach()) == 0.0  # the first step is its own anchor
    flat = torch.full((1, 5), 0.3)
    assert float(regularisers.entropy_anchor(regularisers.peak_entropy(flat, mask), torch.tensor(0.8))) == 0.0  # nothing lies above its own quantile
    made = batch(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.ones(2, 5), response_limit=torch.tensor(10.0), entropy_anchor=torch.tensor(0.8))
    made = made.having(advantage_BT=advantages(RECIPES["siren"], made))
    up = torch.tensor([[math.log(1.5)] * 5, [0.0] * 5])  # ratio 1.5, clipped at 1.28: mean over two of sum over five of -A r, divided by 10
    loss, _ = objective(RECIPES["siren"], made, up, {"nucleus_entropy_BT": h.detach().expand(2, 5)})
    assert float(loss) == pytest.approx((-0.5 * 1.28 * 5 + 0.5 * 5) / 2 / 10 + 0.0002, abs=1e-6)


def test_lp_reg():
    p = of_probabilities([0.6, 0.3, 0.09, 0.01])
    proxies = [proxy(p, {"target": torch.tensor([t])}).exp() for t in range(4)]
    close(torch.cat(proxies), [0.606061, 0.30303, 0.090909, 0.0])
    at = {"target": torch.tensor([2])}
    tensors = (torch.zeros(1, 1), torch.tensor([[-0.5]]), torch.tensor([[math.log(0.05)]]), proxy(p, at)[None].float(), torch.ones(1, 1))
    k3 = 0.0909091 / 0.05 - math.log(0.0909091 / 0.05) - 1
    close(clip.ppo_low_probability(*tensors), [[0.5 + k3]])
    assert k3 == pytest.approx(0.220345, abs=1e-5)
    ratio = torch.tensor([[math.log(0.05 / 0.09)]])  # the worked number: the policy fell from .09 to .05
    close(clip.ppo_low_probability(ratio, *tensors[1:]), [[0.498123]])
    noise = proxy(p, {"target": torch.tensor([3])})[None].float()
    close(clip.ppo_low_probability(tensors[0], tensors[1], torch.tensor([[-9.0]]), noise, tensors[4]), [[0.5]])  # dropped by the proxy: plain PPO
    logp = -torch.arange(1.0, 301.0)[None]
    low = least_likely(logp, -torch.ones(1, 300), torch.ones(1, 300))
    assert low.nonzero()[:, 1].tolist() == [297, 298, 299]
    assert not least_likely(logp[:, :199], -torch.ones(1, 199), torch.ones(1, 199)).any()  # fewer than 200 negative tokens
    assert not least_likely(logp, torch.ones(1, 300), torch.ones(1, 300)).any()
    made = batch(torch.tensor([0.0]), torch.tensor([0]), torch.ones(1, 300), logp_old_BT=logp, advantage_BT=-torch.ones(1, 300), logp_proxy_BT=logp + 0.4)
    held = math.exp(0.4) - 0.4 - 1  # of three tokens in three hundred; the others' loss is -A r = 1
    assert float(objective(RECIPES["lp_reg"], made, logp)[0]) == pytest.approx(1 + 3 * held / 300, abs=1e-6)


def test_rapo():
    close(regularisers.kl_forward(torch.tensor([0.0, 0.0]), torch.tensor([0.2, -0.2]), coefficient=1.0), [0.022878, 0.017523])
    one = torch.ones(1, 2)
    made = batch(torch.tensor([1.0]), torch.tensor([0]), one, advantage_BT=0 * one, logp_tempered_BT=torch.tensor([[0.2, -0.2]]))
    loss, _ = objective(RECIPES["rapo"], made, torch.zeros(1, 2), {"entropy_BT": torch.tensor([[0.5, 1.5]])})
    assert float(loss) == pytest.approx(0.01 * (0.022878 + 0.017523) / 2 - 0.001 * 1.0, abs=1e-8)  # the tempered reference is tested on a model


def test_dsdr():
    weight = diversity_weights(torch.tensor([0.2, 0.6, 0.9]), torch.tensor([True, True, False]), torch.tensor([0, 0, 0]), torch.ones(3, 1))
    close(weight, [0.401312, 0.598688, 0.0])
    alone = diversity_weights(torch.tensor([0.2, 0.6]), torch.tensor([True, False]), torch.tensor([0, 0]), torch.ones(2, 1))
    close(alone, [1.0, 0.0])
    none = diversity_weights(torch.tensor([0.2, 0.6]), torch.tensor([False, False]), torch.tensor([0, 0]), torch.ones(2, 1))
    close(none, [0.0, 0.0])
    close(reward.diversity(torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.6]), torch.tensor([True, False]), coefficient=0.1, limit=0.5), [1.05, 0.0])
    made = batch(
        torch.tensor([1.0, 1.0]), torch.tensor([0, 0]), lengths(2, 4), correct_B=torch.ones(2).bool(), diversity_B=torch.tensor([0.2, 0.6]),
        advantage_BT=torch.zeros(2, 4),
    )  # fmt: skip
    entropy = torch.tensor([[1.0] * 4, [2.0] * 4])
    loss, _ = objective(RECIPES["dsdr"], made, torch.zeros(2, 4), {"entropy_BT": entropy})
    assert float(loss) == pytest.approx(-0.001 * (0.401312 + 2 * 0.598688), abs=1e-8)


def test_entropy_terms_of_slices_add_up_with_their_gradients():
    made = batch(
        torch.zeros(4),
        torch.arange(4),
        lengths(2, 4, 3, 1).double(),
        advantage_BT=torch.zeros(4, 4, dtype=torch.float64),
        entropy_anchor=torch.tensor(0.1),
    )
    row = recipe("ter", regularisers=[{"name": "entropy_target", "target": 0.2, "coefficient": 1.0}, {"name": "entropy_anchor", "coefficient": 1.0}])
    made = weigh(row, made)
    h = torch.rand(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    live = {"entropy_BT": h, "nucleus_entropy_BT": h}

    def run(batch_, slices):
        leaf = h.clone().requires_grad_()
        losses = [objective(row, batch_.rows(rows), torch.zeros_like(h)[rows], dict.fromkeys(live, leaf[rows]))[0] for rows in slices]
        return float(sum(losses).detach()), torch.autograd.grad(sum(losses), leaf)[0]

    whole, gradient = run(made, [torch.arange(4)])
    slices = [torch.tensor([0, 3]), torch.tensor([1]), torch.tensor([2])]
    totals = [aggregates(row, made.rows(rows), {name: value[rows] for name, value in live.items()}) for rows in slices]
    told = made.having(**{name: torch.stack([t[name] for t in totals]).sum(0) for name in totals[0]})
    split, split_gradient = run(told, slices)
    assert split == pytest.approx(whole, abs=1e-12)
    close(split_gradient, gradient, atol=1e-12)


def test_scores_of_a_vocabulary_read_the_token_that_stands_there():
    p = of_probabilities([0.6, 0.3, 0.1], [0.2, 0.2, 0.6])
    close(chosen(p, {"target": torch.tensor([1, 2])}), [math.log(0.3), math.log(0.6)])


def test_advantages_carry_no_gradient():
    reward_B = torch.tensor([1.0, 0.0], requires_grad=True)
    assert not advantages(RECIPES["grpo"], batch(reward_B, torch.tensor([0, 0]))).requires_grad
