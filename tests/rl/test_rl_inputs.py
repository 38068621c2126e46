"""What the loop computes for a recipe, on a real tiny model, against plain forward passes and by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines import prompting
from pipelines.config.common import GenerationSettings, OptimiserSettings
from pipelines.config.rl import RlStage
from pipelines.config.sources import ArithmeticSource
from pipelines.config.training import ArchitectureSettings
from pipelines.errors import UserError
from pipelines.generation import Sample
from pipelines.models.optimisation import make_optimiser
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.records import PROMPT, Outcome, Segment, Trajectory, one_turn
from pipelines.rl import RECIPES, advantages, recipe, score, with_advantages
from pipelines.rl.account import training
from pipelines.rl.actor import make_actor
from pipelines.rl.collate import tensors
from pipelines.rl.history import History
from pipelines.rl.inputs import facts, probes, scores, teacher
from pipelines.rl.inputs.step import Step
from pipelines.rl.recompose import Recomposition, dynamic_sampling, inject, prioritised_replay, replay
from pipelines.rl.rewards import Rewards, weighted
from pipelines.rl.rewards.parts import form, verdict
from pipelines.rl.slots import reward
from pipelines.rl.tensors import TENSORS
from pipelines.rl.update import optimise
from pipelines.sft.examples import document
from pipelines.sources.arithmetic import problems as arithmetic
from pipelines.store import write_trajectories
from pipelines.verifiers import VerifierPool
from pipelines.verifiers.confidence import stated_confidence

PROBLEMS = list(arithmetic(ArithmeticSource(kind="arithmetic", count=60, levels={2: 1}, styles={"steps": 1}), 1, "a", Path()))[:2]
BY_ID = {problem.problem_id: problem for problem in PROBLEMS}
TOKENIZER = train_tokenizer([document(p) for p in PROBLEMS], 300)
TINY = ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=64, context=160)


def settings(**changes) -> RlStage:
    return RlStage(
        **{"init": "sft", "data": "rows", "micro_batch": 3, "generation": GenerationSettings(max_new_tokens=24), **changes}
    )


def rollout(problem: int, text: str, right: bool, sample: int, **changes) -> Trajectory:
    ids = [*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    outcome = Outcome.CORRECT if right else Outcome.WRONG
    made = Trajectory(
        PROBLEMS[problem].problem_id, problem, sample, 1, "t", one_turn(prompting.prompt_ids(TOKENIZER, PROBLEMS[problem]), ids, [-0.5] * len(ids), [0] * len(ids)), "stop",
        response=text, outcome=outcome.value, extracted="7", reward=float(right), reward_parts={"correct": float(right), "format": 1.0},
    )  # fmt: skip
    return replace(made, **changes)


MADE = [
    rollout(0, "<think> 3 + 4 = 7, 7 + 1 = 8 </think>\\boxed{8}", True, 0),
    rollout(0, "<think> 3 + 4 = 7, 7 + 2 = 9 </think>\\boxed{9}", False, 1),
    rollout(0, "<think> 4 + 4 = 8 </think>\\boxed{8}", True, 2),
    rollout(1, "<think> </think>\\boxed{2}", False, 0),
    rollout(1, "<think> 7 </think>\\boxed{7}", False, 1),
]


def step_of(row="grpo", made=MADE, frozen=("ref",), **changes) -> Step:
    policy = tiny_model(TINY, TOKENIZER, 1).eval()
    models = {role: tiny_model(TINY, TOKENIZER, 2 + number).eval() for number, role in enumerate(frozen)}
    stage = settings(**changes)
    actor = make_actor(policy, TOKENIZER, recipe(row), stage, models)
    actor.frozen.update(models)
    ids, score, batch = tensors(made, torch.device("cpu"), 1, 24)
    rows = [BY_ID[r.problem_id] for r in made]
    return Step(1, actor, stage, (1, "t"), rows, made, ids, score, batch, History(Path()))


def plain(model, made: Trajectory, temperature=1.0) -> torch.Tensor:
    """log-probabilities (tokens, V) at the response's positions, from the model's own logits."""
    ids = torch.tensor([made.prompt_ids + made.response_ids])
    with torch.no_grad():
        logits = model(ids).logits[0, len(made.prompt_ids) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1)


def at(step: Step, tensor: torch.Tensor, row: int) -> torch.Tensor:
    return tensor[row][step.score_BT[row]]


def close(got, expected, atol=1e-4):
    torch.testing.assert_close(torch.as_tensor(got).float(), torch.as_tensor(expected).float(), atol=atol, rtol=0)


def test_scores_before_the_update_match_plain_forward_passes():
    step = step_of("ppo")
    torch.nn.init.normal_(step.actor.value_head.weight)
    names = {"logp_old_BT", "entropy_old_BT", "vocab_mean_old_BT", "logp_proxy_BT", "topk_BTK", "value_old_BT", "hidden_old_BTH", "special_old_B"}
    made = score.before(step, names, {"topk_BTK": {"k": 4}, "logp_proxy_BT": {"kappa": 0.5}})
    assert set(made) == names and not any(value.requires_grad for value in made.values())
    for row, r in enumerate(MADE):
        logp = plain(step.actor.policy, r)
        target = torch.tensor(r.response_ids)[:, None]
        close(at(step, made["logp_old_BT"], row), logp.gather(-1, target)[:, 0])
        close(at(step, made["entropy_old_BT"], row), -(logp.exp() * logp).sum(-1))
        close(at(step, made["vocab_mean_old_BT"], row), logp.mean(-1))
        assert torch.equal(at(step, made["topk_BTK"], row), logp.topk(4, -1).indices)
        kept = logp.exp() >= 0.5 * logp.exp().max(-1, keepdim=True).values
        renormalised = (logp.exp() * kept / (logp.exp() * kept).sum(-1, keepdim=True)).gather(-1, target)[:, 0]
        close(at(step, made["logp_proxy_BT"], row).exp(), renormalised)
        ids = torch.tensor([r.prompt_ids + r.response_ids])
        with torch.no_grad():
            hidden = step.actor.policy.base_model(ids).last_hidden_state[0]
            after = torch.log_softmax(step.actor.policy(ids).logits[0, -1], -1)[TOKENIZER.pad_token_id]
            value = step.actor.value_head(hidden)[:, 0]
        close(at(step, made["hidden_old_BTH"], row), hidden[len(r.prompt_ids) - 1 : -1])
        close(at(step, made["value_old_BT"], row), value[len(r.prompt_ids) - 1 : -1])
        close(made["special_old_B"][row], after)
        assert not made["logp_old_BT"][row][~step.score_BT[row]].any()


def test_live_scores_carry_gradient_and_the_entropy_of_the_journal_does_not():
    step = step_of("ppo")
    topk = score.before(step, {"topk_BTK"}, {"topk_BTK": {"k": 4}})["topk_BTK"]
    names = {"logp_BT", "entropy_BT", "nucleus_entropy_BT", "value_BT", "student_topk_BTK", "special_B"}
    live = score.live(step.actor, step.settings, names, {"nucleus_entropy_BT": {"p": 0.5}}, step.ids_BT, step.score_BT, {"topk_BTK": topk})
    assert set(live) == names and all(value.requires_grad for value in live.values())
    logp = plain(step.actor.policy, MADE[0])
    close(at(step, live["student_topk_BTK"], 0), logp.topk(4, -1).values)
    close(at(step, live["nucleus_entropy_BT"], 0), scores.nucleus_entropy(logp, {}, p=0.5))
    alone = score.live(step.actor, step.settings, {"logp_BT"}, {}, step.ids_BT, step.score_BT, {})
    assert set(alone) == {"logp_BT", "entropy_BT"} and not alone["entropy_BT"].requires_grad


def test_a_hot_reference_is_tempered_by_the_reward():
    step = step_of()
    made = scores.tempered(step, floor=0.5)
    for row, r in enumerate(MADE):
        expected = plain(step.actor.frozen["ref"], r, temperature=1.0 if r.reward else 2.0).gather(-1, torch.tensor(r.response_ids)[:, None])
        close(at(step, made, row), expected[:, 0])


def test_frozen_policies_score_under_their_own_weights():
    step = step_of(frozen=("ref", "dpo"))
    for role in ("ref", "dpo"):
        made = TENSORS[f"logp_{role}_BT"].compute(step)
        close(at(step, made, 1), plain(step.actor.frozen[role], MADE[1]).gather(-1, torch.tensor(MADE[1].response_ids)[:, None])[:, 0])


def test_the_expert_is_aligned_by_position():
    step = step_of()
    made = scores.expert(step)
    solution = prompting.response_ids(TOKENIZER, PROBLEMS[0])
    expert = replace(MADE[0], segments=one_turn(MADE[0].prompt_ids, solution, [], []))
    expected = plain(step.actor.policy, expert).gather(-1, torch.tensor(solution)[:, None])[:, 0]
    length = min(len(solution), len(MADE[2].response_ids))
    close(at(step, made, 2)[:length], expected[:length])
    assert not at(step, made, 2)[len(solution) :].any()
    step.settings = settings(generation=GenerationSettings(max_new_tokens=24, temperature=0.5))
    cold = plain(step.actor.policy, expert, temperature=0.5).gather(-1, torch.tensor(solution)[:, None])[:, 0]
    close(at(step, scores.expert(step), 2)[:length], cold[:length])
    unknown = step_of()
    unknown.problems = [replace(problem, solution=None) for problem in unknown.problems]
    assert torch.equal(scores.expert(unknown).isnan(), unknown.score_BT)


def test_facts_of_rollouts():
    told = {"consistency": 0.25, "confidence": 0.5, "candidates": 3.0, "rank": 2.0, "pool_mean": 0.25}
    made = [
        rollout(0, "<think> 7 </think>\\boxed{7} <confidence>0.8</confidence>", True, 0),
        rollout(0, "<think> 6 </think>\\boxed{7} <confidence>1.8</confidence>", False, 1),
        rollout(1, "no", False, 0, outcome=Outcome.UNPARSABLE.value, extracted=None),
        rollout(1, "<think> </think>\\boxed{7}", False, 1, reward_parts=told),
    ]
    step = step_of(made=made)
    assert facts.correct(step).tolist() == [True, False, False, False]
    assert facts.form(step).tolist() == [True, True, False, True]
    assert facts.consistency(step).tolist() == [1.0, 0.0, 0.0, 0.25]
    assert facts.confidence(step)[[0, 3]].tolist() == pytest.approx([0.8, 0.5]) and facts.confidence(step)[1:3].isnan().all()
    assert facts.candidates(step).tolist() == [1.0, 1.0, 1.0, 3.0]
    assert facts.rank(step).tolist() == [1.0, 0.0, 0.0, 2.0]
    assert facts.level(step).tolist() == [1, 2, 3, 2]
    assert facts.baseline(step).tolist() == [0.5, 0.5, 0.0, 0.0]
    assert facts.pool_mean(step).tolist() == [0.5, 0.5, 0.0, 0.25]
    step.problems = [replace(problem, pass_rate=0.3) for problem in step.problems]
    assert facts.baseline(step).tolist() == pytest.approx([0.3] * 4)


@pytest.mark.parametrize(
    ("stated", "value"),
    [("<confidence>0.8</confidence>", 0.8), ("Confidence: 80%", 0.8), ("I am 80 % sure.", 0.8), ("<confidence>80</confidence>", 0.8), ("perhaps", None)],
)
def test_the_reward_of_rlcr_and_the_calibration_read_one_confidence(stated, value):
    """c - (q - c)^2: .96 and -.64 with q = .8; -1 where nothing is stated, as for a confidence in the working alone."""
    made = [rollout(0, f"<think>Confidence: 10%</think>\\boxed{{7}} {stated}", right, number) for number, right in enumerate((True, False))]
    step = step_of(made=made)
    assert {stated_confidence(each.response) for each in made} == {value}
    expected = [0.96, -0.64] if value else [-1.0, -1.0]
    assert reward.brier(facts.correct(step), facts.confidence(step)).tolist() == pytest.approx(expected)


def test_a_shared_prefix_ends_where_siblings_part():
    step = step_of()
    ids = [at(step, facts.shared_prefix(step), row).tolist() for row in range(5)]
    same = [a == b for a, b in zip(MADE[0].response_ids, MADE[1].response_ids, strict=False)]
    parted = same.index(False)
    assert ids[0][:parted] == ids[1][:parted]
    assert not set(ids[0][parted:]) & set(ids[1][parted:])
    assert not set(ids[0]) & set(ids[3])  # another prompt


def test_working_is_cut_into_steps():
    step = step_of()
    starts = [probes.step_starts(TOKENIZER, r.response_ids, (", ",)) for r in MADE]
    assert [len(s) for s in starts] == [2, 2, 1, 1, 1]
    first, second = MADE[0].response_ids[: starts[0][1]], MADE[0].response_ids[starts[0][1] :]
    assert TOKENIZER.decode(first).endswith("7, ") or TOKENIZER.decode(first).endswith("7,")
    assert TOKENIZER.decode(second).strip().startswith("7 + 1")
    numbers = at(step, probes.steps(step, delimiters=(", ",)), 0).tolist()
    assert numbers == [0] * starts[0][1] + [1] * len(second)


def test_probes_ask_for_the_answer_after_each_step():
    step = step_of()
    value = probes.step_values(step, delimiters=(", ",))
    assert value.shape == (5, 2) and value[2:, 1].isnan().all()
    stub = [*MADE[2].prompt_ids, *TOKENIZER(prompting.END_THINK + prompting.BOXED, add_special_tokens=False)["input_ids"]]
    gold = TOKENIZER(PROBLEMS[0].answer, add_special_tokens=False)["input_ids"]
    forced = plain(step.actor.policy, replace(MADE[2], segments=one_turn(stub, gold, [], []))).gather(-1, torch.tensor(gold)[:, None]).exp().mean()
    close(value[2, 0], forced)  # before the first step: the prompt alone
    asked = {"samples": 2, "tokens": 3, "delimiters": (", ",)}
    potential = probes.potentials(step, **asked)
    assert potential.shape == (5, 2) and potential[:2].isfinite().all() and (potential[~potential.isnan()].abs() <= 1).all()
    assert torch.equal(potential.nan_to_num(), probes.potentials(step, **asked).nan_to_num())  # keyed, so resumable


def test_diversity_is_of_right_responses_with_right_siblings():
    step = step_of()
    value = probes.diversity(step)
    assert value[1] == value[3] == value[4] == 0.0
    assert 0 < value[0] <= 1 and 0 < value[2] <= 1
    twins = step_of(made=[MADE[0], replace(MADE[0], sample_id=1)])
    close(probes.diversity(twins), [0.0, 0.0])


def test_the_teacher_sees_a_right_sibling_and_scores_the_same_tokens():
    step = step_of("sdpo", frozen=("teacher",))
    step.batch = step.batch.having(**score.before(step, {"topk_BTK"}, {"topk_BTK": {"k": 4}}))
    prompts = probes.reprompted(step)
    assert teacher.has_teacher(step).tolist() == [True, True, True, False, False]
    assert MADE[2].response in TOKENIZER.decode(prompts[0]) and MADE[0].response in TOKENIZER.decode(prompts[1])  # never its own
    made = teacher.teacher_topk(step)
    expected = plain(step.actor.frozen["teacher"], replace(MADE[1], segments=[Segment(PROMPT, prompts[1]), *MADE[1].turns])).gather(-1, at(step, step.batch.topk_BTK, 1))
    close(at(step, made, 1), expected)
    assert not made[3:].any()


def test_a_value_head_learns_the_returns(tmp_path):
    row = recipe("ppo", clip={"name": "none"}, token_modify=[])
    step = step_of("ppo", optimiser=OptimiserSettings(lr=1e-2, schedule="constant", weight_decay=0.0))
    optimiser = make_optimiser(step.actor.policy, step.settings.optimiser)

    def errors() -> float:
        step.batch = step.batch.having(value_old_BT=None, advantage_BT=None)
        batch = with_advantages(row, score.fill(row, step))
        assert "return_BT" in batch and "value_old_BT" in batch
        gap = (batch.return_BT - batch.value_old_BT) * batch.mask_BT
        frozen = batch.having(advantage_BT=torch.zeros_like(batch.mask_BT))  # the policy itself stays
        optimise(step.actor, optimiser, row, step.settings, 1.0, step.ids_BT, step.score_BT, frozen, [[0, 1]], tmp_path)
        return float((gap**2).sum() / batch.mask_BT.sum())

    measured = [errors() for _ in range(40)]
    assert measured[0] == pytest.approx(float((step.batch.reward_B[:, None] * step.batch.mask_BT).sum() / step.batch.mask_BT.sum()), abs=1e-4)
    assert measured[-1] < 0.5 * measured[0]  # what is left is what siblings have in common before they part


def test_only_what_is_read_is_computed(monkeypatch):
    monkeypatch.setattr(score, "before", None)
    monkeypatch.setattr(scores, "in_parts", None)
    step = step_of()
    assert score.fill(RECIPES["grpo"], step) is step.batch
    assert set(step.batch.tensors()) == {"mask_BT", "reward_B", "group_B", "logp_old_BT", "logp_roll_BT", "truncated_B", "step", "response_limit"}


def test_replay_takes_groups_of_the_last_steps(tmp_path):
    history = History(tmp_path)
    for number in (1, 2, 3):
        write_trajectories(tmp_path / f"step-{number:06d}.parquet", [replace(r, step=number) for r in MADE])
    now = [replace(r, step=4) for r in MADE]
    at_step = Recomposition(4, (1, "t"), BY_ID, history, None, None, None, None)
    assert replay(now, at_step, probability=0.0) == now
    whole = replay(now, at_step, probability=1.0, last=2)
    replaced = training(whole)
    assert {r.step for r in replaced} <= {2, 3} and {r.group_id for r in replaced} == {0, 1} and {r.origin for r in replaced} == {"replay"}
    assert [r for r in whole if r.dropped] == [replace(r, dropped="replaced") for r in now]
    assert replay(now, replace(at_step, step=51), probability=1.0, until=50) == now
    assert replay(now, at_step, probability=0.5) == replay(now, at_step, probability=0.5)


def test_dynamic_sampling_draws_until_the_groups_are_mixed():
    mixed, easy = MADE[:3], [replace(r, outcome=Outcome.CORRECT.value) for r in MADE[3:]]
    asked = []

    def more(number):
        asked.append(number)
        return [replace(r, group_id=2 * number + r.group_id) for r in MADE]  # one mixed group of three and an all-wrong one

    at_step = Recomposition(1, (1, "t"), BY_ID, History(Path()), None, more, None, None)
    made = dynamic_sampling([*mixed, *easy], at_step, rounds=3)
    assert asked == [1]
    assert [(r.group_id, r.sample_id) for r in training(made)] == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2)]
    assert [(r.group_id, r.dropped) for r in made if r.dropped] == [(1, "uniform")] * 2 + [(3, "uniform")] * 2
    asked.clear()
    short = replace(at_step, more=lambda number: asked.append(number) or [replace(r, group_id=2 * number + 1) for r in easy])
    made = dynamic_sampling([*mixed, *easy], short, rounds=3)
    assert training(made) == mixed and asked == [1, 2, 3] and len(made) == 3 + 4 * 2
    made = dynamic_sampling(easy, short, rounds=1)  # no group is mixed: the batch is left as it is, and what was drawn besides is not lost
    assert training(made) == easy and [r.dropped for r in made[2:]] == ["uniform"] * 2
    picked = [[0, 8, 3, 8, 5][number] for number in range(5)]  # the specification's: of c = 0 8 3 8 5 the third and the fifth
    groups = [[rollout(0, "x", n < c, n, group_id=g) for n in range(8)] for g, c in enumerate(picked)]
    stream = replace(at_step, more=lambda number: groups[number + 1])
    whole = dynamic_sampling(groups[0] + groups[1], stream)
    found = training(whole)
    assert [sum(r.outcome == Outcome.CORRECT for r in part) for part in (found[:8], found[8:])] == [3, 5]
    assert len(whole) == 5 * 8  # three draws of one group each, and all that was answered is there
    more_than_enough = replace(at_step, more=lambda number: groups[2] + groups[4])
    assert {r.group_id: r.dropped for r in dynamic_sampling(groups[0], more_than_enough)} == {0: "uniform", 2: "", 4: "full"}


class Scripted:
    tokenizer, settings = TOKENIZER, GenerationSettings()

    def __init__(self, text, logp=True):
        self.text, self.logp = text, logp

    def generate(self, requests, progress=None):
        ids = TOKENIZER(self.text, add_special_tokens=False)["input_ids"]
        return [[Sample(ids, [-0.1] * len(ids) if self.logp else [], "stop", self.text, 9) for _ in range(r.samples)] for r in requests]


def test_npo():
    answer = f"<think> </think>\\boxed{{{PROBLEMS[1].answer}}}"
    with VerifierPool() as pool:
        at_step = Recomposition(1, (1, "t"), BY_ID, History(Path()), Rewards(pool, [verdict, form], weighted, 64), None, None, None)
        made = inject(MADE, at_step, Scripted(answer), at_most=0.25, tries=2)
        none = inject(MADE, at_step, Scripted("<think> </think>\\boxed{-1}"))
    assert made[:3] == MADE[:3]  # two of three are right
    assert made[3] == replace(MADE[3], dropped="replaced") and made[4] == MADE[4]
    taken, spare = made[5:]
    assert taken.response == answer and taken.reward == 1.0 and taken.policy == taken.origin == "guide" and taken.dropped == ""
    assert taken.policy_version == [9] * len(taken.response_ids) and taken.group_id == 1
    assert spare == replace(taken, sample_id=taken.sample_id + 1, dropped="spare")
    _, _, batch = tensors(training(made)[3:], torch.device("cpu"), 1, 24)  # the group that was all wrong has a right one now
    assert advantages(RECIPES["npo"], batch).sum(1) / batch.mask_BT.sum(1) == pytest.approx([-0.707106, 0.707106], abs=1e-5)
    assert none[:5] == MADE and [(r.origin, r.dropped) for r in none[5:]] == [("guide", "spare")] * 4
    with VerifierPool() as pool, pytest.raises(UserError, match=r"0 log-probabilities of \d+ tokens that it sampled, and RL trains on them"):
        inject(MADE, replace(at_step, rewards=Rewards(pool, [verdict, form], weighted, 64)), Scripted(answer, logp=False))


def test_prioritised_replay_takes_the_groups_that_say_most(tmp_path):
    """MADE has a mixed group (2 of 3 right) and an all-wrong one."""
    history = History(tmp_path)
    for number in (1, 2, 3):
        write_trajectories(tmp_path / f"step-{number:06d}.parquet", [replace(r, step=number) for r in MADE])
    now = [replace(r, step=4) for r in MADE]
    at_step = Recomposition(4, (1, "t"), BY_ID, history, None, None, None, None)
    assert prioritised_replay(now, at_step, share=0.4) == now  # not one whole group
    made = prioritised_replay(now, at_step, share=0.5)
    assert [r.dropped for r in made[: len(now)]] == ["", "", "", "replaced", "replaced"]
    again = made[len(now) :]
    assert {(r.group_id, r.origin, r.dropped) for r in again} == {(1, "replay", "")} and [r.response for r in again] == [r.response for r in MADE[:3]]
    drawn = [prioritised_replay(now, replace(at_step, seed=(n, "t")), share=0.5, decay=0.5)[-1].step for n in range(400)]
    assert [drawn.count(step) / 400 for step in (1, 2, 3)] == pytest.approx([1 / 7, 2 / 7, 4 / 7], abs=0.07)
    assert prioritised_replay(now, replace(at_step, step=1), share=1.0) == now  # nothing earlier
