"""What holds for every row: permutation, padding, slicing, masked rows, empty masks; gradients by finite differences."""

import math

import pytest
import torch
from batches import leaves, loss_and_gradients, ragged, reordered, widened, with_masked_rows

from pipelines.rl import RECIPES, advantages, objective, recipe, route, weigh

EXERCISED = {
    # settings under which small random batches reach what the published constants reserve for long ones
    "lp_reg": {"inputs": {"logp_proxy_BT": {"kappa": 0.02}, "low_BT": {"share": 0.3}}},
    "ulorl": {"token_mask": [{"name": "unmastered", "tau": 0.6, "sigma": 0.6}]},
    "geometric_rs": {"mismatch": [{"name": "geometric_window", "low": 0.9, "high": 1.1}]},
}
ROWS = {name: recipe(name, **EXERCISED.get(name, {})) for name in RECIPES}


@pytest.fixture(params=ROWS)
def row(request):
    return ROWS[request.param]


def same(first, second, rows=slice(None)):
    assert second[0] == pytest.approx(first[0], abs=1e-9)
    for name in first[1]:
        torch.testing.assert_close(second[1][name], first[1][name][rows], atol=1e-9, rtol=0)


def test_the_batch_trains_what_the_row_reads(row):
    made, live = ragged(3)
    loss, gradients = loss_and_gradients(row, made, live)
    assert math.isfinite(loss)
    assert any(gradient.abs().sum() > 0 for gradient in gradients.values())
    unread = [name for name, gradient in gradients.items() if gradient.abs().sum() > 0 and name not in row.needs]
    assert not unread


def test_slices_add_up(row):
    made, live = ragged(3)
    whole = loss_and_gradients(row, made, live)
    group_slices = [torch.arange(4), torch.arange(4, 12)]
    same(whole, loss_and_gradients(row, made, live, group_slices))
    if not row.grouped:
        same(whole, loss_and_gradients(row, made, live, [torch.tensor([i]) for i in range(12)]))
        same(whole, loss_and_gradients(row, made, live, [torch.tensor([7, 0, 11, 3, 4]), torch.tensor([1, 2, 5, 6, 8, 9, 10])]))


def test_order_of_rows_does_not_matter(row):
    made, live = ragged(4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    same(loss_and_gradients(row, made, live), loss_and_gradients(row, *reordered(made, live, order)), order)


def test_padding_does_not_matter(row):
    made, live = ragged(5)
    loss, gradients = loss_and_gradients(row, made, live)
    wide_loss, wide = loss_and_gradients(row, *widened(made, live, 3))
    assert wide_loss == pytest.approx(loss, abs=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(wide[name][:, : gradient.shape[1]] if gradient.ndim > 1 else wide[name], gradient, atol=1e-9, rtol=0)


def test_masked_rows_do_not_matter(row):
    made, live = ragged(6)
    loss, gradients = loss_and_gradients(row, made, live)
    more_loss, more = loss_and_gradients(row, *with_masked_rows(made, live, 4))
    assert more_loss == pytest.approx(loss, abs=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(more[name][:12], gradient, atol=1e-9, rtol=0)
        assert not more[name][12:].any()


def test_an_empty_mask_gives_zero_with_zero_gradient(row):
    made, live = ragged(7)
    loss, gradients = loss_and_gradients(row, made.having(mask_BT=torch.zeros_like(made.mask_BT)), live)
    assert loss == 0.0
    assert not any(gradient.any() for gradient in gradients.values())


NOT_CENTRED = (
    "psr", "nsr", "w_reinforce", "topr", "noisy_forward",  # an absolute advantage
    "ppo", "ppo_kl", "rto", "reinforce_pp", "reinforce_pp_baseline", "spae", "stable_reinforce",  # whitening takes a mean off again
    "reinforce", "a_lol", "remax", "rae",  # a baseline of the batch, a critic, the greedy answer, a role
    "reinforce_ada", "reinforce_ada_positive", "rorecomp",  # all that was answered
    "gigpo", "traffic_r1",  # fewer turns to the end are worth more; turns have rewards of their own
    "relift", "int",  # what a guide wrote is learnt whatever it earns
    "on_policy_distillation", "iw_opd",  # the teacher's word, whatever the reward
    "lagrangian",  # costs differ where rewards do not
    "dsdr", "rlcr", "aepo", "sngs", "recap", "laser",  # the shaped reward or another objective varies where the verdict does not
)  # fmt: skip


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if n not in NOT_CENTRED and r.policy_gradient and not r.slots["auxiliary"]])
def test_groups_without_variance_do_not_train(name):
    made, live = ragged(6)
    flat = made.having(**{name: torch.ones_like(made[name]) for name in ("reward_B", "correct_B", "components_BK")})
    bare = recipe(name, regularisers=[], reward=[v for v in RECIPES[name].slots["reward"] if v["name"] != "overlong"], **EXERCISED.get(name, {}))
    assert not loss_and_gradients(bare, flat, live)[1][acting(bare)].any()


def test_gradients_agree_with_finite_differences(row, monkeypatch):
    """Central differences along random directions, in float64, of the loss with every stop-gradient held at its value."""
    made, live = ragged(3)
    made = weigh(row, route(row, made))
    detach = torch.Tensor.detach
    tape: list[torch.Tensor] = []

    def evaluate(values):
        loss, _ = objective(row, made, values["logp_BT"], {name: value for name, value in values.items() if name != "logp_BT"})
        return loss

    def recording(tensor):
        tape.append(detach(tensor).clone())
        return tape[-1]

    here = leaves(live)
    monkeypatch.setattr(torch.Tensor, "detach", recording)
    loss = evaluate(here)
    monkeypatch.undo()
    gradients = dict(zip(here, torch.autograd.grad(loss, list(here.values()), allow_unused=True), strict=True))

    def frozen(values) -> float:
        held = iter(tape)
        monkeypatch.setattr(torch.Tensor, "detach", lambda tensor: next(held))
        try:
            return float(evaluate(values))
        finally:
            monkeypatch.undo()

    generator = torch.Generator().manual_seed(1)
    step, moved = 1e-6, 0
    for name in row.needs & set(live):
        for _ in range(4):
            direction = torch.randn(live[name].shape, generator=generator, dtype=torch.float64)
            up, down = (frozen({**live, name: live[name] + sign * step * direction}) for sign in (1, -1))
            expected = 0.0 if gradients[name] is None else float((gradients[name] * direction).sum())
            assert (up - down) / (2 * step) == pytest.approx(expected, rel=1e-5, abs=1e-7)
            moved += expected != 0.0
    assert moved


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.policy_gradient and n not in ("geometric_rs", "ulorl", "resrl")])
def test_on_policy_the_gradient_raises_what_has_an_advantage(name):
    """At pi = pi_old = mu = ref every policy gradient moves log pi up exactly where A > 0, and down where A < 0."""
    made, live = ragged(9)
    one = live["logp_BT"]
    made = made.having(
        logp_old_BT=one, logp_roll_BT=one, logp_ref_BT=one, logp_prev_BT=one, logp_tempered_BT=one, logp_proxy_BT=one, logp_expert_BT=one,
        logp_allowed_old_BT=one,
    )
    made = route(RECIPES[name], made)
    made = made.having(advantage_BT=advantages(RECIPES[name], made))
    _, gradients = loss_and_gradients(replace_routing(name), made, {**live, "logp_BT": one, "logp_allowed_BT": one})
    trained = (made.mask_BT > 0) & (made.advantage_BT.abs() > 1e-9)
    if name == "srpo":
        trained = trained & (made.correct_B | ~made.reprompt_B)[:, None]
    if name in ("prefix_rft", "think_tuning"):  # of what the guide wrote only some trains
        trained = trained & (made.guided_BT == 0)
    assert trained.any()
    assert torch.equal(gradients[acting(RECIPES[name])].sign()[trained], -_direction(name, made).sign()[trained])


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.policy_gradient])
def test_the_gradient_of_a_token_goes_through_that_token_alone(name):
    """Ratios, weights and masks of other tokens are stop-gradients: with an advantage on last tokens only, no other token moves."""
    made, live = ragged(10)
    last = (made.mask_BT.cumsum(-1) == made.mask_BT.sum(-1, keepdim=True)) & (made.mask_BT > 0)
    bare = recipe(name, regularisers=[], auxiliary=[], routing=[], **EXERCISED.get(name, {}))
    made = made.having(advantage_BT=torch.where(last, 1.0, 0.0).double())
    if name == "recap":  # its parts have an advantage a response: of one alone, only its tokens move
        part_BK = torch.zeros(12, 2, dtype=torch.float64)
        part_BK[5, 1] = 1.0
        made = made.having(component_advantage_BK=part_BK)
        last = (torch.arange(12) == 5)[:, None] & (made.mask_BT > 0)
    _, gradients = loss_and_gradients(bare, made, live)
    assert not gradients[acting(bare)][~last].any()
    assert gradients[acting(bare)][last].any()


def acting(row):
    """The log-probabilities of the policy that acts."""
    return "logp_allowed_BT" if "logp_allowed_BT" in row.needs else "logp_BT"


def replace_routing(name):
    return recipe(name, routing=[], **({"auxiliary": []} if name in ("ppo", "ppo_kl", "rto") else {}))


def _direction(name, made):
    """A, or for several reward parts the mean of theirs."""
    if name != "recap":
        return made.advantage_BT
    parts = weigh(RECIPES["recap"], made.having(advantage_BT=None)).component_advantage_BK
    return (parts * made.component_weight_K).sum(-1, keepdim=True).expand_as(made.mask_BT)
