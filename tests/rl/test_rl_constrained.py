"""Rows that hold back what a policy may become: costs with a multiplier, masks of the weights; and rows whose terms come from another model's word."""

import pytest
import torch
from batches import batch, leaves, loss_and_gradients
from loops import policy_of, run
from test_rl_inputs import at, rollout, step_of
from test_rl_more_objectives import DOUBLE, close, double, killed_and_resumed

from pipelines import prompting
from pipelines.config.common import OptimiserSettings, UpdateMaskSettings
from pipelines.config.training import LoraSettings
from pipelines.errors import UserError
from pipelines.models.adapters import add_adapters
from pipelines.models.optimisation import hidden_matrices, make_optimiser
from pipelines.models.spectra import decompose
from pipelines.models.update_masks import mask_of
from pipelines.records import Outcome, Problem, Verdict
from pipelines.rl import RECIPES, advantages, objective, recipe
from pipelines.rl.contrast import embedding
from pipelines.rl.inputs import facts
from pipelines.rl.journal import notices
from pipelines.rl.multiplier import Multiplier
from pipelines.rl.outcomes import class_of
from pipelines.rl.rewards.parts import outcome
from pipelines.rl.rewards.scoring import Scoring
from pipelines.rl.slots.credit import importance_shares
from pipelines.verifiers import VerifierPool, verify


def multiplier(form: str, rate: float = 0.5, **settings) -> Multiplier:
    return Multiplier(**{"form": form, "start": 1.0, "rate": rate, "limit": 0.1, "cap": 5.0, "window": 1, "gains": (1.0, 0.5, 0.2), **settings})


def moved(law: Multiplier, costs, value=1.0) -> list[float]:
    return [value := law.after(value, [cost]) for cost in costs]


def test_lagrangian():
    costs = (0.3, 0.2, 0.05, 0.0)
    assert moved(multiplier("plain"), costs) == pytest.approx([1.1, 1.15, 1.125, 1.075])
    assert moved(multiplier("log"), costs) == pytest.approx([1.105171, 1.16796, 1.13435, 1.071803], abs=1e-6)
    assert moved(multiplier("pid"), costs[:3]) == pytest.approx([0.36, 0.25, 0.075])
    assert moved(multiplier("plain", cap=1.12), costs[:2]) == [1.1, 1.12] and moved(multiplier("log", rate=100.0), (9.0,)) == [5.0]
    assert moved(multiplier("plain", rate=9.0), (0.0,), 0.5) == [0.0]
    # the mean of the last three episodes, in whatever batches they come
    law = multiplier("plain", window=3)
    assert law.after(1.0, [0.9, 0.3]) == pytest.approx(1.25) and law.after(1.0, [0.2, 0.1]) == pytest.approx(1.05)
    for settings, words in (({"start": 0.0}, "form log cannot start at 0"), ({"cap": 0.5}, "cap 0.5 must be at least start"), ({"window": 0}, "window 0")):
        with pytest.raises(UserError, match=words):
            multiplier("log", **settings)
    row = recipe("lagrangian", token_reward=[])
    made = batch(double(1, 1, 0, 0), torch.zeros(4).long(), torch.ones(4, 1, dtype=DOUBLE), cost_B=double(1, 0, 0, 1), multiplier=torch.tensor(0.5))
    close(advantages(row, made)[:, 0], [0.166667, 0.5, -0.166667, -0.5])
    close(advantages(row, made.having(multiplier=torch.tensor(0.0)))[:, 0], advantages(recipe("grpo", scale={"name": "none"}), made)[:, 0])
    # the KL that reward and cost both have, from each token on
    two = batch(
        double(1, 0), torch.zeros(2).long(), torch.ones(2, 2, dtype=DOUBLE), cost_B=double(0.6, 0.2), multiplier=torch.tensor(1.0),
        logp_old_BT=double([-1, -2], [0, 0]), logp_ref_BT=double([-3, -1], [0, 0]),
    )  # fmt: skip
    close(advantages(recipe("lagrangian"), two)[0], [(0.5 - 0.2) / 2 - 0.01 * (2 - 1), (0.5 - 0.2) / 2 - 0.01 * -1])


LIMIT = 0.6
COSTS = {"inputs": {"cost_B": {"part": "length", "lack": True}, "multiplier": {"form": "pid", "start": 0.5, "limit": LIMIT, "window": 24}}}


def test_a_multiplier_goes_on_where_it_was(tmp_path, start):
    """Its window, what it adds up and its last cost are state; the journal and a notice tell of it."""
    _, rows, rollouts = killed_and_resumed(tmp_path, start, "lagrangian", 3, overrides=COSTS, checkpoint_every=1, steps=5)
    costs = [1 - row["reward_length"] for row in rows]
    assert rows[0]["cost"] == pytest.approx(costs[0]) and rows[0]["multiplier"] == 0.5
    law = multiplier("pid", limit=LIMIT)
    assert [row["multiplier"] for row in rows[1:]] == pytest.approx(moved(law, [row["cost"] for row in rows[:4]]))
    assert len({row["multiplier"] for row in rows}) == 5 and len(rollouts) == 5
    capped = [{**row, "multiplier_capped": 1.0} for row in rows]
    assert any("the multiplier of the cost stands at its cap" in text for text in notices(capped))
    with pytest.raises(UserError, match="names part 'kindness' of the reward, and an answer has correct, format"):
        run(tmp_path / "unknown", start, row="lagrangian", overrides={"inputs": {"cost_B": {"part": "kindness"}}})


W0 = torch.tensor([[3, 0.1, -0.2], [0.5, -1, 0.05], [2, 0.3, 0.9]])


def entries(kind: str, weight=W0, share: float = 0.4, rank: int = 1) -> set[tuple[int, int]]:
    made = mask_of(weight, UpdateMaskSettings(kind=kind, share=share, rank=rank), "w")
    return {(row, column) for row, column in made.nonzero().tolist()}


def test_masks_of_the_weights_by_hand():
    close(decompose(W0, 1, 128).values, [3.658426, 1.071217, 0.819093])
    assert entries("principal") == {(0, 0), (0, 2), (1, 0), (2, 0)} and entries("low") == {(0, 1), (0, 2), (1, 2), (2, 1)}
    safe = {(row, column) for row in range(3) for column in (1, 2)}
    assert entries("safe") == safe and len(entries("random")) == 6 and entries("random") != safe
    # the rows of a wide matrix are no other than the columns of a tall one; of equal weights the first in order are the smallest
    wide = torch.cat([W0, W0[:1]]).T.contiguous()
    assert entries("principal", wide) == {(column, row) for row, column in entries("principal", wide.T.contiguous())}
    assert entries("low", torch.ones(2, 3), 0.5) == {(0, 0), (0, 1), (0, 2)}


@pytest.mark.parametrize("name", ["adamw", "muon", "classp"])
def test_an_update_moves_what_its_mask_lets(tmp_path, start, name):
    """Bit by bit, with weight decay, through a kill; vectors and embeddings move as usual."""
    mask = UpdateMaskSettings(kind="safe", share=0.5, rank=4)
    how = OptimiserSettings(name=name, lr=1e-3, muon_lr=1e-3, weight_decay=0.1, schedule="constant", warmup=0.0, mask=mask)
    weights, *_ = killed_and_resumed(tmp_path, start, "grpo", 2, optimiser=how, steps=3, checkpoint_every=1)
    model = policy_of(start)
    matrices = hidden_matrices(model)
    assert len(matrices) == 14
    for matrix, before in start.items():
        moved = weights[matrix] != before
        if matrix in matrices:
            free = mask_of(before, mask, matrix)
            assert not moved[~free].any() and 0.5 < free.float().mean() < 0.95
            assert moved[free].float().mean() > (0.3 if name == "classp" else 0.9)
        else:
            assert moved.any()
    with pytest.raises(UserError, match="adapters train here"):
        add_adapters(model, LoraSettings(rank=2), 1)
        make_optimiser(model, how)


CHANCES = double([0.1, 0.2, 0.3, 0.4], [0.05, 0.1, 0.7, 0.15])


def test_coderl():
    row = RECIPES["coderl"]
    logits, one = CHANCES.log()[None], torch.ones(1, 2, dtype=DOUBLE)
    known = {"outcome_logits_old_BTK": logits, "outcome_B": torch.tensor([2]), "guided_BT": 0 * one, "greedy_B": double(-0.6)}
    made = batch(double(-0.3), torch.tensor([0]), one, **known)
    close(advantages(row, made), [[0.09, 0.21]])
    logp = double([-0.5, -1.2])
    here = leaves({"logp_BT": logp, "outcome_logits_BTK": logits})
    loss, _ = objective(recipe("coderl", auxiliary=[]), made.having(advantage_BT=double([0.09, 0.21])), here["logp_BT"])
    close(loss.detach(), 0.1485)
    # beside an answer its worked solution, which is right: it learns by cross-entropy, and the critic of both
    mask = torch.ones(2, 2, dtype=DOUBLE)
    both = batch(
        double(-0.3, 1), torch.tensor([0, 0]), mask, outcome_logits_old_BTK=torch.cat([logits, logits]), outcome_B=torch.tensor([2, 3]),
        guided_BT=double([0, 0], [1, 1]), greedy_B=double(-0.6, -0.6),
    )  # fmt: skip
    weights = advantages(row, both)
    close(weights, [[0.09, 0.21], [0, 0]])
    here = leaves({"logp_BT": double([-0.5, -1.2], [-0.4, -0.8]), "outcome_logits_BTK": torch.cat([logits, logits])})
    told = torch.tensor(2.0, dtype=DOUBLE)
    loss, _ = objective(row, both.having(advantage_BT=weights, guided_tokens=told), here["logp_BT"], {"outcome_logits_BTK": here["outcome_logits_BTK"]})
    critic = -CHANCES.log()[:, 2].mean() / 2 - CHANCES.log()[:, 3].mean() / 2
    close(loss.detach(), 0.1485 / 2 + 0.6 + critic)
    (gradient,) = torch.autograd.grad(loss, here["outcome_logits_BTK"])
    close(gradient[0, 0], (CHANCES[0] - double(0, 0, 1, 0)) / 4)
    with pytest.raises(UserError, match="its critic says the classes of outcomes, and value_BT is of one that says values"):
        recipe("coderl", auxiliary=[{"name": "outcome_ce"}, {"name": "value"}], inputs={"value_old_BT": {}})


PROGRAM = Problem("p", "code", "Add.", "", "program", "code", '{"asserts": ["assert add(1, 2) == 3"], "time_limit": 1}')
PROGRAMS = {
    "no program": 0, "def add(a, b) return a": 0, "def add(a, b):\nreturn a + b": 0, "def add(a, b): return c": 1, "def add(a, b):\n    while True: pass": 1,
    "def add(a, b): return a": 2, "def add(a, b): return a + b": 3,
}  # fmt: skip


def test_a_verdict_is_of_one_of_four_classes():
    """As the real verifier says it."""
    answers = [text if text == "no program" else f"```python\n{text}\n```" for text in PROGRAMS]
    verdicts = [verify(PROGRAM, text) for text in answers]
    assert [class_of(each.outcome, each.detail) for each in verdicts] == list(PROGRAMS.values())
    verdicts.append(Verdict(Outcome.INFRASTRUCTURE, 0.0))
    with VerifierPool() as pool:
        worth = outcome([], Scoring(PROGRAM, answers, verdicts, pool, 1, {}))["outcome"]
    assert worth == [-1.0, -1.0, -1.0, -0.6, -0.6, -0.3, 1.0, None]


def test_its_critic_learns_and_a_killed_run_goes_on(tmp_path, start):
    weights, rows, _ = killed_and_resumed(tmp_path, start, "coderl", 2, steps=4, checkpoint_every=1)
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows) and rows[0]["guided"] == 4
    assert {row["reward_outcome"] for row in rows} and not any("value_head" in name for name in weights)
    state = torch.load(tmp_path / "alone" / "checkpoints" / "step-00000004.pt")["model"]
    assert state["value_head.weight"].shape == (4, 32) and state["value_head.weight"].abs().sum() > 0


def test_revibranch():
    importance = double([0.5, 2, 1.5], [0.5, 2, torch.nan], [0, 0, torch.nan])
    close(importance_shares(importance, "share"), [[0.125, 0.5, 0.375], [0.2, 0.8, 0], [0.5, 0.5, 0]])
    close(importance_shares(importance[:1], "softmax"), [[0.121952, 0.546549, 0.331499]])
    # changes of the chance by 1/8, 1/2 and 3/8; a wrong end that loses what was gained; the last step has the tokens after it
    mask, steps = torch.ones(2, 4, dtype=DOUBLE), torch.tensor([[0, 1, 1, 2], [0, 0, 1, 2]])
    values = double([0, 0.125, 0.625], [0.2, 0.6, torch.nan])
    made = batch(double(1, 0), torch.zeros(2).long(), mask, step_value_BK=values, step_BT=steps)
    close(advantages(recipe("revibranch", center={"name": "none"}), made), [[1, 0.875, 0.875, 0.375], [0, 0, 0, 0]])
    close(advantages(RECIPES["revibranch"], made), [[0.5, 0.4375, 0.4375, 0.1875], [-0.5, -0.5, -0.3, -0.3]])


def test_carft():
    plain = {"reward": [], "token_reward": [], "credit": {"name": "broadcast"}, "auxiliary": [{"name": "contrast", "coefficient": 1.0, "tau": 1.0}]}
    row = recipe("carft", **plain)

    def loss(vectors, slices=None, row=row, right=(1, 0, 1, 0), values=0.0, common=0.0, mask=None):
        """Of two problems, each with an answer and after it its solution; whole, or added up over slices, with the gradient to the vectors."""
        mask = torch.ones(4, 1, dtype=DOUBLE) if mask is None else mask
        made = batch(
            double(*right), torch.tensor([0, 0, 1, 1]), mask, correct_B=torch.tensor(right) > 0, advantage_BT=0 * mask, coefficient_B=mask[:, 0],
            guided_BT=double([0], [1], [0], [1]) * mask, common_BT=common * torch.ones_like(mask),
        )  # fmt: skip
        live = {"projected_BTK": vectors, "value_BT": values * torch.ones_like(mask)}
        return loss_and_gradients(row, made, {"logp_BT": -torch.ones_like(mask), **live}, slices)

    one, two = [[1.0, 0.0]], [[0.0, 1.0]]
    close(loss(double(one, one, two, two))[0], 0.313262)
    close(loss(double(one, two, two, one))[0], 1.313262)
    # one solution alone is no choice; slices of single rows have the gradient of the whole, which turns both ends towards each other
    mixed = double([[0.6, 0.8]], [[1.0, 0.2]], [[0.3, -0.7]], [[-0.2, 0.4]])
    whole, sliced = loss(mixed), loss(mixed, [torch.tensor([i]) for i in (3, 0, 2, 1)])
    close(sliced[0], whole[0])
    close(sliced[1]["projected_BTK"], whole[1]["projected_BTK"], 1e-9)
    assert all(whole[1]["projected_BTK"][place].abs().sum() > 0.01 for place in range(4))
    nearer = loss(mixed - 0.1 * whole[1]["projected_BTK"])
    assert nearer[0] < whole[0] - 0.01
    # a wrong answer is embedded by what it has in common with the solution: with nothing it is left out
    close(loss(double(one, one, two, two), right=(1, 0, 0, 0))[0], 0.313262)
    close(loss(double(one, two, two, one), right=(0, 0, 0, 0), common=1.0)[0], 1.313262)
    assert loss(double(one, one, two, two), right=(0, 0, 0, 0))[0] == 0
    # the value head's softmax weighs the tokens: values 0 and log 3 of (1, 0) and (0, 1) are (.25, .75), of length 1 (.316228, .948683)
    tokens = torch.eye(2, dtype=DOUBLE)[None].expand(2, 2, 2)
    seen = embedding(tokens, double([0, 1.0986122887], [0, 0]), torch.ones(2, 2, dtype=DOUBLE), torch.zeros(2, 2), torch.tensor([True, False]), double([0, 0], [1, 0]))
    close(seen, [[0.316228, 0.948683], [1, 0]])
    # the row: the contrast at its tau and coefficient; an answer alone moves by its advantage, a solution by none
    close(loss(double(one, one, two, two), row=recipe("carft", **plain | {"auxiliary": [{"name": "contrast"}]}))[0], 0.1 * 0.006715)
    ones = torch.ones(2, 1, dtype=DOUBLE)
    made = batch(
        double(1, 1), torch.tensor([0, 0]), ones, logp_old_BT=double([-1], [-2]), logp_ref_BT=double([-3], [-2]), value_old_BT=0 * ones, guided_BT=double([0], [1]),
    )  # fmt: skip
    close(advantages(recipe("carft", token_modify=[{"name": "own_tokens"}]), made), [[1 - 0.05 * 2], [0]])
    close(advantages(RECIPES["carft"], made), [[-0.707107], [0]])


def test_what_an_answer_has_in_common_with_the_solution():
    step = step_of("ppo", [rollout(0, "<think> 3 + 4 = 7, 7 + 2 = 9 </think>\\boxed{9}", False, 0)])
    worked = prompting.response_ids(step.actor.tokenizer, step.problems[0])
    said, marked = step.rollouts[0].response_ids, at(step, facts.common(step), 0).bool().tolist()
    kept = [token for token, keep in zip(said, marked, strict=True) if keep]
    rest = iter(worked)
    assert 4 < len(kept) < len(said) and all(token in rest for token in kept)


def test_a_contrast_trains_its_projection(tmp_path, start):
    weights, rows, _ = killed_and_resumed(tmp_path, start, "carft", 2, steps=4, checkpoint_every=1)
    assert all(row["guided"] == 4 for row in rows) and not any("value_head" in name for name in weights)
    first, last = (torch.load(tmp_path / "alone" / "checkpoints" / f"step-0000000{step}.pt")["model"] for step in (3, 4))
    name = "value_head.projection.weight"
    assert first[name].shape == (64, 32) and not torch.equal(first[name], last[name])
