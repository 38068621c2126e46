"""How many answers a problem gets, against hand-computed numbers, each by its row; and runs of them that are killed."""

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import loops
import numpy as np
import pytest
import torch
from batches import batch
from killing import Killed
from loops import IN_FLIGHT, PROBLEMS, TOKENIZER, policy_of, run
from playing import groups, problem

from flows.cli import main
from pipelines.config.common import GenerationSettings
from pipelines.config.rl import ScheduleSettings
from pipelines.errors import InfrastructureError, UserError
from pipelines.evaluation import adaptive_voting
from pipelines.generation import ScriptedGenerator
from pipelines.models.loading import save_policy
from pipelines.records import Segment, Trajectory
from pipelines.rl import RECIPES, advantages, recipe
from pipelines.rl.account import by_group, mixed, training
from pipelines.rl.collate import tensors
from pipelines.rl.costs import cost
from pipelines.rl.environments import Intersection, SingleTurn, intersection
from pipelines.rl.explore.difficulty_adaptive import further
from pipelines.rl.history import History
from pipelines.rl.inputs.facts import turn_return, turns
from pipelines.rl.inputs.step import Step
from pipelines.rl.play import PartialStates
from pipelines.rl.rewards import Scoring
from pipelines.rl.rewards.parts import budget, token_budget
from pipelines.sources import loose
from pipelines.store import read_trajectories, write_problems
from pipelines.verifiers import VerifierPool


def some_right(right: int, before: str, number: int) -> str:
    """The first answers are right."""
    return "\\boxed{" + ("651" if number < right else "1") + "}"


def worth(row: str, group) -> list[float]:
    """The advantages of a group."""
    pool_mean_B = torch.tensor([t.reward_parts.get("pool_mean", math.nan) for t in group])
    made = batch(torch.tensor([t.reward for t in group]), torch.zeros(len(group), dtype=torch.long), pool_mean_B=pool_mean_B)
    return advantages(recipe(row), made)[:, 0].tolist()


def dars(row: str, numbers: dict[int, int]) -> None:
    """So many of 8 answers right -> so many more answers, of which none is right; the baseline is of all."""
    for right, count in numbers.items():
        (made,) = groups(functools.partial(some_right, right), [problem()], explore=recipe(row).single["explore"], count=8)
        assert [t.sample_id for t in made] == list(range(8 + count)) and len(training(made)) == len(made)
        rate = right / len(made)
        assert worth(row, made) == pytest.approx([t.reward - rate for t in made], abs=1e-6)


def test_dars_et():
    """Worked numbers of N = 8 without deviation: 24 more (of 27, the bound) without a right answer, then 11, 3, 1, and none from a half on."""
    dars("dars_et", {0: 24, 1: 11, 2: 3, 3: 1, 4: 0, 8: 0})
    assert further(0.0, 8, 1000, "equal") == 27 and cost(RECIPES["dars_et"]).answers == (8, 32)


def test_dars_hw():
    """56 more without a right answer, then 24, 8, 3, and none from a half on."""
    dars("dars_hw", {0: 56, 1: 24, 2: 8, 3: 3, 4: 0})
    assert cost(RECIPES["dars_hw"]).answers == (8, 64)


def test_dars_with_the_deviation_in_the_advantage():
    """S = 2 sqrt(a (1 - a)), whose peak is N: of a = 1/8 S is .6614, (8 - 5.2915) / .6614 = 4.09; hard: (14 - 5.2915) / .6614 = 13.17."""
    assert further(0.125, 8, 64, "equal", scaled=True) == 5 and further(0.125, 8, 64, "hard", scaled=True) == 14
    assert further(0.0, 8, 64, "equal", scaled=True) == math.ceil((8 - 8 * 2 * math.sqrt(15 / 256)) / (2 * math.sqrt(15 / 256)))
    assert further(0.0, 40, 32, "equal") == 0  # the group is larger than the bound already


def test_dars_goes_by_what_could_be_judged():
    """Two answers are lost, 1 of 6 others is right: S = .2778, (4 - 2.2222) / .2778 = 6.4, so 7 more; nothing is known without a verdict."""

    class Losing(SingleTurn):
        def __init__(self, lost):
            self.lost = lost

        async def run(self, task, path, engine):
            if path in self.lost:
                raise InfrastructureError("lost")
            return await super().run(task, path, engine)

    explore = recipe("dars_et").single["explore"]
    (made,) = groups(functools.partial(some_right, 1), [problem()], Losing({2, 3}), explore=explore, count=8)
    assert len(made) == 15
    (lost,) = groups(functools.partial(some_right, 1), [problem()], Losing(set(range(8))), explore=explore, count=8)
    assert len(lost) == 8


def test_reinforce_ada_positive():
    """One right answer is enough: 0 and 0 of 8, then one, so 24 answers; 1 right and 3 wrong ones train, whose baseline is 1/24."""
    explore = recipe("reinforce_ada_positive").single["explore"]
    (made,) = groups(lambda before, number: "\\boxed{" + ("651" if number == 17 else "1") + "}", [problem()], explore=explore, count=4)
    kept = training(made)
    assert len(made) == 24 and sorted(t.reward for t in kept) == [0.0, 0.0, 0.0, 1.0]
    assert worth("reinforce_ada_positive", kept) == pytest.approx([t.reward - 1 / 24 for t in kept])


LINES = "2 * 217 = 434\n434 + 217 = 651\nSo it is 651.\n\\boxed{651}"


def test_rest_grpo():
    """Of an answer in 4 lines 2 beginnings are drawn, of weights .95, .9025, .8574, .8145; equal answers do not train at all."""
    play = PartialStates()

    def script(before: str, number: int) -> str:
        if "434" in before:
            return "\\boxed{651}" if number % 2 else "\\boxed{1}"
        return LINES if number == 1 else "\\boxed{1}"

    (made,) = groups(script, [problem()], count=2, play=play)
    found = by_group(made)
    assert sorted(found) == [0, 1, 2] and all(len(group) == 2 for group in found.values())
    ids = TOKENIZER(LINES, add_special_tokens=False)["input_ids"]
    for state in (found[1], found[2]):
        assert {t.reward_parts["given"] for t in state} <= {1.0, 2.0, 3.0, 4.0}
        lines = int(state[0].reward_parts["given"])
        for t in state:
            opening, turn = t.segments[1:]
            assert opening.ids == ids[: len(opening.ids)] and not opening.trains and turn.trains
            assert TOKENIZER.decode(opening.ids).splitlines() == LINES.splitlines()[:lines]
            assert t.response.startswith(TOKENIZER.decode(opening.ids)) and t.problem_id == "p651"
    assert "given" not in found[0][0].reward_parts and worth("rest_grpo", found[0]) == pytest.approx([-0.7071, 0.7071], abs=1e-4)
    assert groups(script, [problem()], count=2, play=play) == [made]  # a seeded draw

    (flat,) = groups(lambda before, number: "\\boxed{1}", [problem()], count=3, play=play)
    assert len(flat) == 3 and {t.dropped for t in flat} == {"uniform"}


def test_states_of_an_answer_are_drawn_by_their_weights():
    """800 draws of one state each: .95 to .8145 of 3.5244."""

    def script(before: str, number: int) -> str:
        return LINES if number == 0 and "434" not in before else "\\boxed{1}"

    made = groups(script, [problem() for _ in range(800)], count=2, play=PartialStates(count=1))
    given = [t.reward_parts["given"] for group in made for t in group if t.sample_id == 0 and "given" in t.reward_parts]
    weights = 0.95 ** np.arange(1, 5)
    assert np.bincount(np.array(given, int))[1:] / 800 == pytest.approx(weights / weights.sum(), abs=0.05)


def test_what_is_not_good_enough_has_no_states():
    (made,) = groups(functools.partial(some_right, 1), [problem()], count=2, play=PartialStates(best=1.1))
    assert len(by_group(made)) == 1 and not any(t.dropped for t in made)
    (cut,) = groups(lambda before, number: LINES if number else "\\boxed{1}", [problem()], count=2, play=PartialStates(share=1.0, most=3))
    assert len(by_group(cut)) == 4 == PartialStates(most=3).width


@pytest.mark.parametrize(
    ("slot", "value"), [("guidance", {"name": "solution_prefix"}), ("environment", {"name": "tools", "call": "function", "described": False})]
)
def test_states_are_the_policys_own_and_nobody_elses(slot, value):
    with pytest.raises(UserError, match=f"play 'partial_states' has answers go on from the policy's own, and {slot} '{value['name']}' begins them"):
        recipe("rest_grpo", **{slot: value})


def test_rmt():
    """Budgets 800, 534, 357, 239 and 160 over a run; of 800: .5 for 400 and 1200 tokens, 1 for 800, 0 from 1600 on."""
    assert [budget(share) for share in (0, 0.25, 0.5, 0.75, 1)] == [800, 534, 357, 239, 160] and budget(1, 2) == 1
    (made,) = groups(lambda before, number: "\\boxed{651}", [problem()], count=1)
    (one,) = made

    def score(written: int, step: int, steps: float = math.inf) -> float:
        one.segments[1] = type(one.segments[1])("policy", [5] * written, [0.0] * written, [0] * written, trains=True)
        one.step = step
        return token_budget([one], Scoring(problem(), [""], [], None, 64, {}, steps))["token_budget"][0]

    assert [score(written, 1) for written in (0, 400, 800, 1200, 1600, 5000)] == [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    assert score(357, 6, 10) == 1.0 and score(534, 6, 10) == pytest.approx(1 - (534 / 357 - 1))
    combine = recipe("rmt").single["combine"]
    assert combine({"correct": 1.0, "format": 1.0, "token_budget": 0.5}) == pytest.approx(0.95)
    assert combine({"correct": 0.0, "format": 1.0, "token_budget": 1.0}) == pytest.approx(0.1)
    paid = [replace(one, reward=combine({"correct": 1.0, "token_budget": length})) for length in (0.5, 1.0)]
    assert worth("rmt", paid) == pytest.approx([-0.7071, 0.7071], abs=1e-4)


def test_the_budget_shrinks_over_a_run(tmp_path, start):
    """The same policy, which hardly moves, writes as much at the end, and is paid by what the budget is then: 16 tokens, then 16 .1^(1/2) = 5."""
    part = {"name": "token_budget", "first": 16, "decay": 0.1}
    row = {"parts": [{"name": "verdict"}, {"name": "format"}, part]}
    run(tmp_path, start, row="rmt", steps=2, overrides=row)
    for step, tokens in ((1, 16), (2, 5)):
        for t in read_trajectories(tmp_path / "rollouts" / f"step-{step:06d}.parquet"):
            assert t.reward_parts["token_budget"] == pytest.approx(max(1 - abs(t.written / tokens - 1), 0.0))
            assert t.reward == pytest.approx(0.9 * t.reward_parts["correct"] + 0.1 * t.reward_parts["token_budget"])


def test_brorl_discards_fewer_problems():
    """Of problems solved once in a hundred dynamic sampling drops p^N + (1 - p)^N: .8515 with 16 answers, .0058 with 512."""
    random = np.random.default_rng(1)
    ((right,), (wrong,)) = groups(lambda before, number: "\\boxed{651}", [problem("651"), problem("652")], count=1)
    for count, share in ((16, 0.8515), (512, 0.0058)):
        assert 0.01**count + 0.99**count == pytest.approx(share, abs=1e-4)
        drawn = {place: [right] * k + [wrong] * (count - k) for place, k in enumerate(random.binomial(count, 0.01, size=2000))}
        assert 1 - len(mixed(drawn)) / len(drawn) == pytest.approx(share, abs=0.02)


def moves(row, count: int, steps: int = 60) -> list[float]:
    """By how much the chance of a right answer moves in each step of a softmax bandit of ten right arms and two wrong ones."""
    random, right = np.random.default_rng(1), torch.tensor([1.0] * 10 + [0.0] * 2)
    logits = torch.tensor([0.02] * 10 + [0.6, 0.2]).log()
    found = []
    for _ in range(steps):
        policy = logits.softmax(-1)
        arms = torch.tensor(random.choice(12, size=count, p=policy.double().numpy() / policy.double().sum().item()))
        a = advantages(row, batch(right[arms], torch.zeros(count, dtype=torch.long)))[:, 0]
        gradient = torch.zeros(12).index_add(0, arms, a) / count - policy * a.mean()
        logits = logits + 0.05 * gradient
        found.append(float(((logits.softmax(-1) - policy) * right).sum()))
    return found


def test_many_answers_never_lose_mass_of_right_ones():
    """BroRL's claim: rewards of +-1 without a baseline take mass from right arms in some steps with 2 answers, and in none with 512. With the
    mean of the group as baseline, which every row of dynamic sampling has, there are no such steps with 2 answers either."""
    plain = recipe("grpo", reward=[{"name": "rescale"}], center={"name": "none"}, scale={"name": "none"})
    assert min(moves(plain, 2)) < -1e-4 and min(moves(plain, 512)) > 0
    centred = recipe("grpo", reward=[{"name": "rescale"}], scale={"name": "none"})
    assert min(moves(centred, 2)) > -1e-7 and max(moves(centred, 2)) > 1e-4


@pytest.mark.parametrize(("row", "schedule"), [("dars_hw", ScheduleSettings()), ("rest_grpo", IN_FLIGHT), ("rmt", ScheduleSettings())])
def test_a_run_that_was_killed_ends_as_one_left_alone(tmp_path, start, row, schedule):
    overrides = {"play": {"name": "partial_states", "delimiters": ["\n", ">"]}} if row == "rest_grpo" else {}
    changes = {"row": row, "schedule": schedule, "steps": 4, "overrides": overrides, "prompts_per_step": 3}
    whole = run(tmp_path / "whole", start, **changes)
    with pytest.raises(Killed):
        run(tmp_path / "cut", start, stop_at=3, **changes)
    again = run(tmp_path / "cut", start, **changes)
    assert whole[1:] == again[1:] and all(torch.equal(whole[0][name], again[0][name]) for name in whole[0])
    found = [t for file in sorted((tmp_path / "whole" / "rollouts").iterdir()) for t in read_trajectories(file)]
    assert row == "rmt" or len(found) > 4 * 3 * 4
    assert row != "rest_grpo" or any("given" in t.reward_parts for t in found)


def voting(said: dict[int, str], levels: int) -> adaptive_voting.Vote:
    """The vote on one problem whose answer is 7. said: by level the answers, a letter each; B is right, and - cannot be read."""
    values = {"A": "\\boxed{5}", "B": "\\boxed{7}", "C": "\\boxed{9}", "-": "I do not know"}
    made: list[GenerationSettings] = []

    def create(settings: GenerationSettings) -> ScriptedGenerator:
        made.append(settings)
        return ScriptedGenerator(TOKENIZER, settings, lambda request, number: values[said[len(made) - 1][number]])

    with VerifierPool() as pool:
        (found,) = adaptive_voting.vote(create, GenerationSettings(max_new_tokens=16), [problem("7")], pool, 1, levels=levels)
    assert [(s.temperature, s.top_p, s.max_new_tokens) for s in made] == [
        (pytest.approx(0.7 + 0.1 * level), pytest.approx(0.9 - 0.1 * level), 16 * 2**level) for level in range(found.level + 1)
    ]
    return found


def test_adaptive_votes_stop_where_all_agree():
    """A, A, A, A, B goes on; all B then is the answer, of 10; A, A, B, C, A at the last level is A; who says nothing never agrees; of equals the
    earlier."""
    on = voting({0: "AAAAB", 1: "BBBBB"}, 3)
    assert (on.correct, on.level, on.samples, on.agreed) == (True, 1, 10, True)
    assert on.tokens == sum(len(TOKENIZER(f"\\boxed{{{n}}}", add_special_tokens=False)["input_ids"]) + 1 for n in [5] * 4 + [7] * 6)
    cap = voting({0: "AABCA"}, 1)
    assert (cap.correct, cap.level, cap.samples, cap.agreed) == (False, 0, 5, False)
    silent = voting({0: "BBBB-", 1: "-----"}, 2)
    assert (silent.correct, silent.level, silent.samples, silent.agreed) == (False, 1, 10, False)
    assert voting({0: "CBBCA"}, 1).correct is False and voting({0: "BCCBA"}, 1).correct is True


def test_an_evaluation_tells_the_adaptive_vote_beside_the_majority(tmp_path, start, monkeypatch, capsys):
    """On a policy that is sometimes right; the majority beside it spends no more tokens, unless one answer does."""
    monkeypatch.chdir(tmp_path)
    save_policy(tmp_path / "policy", policy_of(start), TOKENIZER)
    write_problems(tmp_path / "bench.parquet", PROBLEMS[:6])
    command = ["evaluate", "policy", "--benchmark", "bench.parquet", "--samples", "3", "--max-new-tokens", "8", "--vote-levels", "2", "--out", "out"]
    assert main(command) == 0
    printed, voted = capsys.readouterr().out, json.loads(Path("out/scores.json").read_text())["adaptive_vote"]
    assert f"adaptive vote    {voted['accuracy']:.4f}" in printed and 5 <= voted["samples"] <= 10 and 0 <= voted["agreed"] <= 1
    assert voted["majority_samples"] == 1 or voted["majority_tokens"] <= voted["tokens"]
    assert main([*command[:-4], "--vote-levels", "-1"]) == 2
    assert "--vote-levels takes 0 or more" in capsys.readouterr().err


def test_traffic_r1():
    """Rewards -2, -1, -3 have returns -6, -4, -3; beside an episode of -4, -1, -1, returns -6, -2, -1, the turns are compared by their numbers."""
    parts = [{f"turn_{turn}": value for turn, value in enumerate(worth)} for worth in ([-2.0, -1.0, -3.0], [-4.0, -1.0, -1.0])]
    made = [replace(answered_thrice(), sample_id=place, reward_parts=each) for place, each in enumerate(parts)]
    ids, score, filled = tensors(made, torch.device("cpu"), 1, 64)
    step = Step(1, None, None, (), [], made, ids, score, filled, History(Path()))  # type: ignore[arg-type]
    returns, turn_BT = turn_return(step), turns(step)
    assert [[float(row[of == turn][0]) for turn in range(3)] for row, of in zip(returns, turn_BT, strict=True)] == [[-6, -4, -3], [-6, -2, -1]]
    assert float(turn_return(step, gamma=0.5)[0][turn_BT[0] == 0][0]) == -2 - 0.5 - 0.75
    worth = advantages(recipe("traffic_r1"), filled.having(turn_return_BT=returns, turn_BT=turn_BT))
    for turn, value in enumerate((0.0, -0.7071, -0.7071)):  # two of them: half a difference over its deviation, 1 / sqrt(2)
        assert {round(float(a), 4) for a in worth[0][turn_BT[0] == turn]} == {value} and {round(float(a), 4) for a in worth[1][turn_BT[1] == turn]} == {-value}
    assert not worth[turn_BT < 0].any()
    alone = [replace(each, reward_parts={}, reward=7.0) for each in made]
    assert turn_return(Step(1, None, None, (), [], alone, ids, score, filled, History(Path())), gamma=0.5)[0][turn_BT[0] >= 0].tolist() == [
        1.75, 1.75, 3.5, 3.5, 7.0, 7.0
    ]  # fmt: skip
    shorter = [made[0], replace(made[1], segments=made[1].segments[:2], reward_parts={"turn_0": -9.0})]
    ids, score, filled = tensors(shorter, torch.device("cpu"), 1, 64)
    step = Step(1, None, None, (), [], shorter, ids, score, filled, History(Path()))  # type: ignore[arg-type]
    worth = advantages(recipe("traffic_r1"), filled.having(turn_return_BT=turn_return(step), turn_BT=turns(step)))
    assert not worth[0][turns(step)[0] > 0].any() and float(worth[0][turns(step)[0] == 0][0]) == pytest.approx(0.7071, abs=1e-4)


def answered_thrice():
    """An episode of three turns."""
    turn = Segment("policy", [7, 8], [-0.5, -0.5], [0, 0], trains=True)
    return Trajectory("p", 0, 0, 1, "t", [Segment("prompt", [3, 4]), turn, Segment("prompt", [5]), turn, Segment("prompt", [5]), turn], "stop")


GREEN = replace(problem("1"), prompt=intersection.asked([9, 0, 4, 1]))


def test_a_game_of_turns_is_worth_the_cars_that_wait():
    """By hand: the expert serves 9, then what is longest; naming no lane leaves all of them; arrivals are the same in every episode."""
    quiet = {"arrivals": 0, "turns": 3}

    def play(said: str, **settings) -> Trajectory:
        (made,) = groups(lambda before, number: said, [GREEN], Intersection(**quiet | settings), count=2)
        assert made[0].reward_parts == made[1].reward_parts
        return made[0]

    first = play("<think> 9 </think>\\boxed{1}")  # 9 -> 5 -> 1 -> 0, beside 5 others
    assert [first.reward_parts[f"turn_{turn}"] for turn in range(3)] == [-10, -6, -5]
    assert first.reward == pytest.approx((10 + 6 + 2) / 21) and first.outcome == "wrong"  # the expert: lanes 1, 1, 3
    assert [s.author for s in first.turns] == ["policy", "prompt"] * 2 + ["policy"] and "Cars wait: 5 0 4 1." in first.response
    nobody = play("none")
    assert [nobody.reward_parts[f"turn_{turn}"] for turn in range(3)] == [-14] * 3 and nobody.reward == pytest.approx(18 / 42)
    cut = play("\\boxed{1} " + "so " * 200)
    assert cut.reward_parts["turn_0"] == -10 * 3 and "turn_1" not in cut.reward_parts and cut.finish_reason == "length"
    busy = [play("\\boxed{1}", arrivals=3).reward_parts for _ in range(2)]
    assert busy[0] == busy[1] != first.reward_parts
    with pytest.raises(UserError, match="environment 'intersection' expected a prompt such as 'Cars wait: 3 9 0 4. Which lane gets green.'"):
        groups(lambda before, number: "", [problem()], Intersection(), count=1)


def test_the_rows_of_the_game_have_the_experts_action():
    file = Path(__file__).parents[2] / "data/examples/intersection.jsonl"
    assert [json.loads(line) for line in file.read_text().splitlines()] == list(intersection.rows(256, 1))
    problems, bad = loose.read(file)
    assert not bad and all(p.verifier == "math" and p.prompt.count(" ") == 9 for p in problems)
    assert intersection.expert([3, 9, 0, 9]) == 2


def test_traffic_r1_resumes(tmp_path, start, monkeypatch):
    """Two halves of a run are one, in flight."""
    monkeypatch.setattr(loops, "PROBLEMS", [GREEN, replace(GREEN, problem_id="q")])
    overrides = {"environment": {"name": "intersection", "turns": 3}}
    changes = {"row": "traffic_r1", "overrides": overrides, "steps": 3, "schedule": IN_FLIGHT, "prompts_per_step": 2}
    whole = run(tmp_path / "whole", start, **changes)
    with pytest.raises(Killed):
        run(tmp_path / "cut", start, stop_at=2, **changes)
    again = run(tmp_path / "cut", start, **changes)
    assert whole[1:] == again[1:] and all(torch.equal(whole[0][name], again[0][name]) for name in whole[0])
