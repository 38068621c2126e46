"""Stored responses: which become pairs, in which order groups train, what recipes may read of them; and the loop on them with real parts."""

import json
from dataclasses import replace

import pytest
import torch
from chat_endpoint import Answer, serve
from killing import Killed
from loops import GROUPS, PROBLEMS, TOKENIZER, policy_of, prepared, response

from pipelines.chat import ChatClient
from pipelines.config.common import OptimiserSettings
from pipelines.config.preference import PairSettings, PreferenceStage, PreferringSettings
from pipelines.errors import UserError
from pipelines.models.scoring import token_logp
from pipelines.records import Trajectory
from pipelines.rl import recipe
from pipelines.rl.clock import Clock
from pipelines.rl.collate import make_step
from pipelines.rl.history import History
from pipelines.rl.inputs.scores import mismatched
from pipelines.rl.inputs.step import Actor
from pipelines.rl.preferring import endpoint as asked
from pipelines.rl.preferring import judged
from pipelines.rl.roles import roles_of
from pipelines.rl.schedule import Stored
from pipelines.rl.stored import pairs_of, refuse
from pipelines.rl.tensors import Asks
from pipelines.rl.train import train


def plain(count: int, reward: float, length: int = 1) -> list[Trajectory]:
    return [response(PROBLEMS[0], f"{number} {'x ' * length}{reward}", reward) for number in range(count)]


def told(pairs):
    return [(better.reward, worse.reward) for better, worse in pairs]


def test_each_response_stands_in_one_pair_and_the_better_one_is_first():
    four, two = plain(4, 1.0), plain(2, 0.0)
    pairs = pairs_of(four + two, PairSettings(per_problem=9), (1, "t"))
    assert told(pairs) == [(1.0, 0.0)] * 2 and len({id(r) for pair in pairs for r in pair}) == 4
    assert pairs_of((four + two)[::-1], PairSettings(per_problem=9), (1, "t")) == pairs, "whatever their order"
    assert pairs_of(four + two, PairSettings(per_problem=1), (1, "t")) == pairs[:1]
    assert pairs_of(four, PairSettings(), (1, "t")) == []
    others = [pairs_of(plain(9, 1.0) + plain(9, 0.0), PairSettings(per_problem=2), (seed, "t")) for seed in range(4)]
    assert len({tuple(r.response for pair in made for r in pair) for made in others}) > 1, "drawn by the key"


def test_pairs_of_the_largest_margin_or_of_like_length():
    scored = [r for reward in (0.1, 0.9, 0.5, 0.3) for r in plain(1, reward)]
    assert told(pairs_of(scored, PairSettings(choose="margin"), (1,))) == [(0.9, 0.1), (0.5, 0.3)]
    lengths = plain(1, 1.0, 1) + plain(1, 0.0, 9) + plain(1, 0.0, 2) + plain(1, 1.0, 12)
    alike = pairs_of(lengths, PairSettings(choose="alike"), (1,))
    gaps = [abs(len(a.response_ids) - len(b.response_ids)) for a, b in alike]
    assert told(alike) == [(1.0, 0.0)] * 2 and gaps == sorted(gaps) and gaps[1] < 8


def test_every_group_trains_once_in_each_pass_in_an_order_of_its_own():
    plan = Stored(GROUPS, 4, (1, "t"))
    assert plan.one_pass == 2
    steps = [plan.take(step, Clock()) for step in range(1, 4)]
    seen = [r.problem_id for step in steps for r in step if r.sample_id == 0]
    assert sorted(seen[:6]) == sorted(seen[6:]) == sorted(p.problem_id for p in PROBLEMS[:6]) and seen[:6] != seen[6:]
    assert [(r.group_id, r.sample_id, r.step) for r in steps[2]] == [(g, s, 3) for g in range(4) for s in range(2)]
    assert Stored(GROUPS, 4, (1, "t")).take(3, Clock()) == steps[2], "from the number of the step alone"


@pytest.mark.parametrize(
    ("name", "lacking", "said"),
    [
        ("dapo", set(), "recipe 'dapo': its slot 'recompose' says how problems are answered, and here the responses are stored"),
        ("topr", {Asks.BEHAVIOUR}, r"recipe 'topr' reads logp_roll_BT .* their log-probabilities under the policy that answered"),
        ("grpo", {Asks.BEHAVIOUR}, r"recipe 'grpo' reads logp_old_BT .* their log-probabilities under the policy that answered"),
        ("trpa", {Asks.VERDICT}, r"recipe 'trpa' reads level_B .* a verdict on each"),
        ("direct_advantage", {Asks.VERDICT}, r"recipe 'direct_advantage' reads correct_B .* a verdict on each"),
        ("rae", set(), "recipe 'rae' reads role_baseline_B .* a policy that answers as it trains"),
    ],
)
def test_recipes_that_read_what_is_not_there_are_refused_by_name(name, lacking, said):
    with pytest.raises(UserError, match=said):
        refuse(recipe(name), lacking)
    if lacking:
        refuse(recipe(name), set())


@pytest.mark.parametrize("name", ["dpo", "ipo", "orpo", "simpo", "kto", "copg", "a_lol"])
def test_others_need_nothing_but_text_and_rewards(name):
    refuse(recipe(name), {Asks.BEHAVIOUR, Asks.VERDICT, Asks.PROBLEM})


def test_a_judge_is_asked_in_both_orders_and_must_say_the_same():
    def answer(prompt: str, number: int) -> Answer:
        shown = [prompt.split(f"Response {place}:\n")[1].splitlines()[1] for place in "AB"]
        if "silent" in shown[0] + shown[1]:
            return Answer("I cannot say")
        if "biased" in shown[0] + shown[1]:
            return Answer('{"better": "A"}')
        return Answer('<think>{"better": "A"}</think>\nso {"better": "%s"}' % ("A" if "good" in shown[0] else "B"))

    texts = [("bad", "good"), ("good", "bad"), ("biased", "good"), ("silent", "good")]
    pairs = [tuple(response(PROBLEMS[0], text, 0.3) for text in pair) for pair in texts]
    with serve(answer) as endpoint:
        said = judged(pairs, PROBLEMS[:1] * 4, asked(ChatClient(endpoint.url, "m"), PreferringSettings()))
    assert [[r.response for r in pair] for pair in said.pairs] == [["good", "bad"]] * 2
    assert told(said.pairs) == [(1.0, 0.0)] * 2
    assert said.left_out == {"undecided": 1, "no verdict": 1, "too long": 0} and len(endpoint.requests) == 8
    with serve(lambda prompt, number: Answer("", 404)) as endpoint, pytest.raises(UserError, match="the judge answered none of 2 requests.*HTTP 404"):
        judged(pairs[:1], PROBLEMS[:1], asked(ChatClient(endpoint.url, "m"), PreferringSettings()))


def stage(**changes) -> PreferenceStage:
    given = {"init": "sft", "data": "x/rollouts", "prompts_per_step": 4, "micro_batch": 5, "checkpoint_every": 2, "steps": 6}
    return PreferenceStage(**{**given, "optimiser": OptimiserSettings(lr=1e-3, schedule="constant"), **changes})


def run(folder, start, row: str, stop_at=None, groups=GROUPS, **changes):
    """Weights and journal of a run on stored groups, from `start`."""
    policy, chosen = policy_of(start), recipe(row)
    journal, checkpoints = prepared(folder, stop_at)
    train(
        policy, TOKENIZER, PROBLEMS[:10], chosen, stage(recipe=row, **changes), stage="preference@t", seed=1, journal=journal, checkpoints=checkpoints,
        rollout_folder=folder / "rollouts", frozen={name: policy_of(start) for name in roles_of(chosen)}, stored=groups,
    )  # fmt: skip
    return policy.state_dict(), [json.loads(line) for line in journal.path.read_text().splitlines()]


@pytest.mark.parametrize("row", ["dpo", "kto", "topr"])
def test_a_killed_run_resumes_to_the_same_weights_and_log(tmp_path, start, row):
    weights, rows = run(tmp_path / "whole", start, row)
    assert any(not torch.equal(weights[name], start[name]) for name in start) and len(rows) == 6
    assert not (tmp_path / "whole" / "rollouts").exists(), "nothing was answered"
    with pytest.raises(Killed):
        run(tmp_path / "cut", start, row, stop_at=5)
    resumed, resumed_rows = run(tmp_path / "cut", start, row)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights) and resumed_rows == rows


@pytest.mark.parametrize("row", ["dpo", "ipo", "orpo", "simpo", "kto"])
def test_pairs_that_can_be_learnt_are_learnt_without_what_the_policy_that_answered_said(tmp_path, start, row):
    groups = [[replace(r, segments=[replace(s, logp=[]) for s in r.segments]) for r in group] for group in GROUPS]
    weights, rows = run(tmp_path, start, row, groups=groups, steps=12)
    assert "mismatch_k1" not in rows[0] and rows[-1]["loss"] < rows[0]["loss"]

    def margin(policy):
        total = 0.0
        for group in GROUPS:
            for sign, r in zip((1, -1), group, strict=True):
                ids = torch.tensor([r.prompt_ids + r.response_ids])
                total += sign * float(token_logp(policy, ids, torch.arange(ids.shape[1])[None] >= len(r.prompt_ids)).sum())
        return total

    with torch.no_grad():
        assert margin(policy_of(weights)) > margin(policy_of(start)) + 1
    if row != "kto":
        assert rows[-1]["pair_margin"] > rows[0]["pair_margin"] and 0 <= rows[0]["pair_accuracy"] <= rows[-1]["pair_accuracy"] <= 1


def test_mismatched_pairs_are_of_the_next_prompt_and_end_where_the_context_does(start):
    settings, chosen = stage(recipe="kto"), recipe("kto")
    policy, ref = policy_of(start), policy_of(start)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.01)
    trajectories = [replace(r, group_id=g, sample_id=s) for g, group in enumerate(GROUPS[:3]) for s, r in enumerate(group)]
    by_id = {p.problem_id: p for p in PROBLEMS}

    def gaps(policy):
        step = make_step(Actor(policy, TOKENIZER, {"ref": ref}), chosen, settings, trajectories, by_id, History(None), {}, (1, "t"), 1)
        return mismatched(step)

    def ratio(prompt, response):
        ids = torch.tensor([prompt + response])
        score = torch.arange(ids.shape[1])[None] >= len(prompt)
        with torch.no_grad():
            return float((token_logp(policy, ids, score) - token_logp(ref, ids, score)).sum())

    partners = [2, 2, 4, 4, 0, 0]
    expected = [ratio(r.prompt_ids, trajectories[other].response_ids) for r, other in zip(trajectories, partners, strict=True)]
    assert gaps(policy).tolist() == pytest.approx(expected, abs=1e-4)
    assert gaps(ref).abs().max() == 0.0
    policy.config.max_position_embeddings = len(trajectories[0].prompt_ids) + 3
    assert float(gaps(policy)[0]) == pytest.approx(ratio(trajectories[0].prompt_ids, trajectories[2].response_ids[:3]), abs=1e-4)
