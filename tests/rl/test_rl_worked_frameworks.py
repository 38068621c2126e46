"""Rows against hand-computed numbers, fifth part: objectives that other frameworks have. A row's test is `test_<row>`."""

import pytest
import torch
from batches import batch, lengths, loss_and_gradients, ragged

from pipelines.errors import UserError
from pipelines.records import Outcome, Trajectory, one_turn
from pipelines.rl import RECIPES, advantages, recipe
from pipelines.rl.account import FULL, UNIFORM
from pipelines.rl.history import History
from pipelines.rl.recompose import Recomposition, dynamic_sampling

ROWS = RECIPES


def close(got, expected, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(got).double(), torch.as_tensor(expected).double(), atol=atol, rtol=0)


def of_responses(row, **tensors) -> list[float]:
    """Advantage of each response of one or more tokens."""
    return advantages(row, batch(**tensors))[:, 0].tolist()


def same(first, second, made, live):
    (a, grad_a), (b, grad_b) = loss_and_gradients(first, made, live), loss_and_gradients(second, made, live)
    assert b == pytest.approx(a, abs=1e-9)
    torch.testing.assert_close(grad_b["logp_BT"], grad_a["logp_BT"], atol=1e-9, rtol=0)


def test_opo():
    one = {"rewards": torch.tensor([1.0, 0, 1, 0]), "groups": torch.zeros(4).long()}
    close(of_responses(ROWS["opo"], mask=lengths(10, 20, 30, 40), **one), [0.6, -0.4, 0.6, -0.4])
    assert of_responses(ROWS["opo"], rewards=torch.tensor([1.0]), groups=torch.tensor([0])) == [0.0]
    assert of_responses(recipe("opo", center={"name": "length_mean", "singleton": "keep"}), rewards=torch.tensor([1.0]), groups=torch.tensor([0])) == [1.0]
    # of equal lengths it is Dr. GRPO's advantage
    close(of_responses(ROWS["opo"], mask=torch.ones(8, 3)), of_responses(ROWS["dr_grpo"], mask=torch.ones(8, 3)))


def test_gpg():
    rewards, groups = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]), torch.arange(3).repeat_interleave(4)
    close(of_responses(ROWS["gpg"], rewards=rewards, groups=groups), [1.125] + [-0.375] * 3 + [0.375] * 3 + [-1.125] + [0.0] * 4)
    assert of_responses(ROWS["gpg"], rewards=torch.ones(8)) == [0.0] * 8
    # without a group of one outcome it is Dr. GRPO's advantage with REINFORCE's loss
    made, live = ragged(11)
    made = made.having(reward_B=torch.arange(12).remainder(2).double())
    same(recipe("gpg", scale={"name": "none"}), ROWS["gpg"], made, live)
    masked = batch(rewards, groups, torch.cat([torch.ones(8, 1), torch.zeros(4, 1)]))
    close(advantages(ROWS["gpg"], masked)[:8, 0], advantages(ROWS["dr_grpo"], masked)[:8, 0])  # a row that does not train counts in no share


def test_gpg_draws_until_enough_of_the_batch_says_something(tmp_path):
    def draw(*right: int) -> list[Trajectory]:
        """A group of two for each number of right answers."""
        return [answer(group, sample, sample < count) for group, count in enumerate(right) for sample in range(2)]

    def of_draw(number: int) -> list[Trajectory]:
        asked.append(number)
        return [answer(10 * number + r.group_id, r.sample_id, r.outcome == Outcome.CORRECT) for r in further[number - 1]]

    def trained(first, rounds=3):
        asked.clear()
        at = Recomposition(1, (1,), {}, History(tmp_path), None, of_draw)  # type: ignore[arg-type]
        out = dynamic_sampling(first, at, rounds=rounds, share=0.6)
        return sorted({r.group_id for r in out if not r.dropped}), {r.group_id: r.dropped for r in out if r.dropped}

    asked: list[int] = []
    further = [draw(0, 1, 2, 2, 2), draw(1, 1, 0, 0, 0)]
    assert trained(draw(1, 1, 1, 0, 2)) == ([0, 1, 2, 3, 4], {}) and asked == []  # three of five are enough: the others stay
    kept, gone = trained(draw(1, 0, 1, 0, 2))
    assert (kept, asked) == ([0, 1, 2, 3, 11], [1])  # the third comes with the first further draw; those of one outcome have two places
    assert gone == dict.fromkeys([4, 10, 12, 13, 14], UNIFORM)
    kept, gone = trained(draw(0, 0, 0, 0, 2))
    assert (kept, asked) == ([0, 1, 11, 20, 21], [1, 2])
    assert FULL not in gone.values()


def answer(group: int, sample: int, right: bool) -> Trajectory:
    outcome = Outcome.CORRECT if right else Outcome.WRONG
    return Trajectory("p", group, sample, 1, "t", one_turn([1], [2], [-0.1], [0]), "stop", outcome=outcome.value, reward=float(right))


def test_maxrl():
    close(of_responses(ROWS["maxrl"]), [3.0, -1, -1, -1, 1 / 3, 1 / 3, 1 / 3, -1])
    groups = torch.zeros(4).long()
    close(of_responses(ROWS["maxrl"], rewards=torch.tensor([0.5, 0, 1, 0.5]), groups=groups), [0.0, -1, 1, 0])
    assert of_responses(ROWS["maxrl"], rewards=torch.zeros(4), groups=groups) == [0.0] * 4
    kept = recipe("maxrl", center={"name": "group_mean", "singleton": "keep"})
    assert of_responses(kept, rewards=torch.tensor([1.0]), groups=torch.tensor([0])) == [1.0]
    with pytest.raises(UserError, match="there is a reward of -1; keep them at 0 or above"):
        of_responses(recipe("maxrl", reward=[{"name": "rescale", "low": -1.0, "high": 1.0}]))


@pytest.mark.parametrize(("size", "gradient"), [(2, 0.21), (4, 0.4599), (8, 0.642352)])
def test_maxrl_climbs_a_truncated_log_likelihood(size, gradient):
    """Of a policy that is right with p = 0.3, the expected gradient by the logit is (1 - p)(1 - (1 - p)^(G - 1)): over all outcomes of a group."""
    p, total = 0.3, 0.0
    for outcome in range(2**size):
        right = torch.tensor([outcome >> place & 1 for place in range(size)]).double()
        chance = float((right * p + (1 - right) * (1 - p)).prod())
        a = advantages(ROWS["maxrl"], batch(right, torch.zeros(size).long(), torch.ones(size, 1).double()))[:, 0]
        total += chance * float((a * (right - p)).mean())
    assert total == pytest.approx(gradient, abs=1e-6)
