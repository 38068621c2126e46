"""Rows against hand-computed numbers, fifth part: objectives that other frameworks have. A row's test is `test_<row>`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from batches import NEW, OLD, batch, lengths, loss_and_gradients, pg, ragged
from loops import policy_of, run
from playing import PLAIN_TOOLS, groups, problem

from pipelines.errors import InfrastructureError, UserError
from pipelines.records import Outcome, Trajectory, one_turn
from pipelines.rl import RECIPES, advantages, objective, recipe
from pipelines.rl.account import FULL, UNIFORM, training
from pipelines.rl.collate import tensors
from pipelines.rl.environments import SingleTurn, Tools
from pipelines.rl.history import History
from pipelines.rl.inputs.facts import observed, role_baseline, states, turns
from pipelines.rl.inputs.step import Step
from pipelines.rl.recompose import Recomposition, dynamic_sampling
from pipelines.rl.slots.clip import soft_gamma
from pipelines.rl.slots.reward import log_tamed
from pipelines.rl.slots.weighting import bernoulli_kl, second_moment
from pipelines.store import read_trajectories

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
        at = Recomposition(1, (1,), {}, History(tmp_path), None, of_draw, None, None)  # type: ignore[arg-type]
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


def on_policy(made, live):
    return made.having(logp_old_BT=live["logp_BT"], logp_roll_BT=live["logp_BT"])


def test_gmpo():
    loss, gradient = pg(ROWS["gmpo"], 1.0)
    assert loss == pytest.approx(-0.967216, abs=1e-6)
    close(gradient, [-0.322405] * 3)
    far = OLD + torch.tensor([[0.9, -0.6, 0.0]])
    loss, gradient = pg(ROWS["gmpo"], 1.0, logp=far)
    assert loss == pytest.approx(-0.935507, abs=1e-6)
    close(gradient, [0.0, -0.935507 / 3, -0.935507 / 3])  # the clipped token has no gradient, and keeps its place in the mean
    loss, gradient = pg(ROWS["gmpo"], -1.0, logp=far)
    assert loss == pytest.approx(1.18136, abs=1e-6)
    close(gradient, [1.18136 / 3, 0.0, 1.18136 / 3])
    made, live = ragged(11)
    same(recipe("gspo", clip={"name": "none"}), recipe("gmpo", ratio={"name": "sequence_geometric_clipped", "limit": 10.0}), made, live)


def test_vespo():
    log_ratio = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).log()
    close(soft_gamma(log_ratio, torch.ones(3), -torch.ones(3)), [1.120422, 1.0, 0.199148])
    close(soft_gamma(log_ratio, -torch.ones(3), torch.ones(3)), [0.339785, 1.0, 1.082682])
    close(pg(ROWS["vespo"], 1.0)[1], [-0.363083] * 3)
    close(pg(ROWS["vespo"], -1.0)[1], [0.298708] * 3)
    made, live = ragged(11)
    same(recipe("vespo", clip={"name": "score"}), ROWS["vespo"], on_policy(made, live), live)


def test_m2po():
    d = torch.tensor([[0.1, -0.3, 0.5], [0.2, -0.05, 0.9]], dtype=torch.float64)
    a, roll, mask = torch.tensor([[1.0, 1, 1], [-1, -1, 1]]).double(), torch.full_like(d, -1.0), torch.ones_like(d)
    close(second_moment(roll + d, roll, a, mask), [[1.0, 1, 0], [1, 1, 0]])
    close(second_moment(roll + d, roll, a, mask, limit=0.09), [[1.0, 1, 1], [1, 1, 0]])
    close(second_moment(roll + d, roll, a, mask, limit=0.27), mask)
    close(second_moment(roll + d, roll, a, mask, limit=0.001), [[0.0, 1, 0], [1, 0, 0]])  # what moved against its advantage is no harm
    close(second_moment(roll, roll, a, mask), mask)
    made = batch(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), mask, logp_roll_BT=roll, advantage_BT=a)
    loss, gradients = loss_and_gradients(ROWS["m2po"], made, {"logp_BT": roll + d})
    assert loss == pytest.approx(0.054441, abs=1e-6)
    assert (gradients["logp_BT"] == 0).tolist() == [[False, False, True], [False, False, True]]
    # a slice drops what the whole step does
    sliced, _ = loss_and_gradients(ROWS["m2po"], made, {"logp_BT": roll + d}, [torch.tensor([0]), torch.tensor([1])])
    assert sliced == pytest.approx(0.054441, abs=1e-6)
    released = recipe("m2po", token_mask=[], clip={"name": "ppo", "low": 0.3, "high": 0.5})
    assert float(objective(released, made, roll + d)[0]) == pytest.approx(-0.445559, abs=1e-6)
    near = roll + 0.1 * d  # second moment .00268
    assert float(objective(ROWS["m2po"], made, near)[0]) == pytest.approx(float(-(a * (0.1 * d).exp()).mean()))


def test_m2po_drops_by_the_whole_step():
    """Two rows of a token each: alone, neither is above the limit, and together the larger is."""
    d, mask = torch.tensor([[0.19], [0.21]], dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    made = batch(torch.ones(2), torch.tensor([0, 0]), mask, logp_roll_BT=-mask, advantage_BT=mask)
    row = recipe("m2po", token_mask=[{"name": "second_moment", "limit": 0.0365}])
    whole, gradients = loss_and_gradients(row, made, {"logp_BT": d - mask})
    assert (gradients["logp_BT"][:, 0] == 0).tolist() == [False, True]
    sliced, of_slices = loss_and_gradients(row, made, {"logp_BT": d - mask}, [torch.tensor([1]), torch.tensor([0])])
    assert sliced == pytest.approx(whole, abs=1e-12)
    torch.testing.assert_close(of_slices["logp_BT"], gradients["logp_BT"])


SQUARE = 0.001 * (0.3**2 + 1.3**2) / 3


def test_dppo_tv():
    assert pg(ROWS["dppo_tv"], 1.0)[0] == pytest.approx(-0.873537, abs=1e-6)
    assert pg(ROWS["dppo_tv"], -1.0)[0] == pytest.approx(0.78388, abs=1e-6)
    bare = recipe("dppo_tv", regularisers=[])
    assert pg(bare, -1.0)[1][1] == 0.0
    of_authors = recipe(
        "dppo_tv", token_mask=[{"name": "probability_gap", "low": 0.15, "high": 0.15}], clip={"name": "weight_cap", "high": 20.0}, regularisers=[]
    )
    close(3 * pg(of_authors, 1.0)[1], [-1.349859, -0.272532, -1.0])
    close(3 * pg(of_authors, -1.0)[1], [1.349859, 0.0, 1.0])
    either = recipe("dppo_tv", token_mask=[{"name": "probability_gap", "low": 0.1, "high": 0.1, "signed": False}])
    assert pg(either, 1.0)[0] == pytest.approx(-1 / 3 + SQUARE, abs=1e-6)
    # a rare token may become six times as likely
    rare = {"logp": torch.tensor([[0.006] * 3]).double().log(), "logp_roll_BT": torch.tensor([[0.001] * 3]).double().log()}
    assert pg(bare, 1.0, **rare)[0] == pytest.approx(-6.0)


def test_dppo_kl():
    close(bernoulli_kl(torch.tensor([[-1.1, -1.0, -0.5]]), NEW), [[0.028124, 0.255088, 0.0]])
    assert pg(ROWS["dppo_kl"], 1.0)[0] == pytest.approx(-0.873537, abs=1e-6)
    assert pg(ROWS["dppo_kl"], -1.0)[0] == pytest.approx(0.78388, abs=1e-6)
    narrow = recipe("dppo_kl", token_mask=[{"name": "binary_kl", "limit": 0.02}])
    assert pg(narrow, 1.0)[0] == pytest.approx((-0.272532 - 1) / 3 + SQUARE, abs=1e-6)


def test_kpop():
    close(bernoulli_kl(NEW, torch.tensor([[-1.1, -1.0, -0.5]])), [[0.029155, 0.187296, 0.0]])
    assert pg(ROWS["kpop"], 1.0)[0] == pytest.approx(-0.782693, abs=1e-6)
    assert pg(recipe("kpop", regularisers=[]), -1.0)[1][1] == 0.0


@pytest.mark.parametrize("name", ["dppo_tv", "dppo_kl", "kpop", "m2po"])
def test_on_policy_trust_regions_hold_nothing_back(name):
    made, live = ragged(11)
    made = on_policy(made, live)
    reinforce = recipe(name, clip={"name": "score"}, token_mask=[])
    held, free = (loss_and_gradients(row, made, live)[1]["logp_BT"] for row in (ROWS[name], reinforce))
    torch.testing.assert_close(held, free, atol=1e-12, rtol=0)
    assert held.any()


def test_a_mask_that_follows_the_advantage_has_one():
    for slots in ({"token_mask": [{"name": "binary_kl"}]}, {"ratio": {"name": "sequence_geometric_clipped"}}):
        with pytest.raises(UserError, match="goes by the sign of the advantage"):
            recipe("recap", **slots)


def test_otb():
    pi, squares = torch.tensor([[0.5, 0.8, 0.6], [0.4, 0.7, 1.0]]), torch.tensor([[0.4, 0.66, 0.5], [0.35, 0.58, 1.0]])
    two = {"rewards": torch.tensor([1.0, 0.0]), "groups": torch.zeros(2).long(), "mask": lengths(3, 2)}
    made = batch(**two, logp_old_BT=pi.log(), squares_old_BT=squares)
    close(advantages(ROWS["otb"], made), [[0.578947, 0.613445, 0.0], [-0.421053, -0.386555, 0.0]])
    tail = recipe("otb", credit={"name": "token_optimal", "zero_tail": True})
    close(advantages(tail, made)[0], [0.578947, 0.613445, 1.0])
    # places count tokens that train: what a tool said moves none
    shifted = batch(
        two["rewards"], two["groups"], torch.tensor([[0.0, 1, 0, 1, 1], [1, 1, 0, 0, 0]]),
        logp_old_BT=torch.tensor([[1.0, 0.5, 1.0, 0.8, 0.6], [0.4, 0.7, 1, 1, 1]]).log(), squares_old_BT=torch.tensor([[1.0, 0.4, 1.0, 0.66, 0.5], [0.35, 0.58, 1, 1, 1]]),
    )  # fmt: skip
    close(advantages(ROWS["otb"], shifted), [[0.0, 0.578947, 0.0, 0.613445, 0.0], [-0.421053, -0.386555, 0.0, 0.0, 0.0]])
    for row in (ROWS["otb"], tail):
        alone = batch(torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 2), logp_old_BT=pi[:1, :2].log(), squares_old_BT=squares[:1, :2])
        assert not advantages(row, alone).any()
    # of equal weights and lengths the baseline is the mean of the group
    even = {"mask": torch.ones(8, 3), "logp_old_BT": torch.full((8, 3), -0.7), "squares_old_BT": torch.full((8, 3), 0.6)}
    close(advantages(ROWS["otb"], batch(**even)), advantages(ROWS["dr_grpo"], batch(**even)))


def test_remax():
    rho = torch.tensor([[0.0, 0.2, 0.0]])
    row = recipe("remax", token_reward=[{"name": "kl", "coefficient": 1.0}])
    made = batch(torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 3), logp_old_BT=-rho, logp_ref_BT=torch.zeros(1, 3), greedy_B=torch.tensor([0.5]))
    close(advantages(row, made)[0], [0.7, 0.7, 0.5])
    # of a greedy answer worth the mean of its group it is Dr. GRPO's advantage
    close(of_responses(ROWS["remax"], greedy_B=torch.tensor([0.25] * 4 + [0.75] * 4)), of_responses(ROWS["dr_grpo"]))
    with pytest.raises(UserError, match="center 'greedy' needs a greedy answer to each problem"):
        recipe("remax", explore={"name": "samples"})


def test_a_greedy_answer_is_what_the_others_are_compared_with():
    def script(before: str, number: int) -> str:
        return "\\boxed{" + ("651" if number in right else "1") + "}"

    for number_of_greedy, baseline in ((3, 1.0), (None, 0.0)):
        right = {0, 1, number_of_greedy}
        (made,) = groups(script, [problem()], explore=ROWS["remax"].single["explore"], count=3)
        assert [t.dropped for t in made] == ["", "", "", "spare"]
        assert {t.reward_parts["greedy"] for t in made} == {baseline}

    class Losing(SingleTurn):
        async def run(self, task, path, engine):
            if path == 3:
                raise InfrastructureError("lost")
            return await super().run(task, path, engine)

    (made,) = groups(script, [problem()], Losing(), explore=ROWS["remax"].single["explore"], count=3)
    assert [t.dropped for t in made] == ["infrastructure"] * 3 + ["spare"]  # nothing to compare them with


def test_the_greedy_answer_says_the_likeliest_token_each_time(tmp_path, start):
    _, _, files = run(tmp_path, start, row="remax", steps=1, prompts_per_step=3, micro_batch=16)
    assert len(files) == 1
    made = read_trajectories(tmp_path / "rollouts" / "step-000001.parquet")
    greedy = [t for t in made if t.dropped]
    assert len(made) == 15 and [t.sample_id for t in greedy] == [4] * 3
    policy = policy_of(start)
    for trajectory in greedy:
        ids = [*trajectory.prompt_ids, *trajectory.response_ids]
        likeliest = policy(torch.tensor([ids])).logits[0].argmax(-1)[len(trajectory.prompt_ids) - 1 : -1]
        assert trajectory.response_ids == likeliest.tolist()
        assert set(trajectory.behaviour_logp) == {0.0}
    assert any(set(t.behaviour_logp) != {0.0} for t in training(made))


def scored(group: int, sample: int, reward: float, step: int, **parts: float) -> Trajectory:
    return Trajectory("p", group, sample, step, "t", one_turn([1], [2], [-0.1], [0]), "stop", outcome="wrong", reward=reward, reward_parts=parts)


def baselines(history: History, step: int, made: list[Trajectory], decay: float = 0.95) -> list[float]:
    history.add(step, made)
    ids, score, made_batch = tensors(made, torch.device("cpu"), step, 8)
    return role_baseline(Step(step, None, None, (), [], made, ids, score, made_batch, history), decay=decay).tolist()  # type: ignore[arg-type]


def test_rae(tmp_path):
    rewards, history = [1.0, -1.0, 1.0, 1.0], History(tmp_path)
    made = [scored(group, sample, rewards[2 * group + sample], 1) for group in range(2) for sample in range(2)]
    before = baselines(history, 1, made)
    close(before, [0.0, 0.05, -0.0025, 0.047625])
    row = batch(torch.tensor(rewards), torch.tensor([0, 0, 1, 1]), role_baseline_B=torch.tensor(before))
    close(advantages(ROWS["rae"], row)[:, 0], [1.0, -1.05, 1.0025, 0.952375])
    # the next step goes on from there, and each role has its own; what could not be judged is no reward
    lost = replace(scored(0, 2, 0.0, 2), outcome="infrastructure")
    later = [scored(0, 0, 1.0, 2), scored(0, 1, 1.0, 2, role=1.0), lost, scored(1, 0, 0.0, 2), scored(1, 1, 0.0, 2, role=1.0)]
    close(baselines(history, 2, later)[:2] + baselines(history, 3, later)[:2], [0.095244, 0.0, 0.95 * (0.95 * 0.095244 + 0.05), 0.95 * 0.05])
    # with a decay of 1 there is no baseline: REINFORCE
    assert baselines(History(tmp_path), 1, made, decay=1.0) == [0.0] * 4
    with pytest.raises(UserError, match="slot 'reward' changes rewards that are compared with plain ones"):
        recipe("rae", reward=[{"name": "rescale"}])


def test_the_order_in_which_answers_arrive_changes_no_baseline(tmp_path):
    made = [scored(group, sample, float(sample), 1) for group in range(3) for sample in range(2)]
    assert baselines(History(tmp_path), 1, made[::-1]) == baselines(History(tmp_path), 1, made)[::-1]


def test_echo():
    """Three action tokens at A = .5 and two that a tool said: each has its own mean."""
    mask, seen = torch.tensor([[1.0, 1, 0, 0, 1]]).double(), torch.tensor([[0.0, 0, 1, 1, 0]]).double()
    logp = torch.tensor([[-0.8, -0.8, -1.2, -0.4, -0.8]], dtype=torch.float64)
    made = batch(torch.tensor([1.0]), torch.tensor([0]), mask, logp_old_BT=logp, observed_BT=seen, advantage_BT=0.5 * mask)
    loss, gradients = loss_and_gradients(ROWS["echo"], made, {"logp_BT": logp})
    assert loss == pytest.approx(-0.42)
    close(gradients["logp_BT"], [[-0.5 / 3, -0.5 / 3, -0.05, -0.05, -0.5 / 3]])
    # a row that does not train teaches nothing of its tools either, and without tools nothing is added
    two = batch(
        torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.cat([mask, 0 * mask]), logp_old_BT=logp.repeat(2, 1), observed_BT=seen.repeat(2, 1),
        advantage_BT=0.5 * mask.repeat(2, 1),
    )  # fmt: skip
    assert loss_and_gradients(ROWS["echo"], two, {"logp_BT": logp.repeat(2, 1)})[0] == pytest.approx(-0.42)
    assert loss_and_gradients(ROWS["echo"], made.having(observed_BT=0 * seen), {"logp_BT": logp})[0] == pytest.approx(-0.5)


def test_gigpo():
    """Two episodes of two turns from one state: the first turns are compared, the second ones have no sibling."""
    mask = torch.tensor([[1.0, 1, 0, 1]]).repeat(2, 1)
    made = {
        "rewards": torch.tensor([1.0, 0.0]), "groups": torch.tensor([0, 0]), "mask": mask,
        "turn_BT": torch.tensor([[0, 0, -1, 1]]).repeat(2, 1), "state_BT": torch.tensor([[0, 0, -1, 1], [0, 0, -1, 2]]),
    }  # fmt: skip
    close(advantages(ROWS["gigpo"], batch(**made)), [[0.975, 0.975, 0, 0.5], [-0.975, -0.975, 0, -0.5]])
    # who comes to a state twice counts twice: returns .95, 1 and 0 in one state, whose mean is .65
    again = {**made, "state_BT": torch.tensor([[0, 0, -1, 0], [0, 0, -1, 2]])}
    close(advantages(ROWS["gigpo"], batch(**again)), [[0.8, 0.8, 0, 0.85], [-1.15, -1.15, 0, -0.5]])
    plain = recipe("gigpo", credit={"name": "step_group", "omega": 0.0})
    close(advantages(plain, batch(**made)), advantages(ROWS["dr_grpo"], batch(**made)))
    apart = {**made, "state_BT": torch.tensor([[0, 0, -1, 1], [2, 2, -1, 3]])}
    close(advantages(ROWS["gigpo"], batch(**apart)), advantages(plain, batch(**made)))


def test_states_and_observations_are_read_off_what_the_policy_read():
    """Two answers that call the calculator alike, and one that calls it otherwise: the results are the states of their second turns."""

    def script(before: str, number: int) -> str:
        if "<|tool|>" not in before:
            return f"<tool_call>calculator({'3*217' if number < 2 else '3+217'})</tool_call>"
        return "\\boxed{651}"

    (made,) = groups(script, [problem()], Tools(**PLAIN_TOOLS), count=3)
    ids, score, made_batch = tensors(made, torch.device("cpu"), 1, 64)
    step = Step(1, None, None, (), [], made, ids, score, made_batch, History(Path()))  # type: ignore[arg-type]
    seen, turn, state = observed(step), turns(step), states(step)
    for row, trajectory in enumerate(made):
        first, told, second = trajectory.turns
        places = [len(trajectory.prompt_ids)]
        for segment in (first, told, second):
            places.append(places[-1] + len(segment.ids))
        assert seen[row].nonzero()[:, 0].tolist() == list(range(places[1], places[2]))
        assert turn[row, places[0] : places[3]].tolist() == [0] * len(first.ids) + [-1] * len(told.ids) + [1] * len(second.ids)
        assert not (made_batch.mask_BT[row] * (turn[row] < 0)).any()
    assert len(set(state[:, len(made[0].prompt_ids)].tolist())) == 1
    second_states = [int(state[row][turn[row] == 1][0]) for row in range(3)]
    assert second_states[0] == second_states[1] != second_states[2]


def test_prdp():
    made = batch(
        torch.tensor([1.0, 0.0]).double(), torch.tensor([0, 0]), torch.ones(2, 3).double(), logp_old_BT=torch.cat([OLD, torch.tensor([[-1.2, -0.9, -1.0]])]),
        logp_ref_BT=torch.tensor([[-1.1, -2.1, -0.6], [-1.1, -1.0, -0.9]]).double(),
    )  # fmt: skip
    logp = torch.cat([NEW, -torch.ones(1, 3).double()])

    def loss(beta: float, eps: float = 0.1) -> float:
        return loss_and_gradients(recipe("prdp", objective={"name": "reward_difference", "beta": beta, "eps": eps}), made, {"logp_BT": logp})[0]

    assert loss(1.0) == pytest.approx(0.871111, abs=1e-6)
    assert loss(20.0) == pytest.approx(0.006944, abs=1e-6)
    assert loss(20.0, eps=9.0) == pytest.approx(0.000278, abs=1e-6)
    assert loss_and_gradients(ROWS["prdp"], made, {"logp_BT": logp})[0] == pytest.approx((10 - 1 / 15) ** 2, abs=0.2)
    even = made.having(reward_B=torch.ones(2).double())
    assert loss_and_gradients(ROWS["prdp"], even, {"logp_BT": logp})[0] == 0.0  # no pair


def test_paco_rl():
    parts = torch.tensor([[0.9, 0.0], [0.8, 4], [0.85, 0], [0.95, 8]])
    one = torch.zeros(4).long()
    made = {"rewards": parts.sum(-1), "groups": one, "components_BK": parts}
    tamed = torch.tensor([0.9, 2.409438, 0.85, 3.147225])
    close(log_tamed(parts.sum(-1), parts, torch.ones(4, 1)), tamed)
    close(log_tamed(parts.sum(-1), parts, torch.ones(4, 1), limit=2.0), parts.sum(-1))
    close(log_tamed(parts.sum(-1), parts, torch.ones(4, 1), limit=2.0, weights=[2.0, 0.5]), [1.8, 3.6, 1.7, 5.9])
    close(of_responses(ROWS["paco_rl"], **made), of_responses(ROWS["grpo"], rewards=tamed, groups=one))
    with pytest.raises(UserError, match="a value of -1 or less"):
        of_responses(ROWS["paco_rl"], **(made | {"components_BK": parts - torch.tensor([0.0, 2.0])}))
