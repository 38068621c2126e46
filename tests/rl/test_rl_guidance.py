"""Rows that learn with help, against hand-computed numbers: hints and beginnings of solutions, demonstrations beside answers, what teachers wrote."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import loops
import numpy as np
import pytest
import torch
from batches import batch
from killing import Killed
from loops import IN_FLIGHT, ONE_AHEAD, PROBLEMS, TOKENIZER, policy_of, run, settings
from playing import groups, problem

from pipelines import prompting
from pipelines.config.common import PromptSettings
from pipelines.config.rl import ScheduleSettings
from pipelines.errors import UserError
from pipelines.records import GUIDE, POLICY, PROMPT, Outcome, Segment, Trajectory
from pipelines.rl import advantages, objective, recipe, score
from pipelines.rl.account import training
from pipelines.rl.actor import make_actor
from pipelines.rl.collate import minibatches, tensors
from pipelines.rl.costs import cost, needs
from pipelines.rl.demands import Need
from pipelines.rl.environments import SingleTurn
from pipelines.rl.episodes import Asking, Task
from pipelines.rl.explore.fitted_help import fitted, share_for
from pipelines.rl.guidance.solution_chunks import solution_steps
from pipelines.rl.guidance.solution_prefix import falling
from pipelines.rl.history import History, Tally
from pipelines.rl.inputs.probes import foreseen
from pipelines.rl.inputs.step import Step
from pipelines.rl.recompose import Recomposition
from pipelines.rl.recompose.demonstrations import leaving, ranked
from pipelines.rl.rewards import Rewards
from pipelines.rl.rewards.parts import form, verdict
from pipelines.rl.slots.clip import shaped_guide
from pipelines.rl.slots.weighting import uncertain_guide
from pipelines.stages import rl
from pipelines.store import problem_table, read_trajectories
from pipelines.verifiers import VerifierPool

WORKED = "".join(f"{n}{n} + {n} = {n * 12}. \n"[-12:] for n in range(10, 20))[:100]
HINTED = problem("651", solution=WORKED)
STEPS = problem("651", solution="3 + 4 = 7. 7 + 1 = 8. 8 + 2 = 10. 10 + 3 = 13.")
ASKING = Asking(SingleTurn(), TOKENIZER, PromptSettings())
"""How problems are put to the policy."""


def close(got, expected, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(got).double(), torch.as_tensor(expected).double(), atol=atol, rtol=0)


def asked(row: str, script, one, count: int):
    """What the data half of a row makes of one problem, before it is recomposed."""
    made = recipe(row)
    (group,) = groups(script, [one], guide=made.single["guidance"], explore=made.single["explore"], count=count, combine=made.single["combine"])
    return group


def hint_of(before: str) -> int:
    """How many characters of the solution a prompt shows."""
    return next((n for n in range(len(WORKED), 0, -1) if WORKED[:n].strip() and WORKED[:n] in before), 0)


def of_group(row: str, rewards, **tensors_) -> list[float]:
    made = batch(torch.tensor(rewards), torch.zeros(len(rewards), dtype=torch.long), **tensors_)
    return advantages(recipe(row), made)[:, 0].tolist()


def test_guide():
    """A group with one of four right gets no hint; one without gets four answers with it, which train on the prompt without it: ratio .1 / .5 = .2."""
    right = asked("guide", lambda before, number: "\\boxed{651}" if number == 2 else "\\boxed{1}", HINTED, 4)
    assert len(right) == 4 and all(t.trained_prompt is None for t in right)
    made = asked("guide", lambda before, number: "\\boxed{651}" if hint_of(before) and number == 5 else "\\boxed{1}", HINTED, 4)
    plain = prompting.prompt_ids(TOKENIZER, HINTED)
    assert len(training(made)) == 8 and [t.reward_parts["given"] for t in made] == [0.0] * 4 + [0.5] * 4
    assert [hint_of(TOKENIZER.decode(t.prompt_ids)) for t in made] == [0] * 4 + [50] * 4
    assert [t.trained_prompt for t in made] == [None] * 4 + [plain] * 4
    ids, _, _ = tensors(made, torch.device("cpu"), 1, 64)
    assert all(row[: len(plain)].tolist() == plain for row in ids)
    assert len(asked("guide", lambda before, number: "\\boxed{1}", replace(HINTED, solution=None), 4)) == 4  # nothing to help with
    one = batch(torch.ones(1), torch.zeros(1).long(), logp_roll_BT=torch.tensor([[math.log(0.5)]]), advantage_BT=torch.ones(1, 1))
    loss, figures = objective(recipe("guide"), one, torch.tensor([[math.log(0.1)]]))
    assert figures["ratio"] == pytest.approx(0.2) and float(loss) == pytest.approx(-0.2)
    close(of_group("guide", [t.reward for t in made]), [-0.353552] * 5 + [2.474867] + [-0.353552] * 2)


def test_ghpo():
    """Right from 50 characters on: 0, 25, 50 and no more, and the last prompt has 50; never right: four tries and no advantage."""
    made = asked("ghpo", lambda before, number: "\\boxed{651}" if hint_of(before) >= 50 and number % 2 else "\\boxed{1}", HINTED, 8)
    assert [hint_of(TOKENIZER.decode(t.prompt_ids)) for t in made[::8]] == [0, 25, 50] and len(made) == 24
    assert [t.dropped for t in made] == ["replaced"] * 16 + [""] * 8
    ids, _, _ = tensors(made[-1:], torch.device("cpu"), 1, 64)
    assert hint_of(TOKENIZER.decode(ids[0])) == 50  # training sees the hint
    close(of_group("ghpo", [t.reward for t in training(made)]), [-0.935239, 0.935239] * 4, atol=1e-3)
    assert [t.reward for t in training(made)] == [0.5, 1.5] * 4
    never = asked("ghpo", lambda before, number: "\\boxed{1}", HINTED, 8)
    assert [hint_of(TOKENIZER.decode(t.prompt_ids)) for t in never[::8]] == [0, 25, 50, 75]
    assert of_group("ghpo", [t.reward for t in training(never)]) == [0.0] * 8


def test_seele():
    """p* of the worked curves; 3 of 4 steps first; a learner with a true curve is near one half after four rounds."""
    assert share_for((0.0, 10.0, -0.5), 0.5) == pytest.approx(0.5) and share_for((0.2, 10.0, -0.5), 0.5) == pytest.approx(0.4489, abs=1e-4)
    assert share_for((0.0, 10.0, 0.5), 0.5) == 0.0 and share_for((0.0, 10.0, -1.5), 0.5) == 1.0
    assert solution_steps(STEPS.solution) == ["3 + 4 = 7. ", "7 + 1 = 8. ", "8 + 2 = 10. ", "10 + 3 = 13."]
    made = asked("seele", lambda before, number: " </think>\\boxed{651}" if "8 + 2" in before or number % 2 else "</think>", STEPS, 8)
    assert len(training(made)) == 32 and len({t.sample_id for t in made}) == 32
    assert made[0].segments[1].author == GUIDE and TOKENIZER.decode(made[0].segments[1].ids) == "<think> 3 + 4 = 7. 7 + 1 = 8. 8 + 2 = 10."
    shares = [t.reward_parts["given"] for t in made[::8]]
    assert shares[0] == 0.75 and shares[1] < 0.75 and all(share in (0, 0.25, 0.5, 0.75, 1) for share in shares)
    random, away = np.random.default_rng(1), []
    for _ in range(60):
        k, mu = random.uniform(5, 15), -random.uniform(0.2, 0.8)
        share, shown = 0.9, {}
        for _ in range(3):
            shown.setdefault(share, []).append(random.binomial(8, 1 / (1 + math.exp(-k * (share + mu)))) / 8)
            share = share_for(fitted({p: float(np.mean(rates)) for p, rates in shown.items()}), 0.5)
        away.append(abs(1 / (1 + math.exp(-k * (share + mu))) - 0.5))
    assert np.mean(away) < 0.15
    row = recipe("seele", regularisers=[])
    _, _, whole = tensors([replace(made[0], reward=1.0), replace(made[31], reward=0.0)], torch.device("cpu"), 1, 64)
    given = torch.zeros_like(whole.mask_BT)
    given[0, len(made[0].prompt_ids) : len(made[0].prompt_ids) + len(made[0].segments[1].ids)] = 1.0
    logp = torch.full_like(given, -0.7)
    loss, _ = objective(row, whole.having(guided_BT=given, logp_old_BT=logp, advantage_BT=advantages(row, whole)), logp)
    assert not (whole.mask_BT * given).any() and float(loss) == pytest.approx(0.001 * 0.7, abs=1e-7)  # GRPO's own is 0 on-policy


def test_prefix_rft():
    """low .95, .5, .05; of entropies .1 .9 .2 .8 .3 only the second trains; what the policy wrote always does."""
    assert [falling(0.95, 0.05, at) for at in (0, 0.5, 1)] == pytest.approx([0.95, 0.5, 0.05])
    entropy, mask = torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.3, 0.0, 2.0]]), torch.ones(1, 7)
    guided = torch.tensor([[1.0, 1, 1, 1, 1, 0, 0]])
    close(uncertain_guide(entropy, guided, mask), [[0, 1, 0, 0, 0, 1, 1]])
    close(uncertain_guide(entropy, guided, mask, share=0.4), [[0, 1, 0, 1, 0, 1, 1]])
    made = asked("prefix_rft", lambda before, number: "\\boxed{651}" if number == 1 else "\\boxed{1}", HINTED, 8)
    whole = prompting.response_ids(TOKENIZER, HINTED)
    prefix = made[0].segments[1]
    assert prefix == Segment(GUIDE, whole[: math.ceil(0.95 * len(whole))], trains=True)  # in the first step nearly all of it
    assert all([s.author for s in t.segments] == [PROMPT, POLICY] for t in made[1:])
    guide = recipe("prefix_rft").single["guidance"]
    task = Task(HINTED, 0, 8, (1,), ASKING.prompt(HINTED), progress=1.0)
    shares = [guide(replace(task, key=(seed,)), 0, ASKING).figures["given"] for seed in range(200)]
    assert min(shares) < 0.1 and max(shares) > 0.9 and np.mean(shares) == pytest.approx(0.5, abs=0.06)
    row = recipe("prefix_rft", aggregation={"name": "sequence_mean_token_sum"})
    pair = batch(torch.tensor([1.0, 0.0]), torch.zeros(2).long(), torch.ones(2, 7), guided_BT=torch.cat([guided, 0 * guided]))
    leaf = torch.zeros(2, 7, requires_grad=True)
    loss, _ = objective(row, pair.having(advantage_BT=advantages(row, pair)), leaf, {"entropy_BT": entropy.expand(2, 7)})
    (gradient,) = torch.autograd.grad(loss, leaf)
    close(gradient, [[0, -0.25, 0, 0, 0, -0.25, -0.25], [0.25] * 7])  # A = +-.5, of two rows



def answered(solved: str, group_id: int = 0, one=STEPS) -> list[Trajectory]:
    """Answers of the policy to one problem, a letter each: r right, w wrong, f wrong with the form asked for, i not judged."""
    said = {"r": "\\boxed{651}", "f": "\\boxed{1}", "w": "no", "i": "\\boxed{2}"}
    made = []
    for number, letter in enumerate(solved):
        outcome = {"r": Outcome.CORRECT, "f": Outcome.WRONG, "w": Outcome.UNPARSABLE, "i": Outcome.INFRASTRUCTURE}[letter]
        ids = TOKENIZER(said[letter], add_special_tokens=False)["input_ids"]
        segments = [Segment(PROMPT, ASKING.prompt(one).ids), Segment(POLICY, ids, [-0.1] * len(ids), [0] * len(ids), trains=True)]
        parts = {"correct": float(letter == "r"), "format": float(letter in "rf")}
        made.append(Trajectory(one.problem_id, group_id, number, 1, "t", segments, "stop", None, said[letter], outcome.value, reward_parts=parts))
    return made


def recomposed(row: str, rollouts, *others, history=None, step=1, limit=64, problems=(STEPS,), foresee=None, **settings_) -> list[Trajectory]:
    """What a row's slot `recompose` makes of answers, whose rewards are what the row makes of their parts."""
    slots = recipe(row).slots["recompose"][0]
    made = recipe(row, recompose=[{**slots, **settings_}])
    with VerifierPool() as pool:
        rewards = Rewards(pool, [verdict, form], made.single["combine"], limit)
        for t in rollouts:
            t.reward = rewards.combined(t.reward_parts)
        by_id = {p.problem_id: p for p in problems}
        at = Recomposition(step, (1, "t"), by_id, history or History(Path()), rewards, None, ASKING, foresee)
        return made.lists["recompose"][0](rollouts, at, *others)


def advantage_of(row: str, rollouts) -> list[float]:
    """One for each response that trains."""
    _, _, made = tensors(training(rollouts), torch.device("cpu"), 1, 64)
    found = advantages(recipe(row), made)
    return (found.sum(1) / made.mask_BT.sum(1)).tolist()


def test_luffy():
    """The solution is member 8 beside seven answers; f(.5) = .8333, f(.01) = .0909, whose slope by log pi is .1 p / (p + .1)^2; no clip of its ratio."""
    made = recomposed("luffy", answered("wwwwwww"))
    assert len(training(made)) == 8 and made[7].origin == made[7].policy == GUIDE and made[7].outcome == "correct" and made[7].reward == 1.0
    assert made[7].response == prompting.response(STEPS) and made[7].response_ids == prompting.response_ids(TOKENIZER, STEPS)
    assert made[7].behaviour_logp == [0.0] * len(made[7].response_ids) and made[7].written == 0
    close(advantage_of("luffy", made), [-0.125] * 7 + [0.875])
    assert [t.origin for t in recomposed("luffy", answered("rr"))] == [POLICY, POLICY, GUIDE]
    assert recomposed("luffy", answered("ww"), limit=4) == answered("ww")  # longer than an answer may be
    p = torch.tensor([[0.5, 0.01, 0.5, 0.5]], dtype=torch.float64)
    logp, guided = p.log().requires_grad_(), torch.tensor([[1.0, 1, 0, 0]])
    x = torch.tensor([[2.0, 2.0, 2.0, 0.0]], dtype=torch.float64)  # a ratio of 7.4
    loss = shaped_guide(x, torch.ones(1, 4), logp, guided)
    close(loss, [[-0.833333, -0.090909, -1.2, -1.0]])
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    close(gradient, [[-0.05 / 0.36, -0.001 / 0.0121, 0, 0]])


def test_ampo():
    """T1 .2, T2 .5 in 30, T3 .5 in 20: T3, then T2; a right answer among them: nothing is replaced."""
    assert ranked([(0.2, 5), (0.5, 30), (0.5, 20)]) == [2, 1, 0]
    texts, said = ["1 + 1 = 2", "3 + 4 = 7. 7 + 1 = 8. 8 + 2 = 10.", "3 + 4 = 7."], []

    def foresee(given):
        said.extend(given)
        return [0.2, 0.5, 0.5][: len(given)]

    made = recomposed("ampo", answered("wwiww"), {STEPS.problem_id: texts}, foresee=foresee)
    assert [t.dropped for t in made[:5]] == ["replaced", "replaced", "", "", ""]
    assert [t.dropped for t in made[5:]] == ["spare", "", ""] and all(texts[n] in t.response for n, t in enumerate(made[5:]))
    assert [len(ids) for _, _, ids in said] == [len(t.response_ids) for t in made[5:]]
    assert {t.reward for t in made[6:]} == {1.0}
    low = recomposed("ampo", answered("wwww"), {STEPS.problem_id: texts[:1]}, foresee=foresee, least_reward=2.0)
    assert [t.reward for t in training(low)] == [0.0] * 3 + [2.0]
    right = recomposed("ampo", answered("wwrw"), {STEPS.problem_id: texts}, foresee=foresee)
    assert len(right) == 4 == len(training(right))
    none = recomposed("ampo", answered("wwww"), {}, foresee=lambda given: [])
    assert len(none) == 4 and training(none) == none
    close(advantage_of("ampo", training(made)[:1] + training(made)[2:]), [-0.866025] * 2 + [0.866025] * 2, atol=1e-3)
    assert needs(recipe("ampo")) == {Need.TEACHER} and cost(recipe("ampo")).passes == ("the policy on what teachers wrote",)


def test_visurf():
    """Answers 0 0 0 0: A_y = 2, the others -.5; 0 0 1 1 (without form): r(y) = .5 and A_y = 0; y gets nothing for its form."""
    made = recomposed("visurf", answered("wwww"))
    assert made[4].reward == 1.0 and made[4].reward_parts == {"correct": 1.0, "format": 0.0}
    close(advantage_of("visurf", made), [-0.5] * 4 + [2.0])
    two = answered("wwrr")
    for t in two:
        t.reward_parts["format"] = 0.0
    mixed = recomposed("visurf", two)
    assert mixed[4].reward == 0.5
    close(advantage_of("visurf", mixed), [-1.118034] * 2 + [1.118034] * 2 + [0.0])
    well_formed = recomposed("visurf", answered("ffff"))
    assert [t.reward for t in well_formed] == [0.5] * 4 + [1.0]  # a wrong answer earns less


def test_easy_video_r1():
    """Seven wrong and the stored one right: -.353552 and 2.474867; a mean of .25 is not below .25."""
    made = recomposed("easy_video_r1", answered("wwwwwwww"))
    assert [t.dropped for t in made] == [""] * 7 + ["replaced", ""] and made[8].origin == GUIDE
    close(advantage_of("easy_video_r1", made), [-0.353552] * 7 + [2.474867])
    assert [t.reward for t in made[7:]] == [0.0, 1.0]
    assert len(recomposed("easy_video_r1", answered("wwwrwrww"))) == 8
    assert len(recomposed("easy_video_r1", answered("wwwwwwwr"))) == 9
    assert len(recomposed("easy_video_r1", answered("wwww"), limit=4)) == 4  # too long
    assert len(recomposed("easy_video_r1", answered("iiii"))) == 4  # nothing is known of the group


def test_relift():
    """60 failures in each of three steps: once, after the third, 128 train, the newest; 52 are left, the oldest but for the first eight."""
    failed = [[f"{step} {n}" for n in range(60)] for step in (1, 2, 3)]
    assert [len(leaving(failed[:steps], 128)) for steps in (1, 2, 3)] == [0, 0, 128]
    assert leaving(failed, 128) == failed[2] + failed[1] + failed[0][:8]
    assert leaving([*failed, ["x"] * 76], 128) == ["x"] * 76 + failed[0][8:]  # the 52 that were left, behind what came
    others = [replace(problem(str(n), solution="1 + 1 = 2"), prompt=f"{n}?") for n in range(3)]
    history = History(Path())
    history.tallies[1] = {"p0": Tally(8, 0), "p1": Tally(8, 1), "p651": Tally(8, 0)}
    now = answered("wrw", 0) + answered("ww", 1, replace(others[2]))
    few = recomposed("relift", now, history=history, step=2, problems=(STEPS, *others), size=4)
    assert few == now
    made = recomposed("relift", now, history=history, step=2, problems=(STEPS, *others), size=3)
    assert [(t.problem_id, t.group_id, t.origin) for t in made[5:]] == [("p2", 2, GUIDE), ("p0", 3, GUIDE), ("p651", 4, GUIDE)]
    assert minibatches(made, 1) == [[0, 1], [2, 3, 4]] and minibatches(made[:5], 2) == [[0], [1]]
    _, _, whole = tensors(made[:3] + made[5:6], torch.device("cpu"), 2, 64)
    guided = whole.having(guided_BT=whole.mask_BT * torch.tensor([0.0, 0, 0, 1])[:, None])
    a = advantages(recipe("relift"), guided)
    close(a.sum(1) / whole.mask_BT.sum(1), [-1 / 3, 2 / 3, -1 / 3, 1.0])
    alone = guided.rows(torch.tensor([3]))
    leaf = torch.full_like(alone.mask_BT, -0.4).requires_grad_()
    alone = alone.having(advantage_BT=alone.mask_BT, logp_old_BT=leaf.detach())
    (gradient,) = torch.autograd.grad(objective(recipe("relift"), alone, leaf)[0], leaf)
    close(gradient, -alone.mask_BT / alone.mask_BT.sum())  # of -mean_t log pi


def test_the_policy_is_asked_how_likely_the_right_answer_is(start):
    """By a plain forward pass: the mean probability of the answer's tokens after the working, whatever answer the response gives."""
    policy, one = policy_of(start), PROBLEMS[0]
    actor = make_actor(policy, TOKENIZER, recipe("grpo"), settings(), {})
    prompt, made = prompting.prompt_ids(TOKENIZER, one), []
    for working in ("", " 1 + 1 = 2"):
        stub = [*prompt, *TOKENIZER(f"<think>{working} ", add_special_tokens=False)["input_ids"]]
        stub += TOKENIZER(prompting.opening(one), add_special_tokens=False)["input_ids"]
        gold = TOKENIZER(one.answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = policy(torch.tensor([[*stub, *gold]])).logits[0, len(stub) - 1 : -1]
        made.append(float(logits.softmax(-1).gather(-1, torch.tensor(gold)[:, None]).mean()))
    said = [TOKENIZER(f"<think>{working} </think>\\boxed{{-5}}", add_special_tokens=False)["input_ids"] for working in ("", " 1 + 1 = 2")]
    assert foreseen(actor, settings(), [(one, prompt, ids) for ids in said]) == pytest.approx(made, abs=1e-5)
    assert foreseen(actor, settings(), []) == []


@pytest.mark.parametrize(("row", "schedule"), [("luffy", ScheduleSettings()), ("luffy", ONE_AHEAD), ("guide", ONE_AHEAD)])
def test_tokens_that_nobody_sampled_are_as_likely_as_before_the_update(start, row, schedule):
    """Their ratio starts at 1, also where that of the policy's own is to the weights that sampled them."""
    one = replace(PROBLEMS[0], solution="1 + 1 = 2")
    rollouts = answered("w", 0, one) + (recomposed("luffy", answered("w", 0, one), problems=(one,))[1:] if row == "luffy" else [])
    stage, policy = settings(schedule=schedule), policy_of(start)
    actor = make_actor(policy, TOKENIZER, recipe(row), stage, {})
    ids, where, made = tensors(rollouts, torch.device("cpu"), 1, 64)
    filled = score.fill(recipe(row), Step(1, actor, stage, (1, "t"), [one] * len(rollouts), rollouts, ids, where, made, History(Path())))
    if schedule.kind == "synchronous":
        assert "logp_roll_BT" not in filled  # nobody reads it
        return
    close(filled.logp_old_BT[0][where[0]], rollouts[0].behaviour_logp)
    for r, row_ids, row_where, old in list(zip(rollouts, ids, where, filled.logp_old_BT, strict=True))[1:]:
        with torch.no_grad():
            logits = policy(row_ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, row_ids[1:, None])[:, 0]
        close(old[row_where], logits[row_where[1:]], atol=1e-4)
        assert len(r.response_ids) == int(row_where.sum())
    assert torch.equal(filled.logp_roll_BT, filled.logp_old_BT)


def test_a_stage_names_what_teachers_wrote_where_its_recipe_reads_it():
    for row, named, words in (("ampo", (), "name their rows under `demonstrations`"), ("grpo", ("one",), "reads no `demonstrations`")):
        stage = settings(recipe=row, demonstrations=named)
        assert stage.rows_read == ("rows", *named)
        with pytest.raises(UserError, match=f"t: recipe '{row}' .*{words}"):
            rl.run(SimpleNamespace(settings=stage, stage="t"))
    other = replace(STEPS, solution="1 + 1 = 2")
    found = rl._solutions([problem_table([STEPS, HINTED]), problem_table([replace(other, solution=None)]), problem_table([other])])
    assert found == {STEPS.problem_id: [STEPS.solution, HINTED.solution, "1 + 1 = 2"]}


KILLED = {
    "ghpo": {},
    "seele": {"schedule": IN_FLIGHT, "overrides": {"explore": {"name": "fitted_help", "rounds": 3, "per_round": 2}}},
    "guide": {"schedule": ONE_AHEAD},
    "prefix_rft": {"schedule": IN_FLIGHT},
    "ampo": {},
    "easy_video_r1": {"schedule": ONE_AHEAD},
    "relift": {"overrides": {"recompose": [{"name": "demonstration_buffer", "size": 5}]}, "minibatches": 2},
}  # fmt: skip


@pytest.mark.parametrize("row", KILLED)
def test_a_run_with_help_that_was_killed_ends_as_one_left_alone(tmp_path, start, row, monkeypatch):
    if recipe(row).slots["guidance"]["name"] != "none":  # demonstrations must be short enough for an answer
        monkeypatch.setattr(loops, "PROBLEMS", [replace(p, solution=f"{p.answer} + 0. It is.") for p in PROBLEMS])
    changes = {"row": row, "steps": 5, **KILLED[row]}
    whole = run(tmp_path / "whole", start, **changes)
    with pytest.raises(Killed):
        run(tmp_path / "cut", start, stop_at=3, **changes)
    again = run(tmp_path / "cut", start, **changes)
    assert whole[1:] == again[1:] and all(torch.equal(whole[0][name], again[0][name]) for name in whole[0])
    assert all(torch.isfinite(value).all() for value in whole[0].values()) and len(whole[1]) == 5
    assert all(line["answered"] + line["replayed"] + line["guided"] == line["trained"] + line["dropped"] for line in whole[1])
    authors = Counter(s.author for path in (tmp_path / "whole" / "rollouts").iterdir() for t in read_trajectories(path) for s in t.turns)
    hinted = any(t.trained_prompt for path in (tmp_path / "whole" / "rollouts").iterdir() for t in read_trajectories(path))
    assert authors[GUIDE] or hinted
