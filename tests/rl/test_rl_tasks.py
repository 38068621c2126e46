"""Task samplers against hand-computed numbers, each by its row; and that a run that was killed draws what it would have drawn."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import batch
from killing import Killed
from loops import IN_FLIGHT, PROBLEMS, run
from playing import groups, problem

from pipelines.config.common import GenerationSettings
from pipelines.config.rl import ScheduleSettings
from pipelines.errors import UserError
from pipelines.rl import advantages, objective, recipe
from pipelines.rl.account import training
from pipelines.rl.history import History, Tally
from pipelines.rl.recompose.oversampling import expanded, useless
from pipelines.rl.tasks import TASKS, Cyclic, Draw, Rlcs, RuleReasoner, Staged, SuccessPairs, Variants, draw
from pipelines.rl.tasks.staged import form


def remember(history: History, step: int, right: dict[str, int], judged: int = 8) -> None:
    """So many of `judged` answers to each problem were right in a step."""
    history.tallies[step] = {name: Tally(judged, count) for name, count in right.items()}
    for name, tally in history.tallies[step].items():
        history.visits[name].append(tally)


def at(step: int, count: int, history: History | None = None) -> Draw:
    return Draw(count, (1, "s"), step, 0, history or History(Path()))


def sampler(row: str):
    (make,) = recipe(row).lists["tasks"]
    return make()


def advantage(row: str, right: int, of: int = 8) -> list[float]:
    """Of a right and of a wrong answer in a group of which so many are right."""
    made = batch(torch.tensor([1.0] * right + [0.0] * (of - right)), torch.zeros(of, dtype=torch.long))
    found = advantages(recipe(row, scale={"name": "group_std", "ddof": 0, "eps": 0.0}), made)[:, 0]
    return [float(found[0]), float(found[-1])]


def test_rule_reasoner():
    """Worked weights: mean rewards .2 and .8 give .8808 and .1192, both at 1 the same, above the target no less than at it."""
    row = sampler("rule_reasoner")
    assert row.weights(np.array([0.2, 0.8])) == pytest.approx([0.8808, 0.1192], abs=1e-4)
    assert row.weights(np.array([1.0, 1.0])) == pytest.approx([0.5, 0.5]) == row.weights(np.array([1.0, 1.7]))
    pool = [replace(problem(str(n)), domain="easy" if n < 5 else "hard") for n in range(10)]
    history = History(Path())
    for step in range(1, 13):
        # the last four of the eight batches that are looked at: .8 and .2
        remember(history, step, {"p0": 0, "p5": 10} if step <= 4 else {"p0": 8, "p5": 2}, 10)
    assert row.rewards(["easy", "hard"], pool, history, 8) == pytest.approx([0.8, 0.2])
    counts = Counter(p.domain for step in range(9, 13) for p in row(pool, at(step, 500, history)))
    assert counts["hard"] / 2000 == pytest.approx(0.8808, abs=0.02)
    counts = Counter(p.domain for step in range(1, 9) for p in row(pool, at(step, 500, history)))
    assert counts["hard"] / 4000 == pytest.approx(0.5, abs=0.02)  # not before step 9
    assert len(draw(pool, [row], at(9, 10, history))) == 10 > len({p.problem_id for p in draw(pool, [row], at(9, 10, history))})
    smoothed = RuleReasoner(smoothing=0.5)
    assert smoothed.smoothed([0.0, 1.0, 1.0]) == pytest.approx(0.75) and smoothed.smoothed([]) == 0.0
    assert advantage("rule_reasoner", 1) == pytest.approx([2.6458, -0.3780], abs=1e-4)


def test_rlcs():
    """Half of the groups of no use: 64 become 128; none: 64. Buckets follow the last answers, and their weights the draw."""
    assert expanded(64, 0.5, 4.0) == 128 and expanded(64, 0.0, 4.0) == 64 and expanded(64, 0.9, 4.0) == 256 == expanded(64, 1.0, 4.0)
    history = History(Path())
    remember(history, 1, {"p1": 0, "p2": 8, "p3": 4, "p4": 1})
    assert useless(history, 0.9) == 0.5
    remember(history, 2, {"p1": 8, "p2": 3})
    assert useless(history, 0.9) == pytest.approx(0.5)
    remember(history, 3, {"p1": 8})
    assert useless(history, 0.9) == pytest.approx(0.55)
    row = sampler("rlcs")
    known = {str(n): replace(problem(str(n)), pass_rate=0.1) for n in range(1, 6)}
    buckets = {name: row.bucket(next(iter([t.right / t.judged for t in history.visits[p.problem_id][-1:]]), p.pass_rate)) for name, p in known.items()}
    assert buckets == {"1": "easy", "2": "medium", "3": "medium", "4": "hard", "5": "hard"}
    pool = [replace(problem(str(n)), pass_rate=0.5 if n < 10 else 1.0) for n in range(20)]
    drawn = Counter(p.pass_rate for step in range(1, 1001) for p in row(pool, at(step, 1)))
    assert drawn[0.5] / 1000 == pytest.approx(0.8, abs=0.03)  # weights 10 and 2.5
    assert {p.pass_rate for p in Rlcs(weights={"easy": 0.0})(pool, at(1, 20))} == {0.5}
    assert advantage("rlcs", 4) == pytest.approx([1.0, -1.0])


def test_beyond_variance():
    """Of success rates 0, .125, .5, .875 and 1 the second is hard but solvable, the fourth easy but brittle; +-2.6458, twice."""
    rates = (0.0, 0.125, 0.5, 0.875, 1.0)
    pool = [replace(problem(str(n)), pass_rate=rate) for n, rate in enumerate(rates)]
    row = sampler("beyond_variance")
    assert [p.answer for p in row(pool, at(1, 2))] == ["1", "3"]
    history = History(Path())
    remember(history, 1, {"p1": 0, "p3": 8, "p2": 1, "p0": 7})  # now 2 is the hard one, 0 the easy one
    assert [p.answer for p in row(pool, at(2, 2, history))] == ["2", "0"]
    remember(history, 2, {"p2": 0})  # 1 of 16: one step without a right answer does not take it out
    assert [p.answer for p in row(pool, at(3, 2, history))] == ["2", "0"]
    unknown = [*pool, problem("9")]
    assert [p.answer for p in SuccessPairs(easy=0.9)(unknown, at(1, 2))] == ["1", "9"]
    assert {p.answer for p in row(pool, at(1, 5))} == set("01234")
    assert advantage("beyond_variance", 1) == pytest.approx([2 * 2.6458, -0.3780], abs=1e-4)
    assert advantage("beyond_variance", 7) == pytest.approx([0.3780, -2 * 2.6458], abs=1e-4)


def test_mccl():
    """Shares 1/4, 1/2, 1 over and over; in every epoch each of its problems once, those that were made after the others."""
    row = sampler("mccl")
    assert [row.share(epoch) for epoch in range(6)] == [0.25, 0.5, 1.0, 0.25, 0.5, 1.0]
    pool = [replace(problem(str(n)), difficulty=n / 8, parents=("p0",) if n % 2 else ()) for n in range(8)]
    drawn = [p for step in range(1, 15) for p in row(pool, at(step, 2))]
    for first, size in ((0, 2), (2, 4), (6, 8), (14, 2), (16, 4), (20, 8)):
        epoch = drawn[first : first + size]
        assert sorted(p.difficulty for p in epoch) == [n / 8 for n in range(size)]
        made = [bool(p.parents) for p in epoch]
        assert made == sorted(made)
    assert drawn[:14] != drawn[14:]  # another order in the next cycle
    assert [p.answer for p in Cyclic()([replace(pool[7], difficulty=None), *pool[:3]], at(1, 1))] == ["0"]
    assert advantage("mccl", 4) == pytest.approx([1.0, -1.0])


def test_craft_gui():
    """Trajectories of 1, 3 and 9 steps: [1], then [1, 3], then [1, 3, 9]."""
    pool = [replace(problem(str(n)), topics=("word problem", f"level {n}")) for n in (1, 3, 9)]
    row = sampler("craft_gui")
    stages = {step: [p.answer for p in row(pool, at(step, 2))] for step in (1, 20, 21, 40, 41, 900)}
    assert stages == {1: ["1"], 20: ["1"], 21: ["1", "3"], 40: ["1", "3"], 41: ["1", "3", "9"], 900: ["1", "3", "9"]}
    assert [p.answer for p in row([*pool, problem("7")], at(41, 2))] == ["1", "3", "9", "7"]  # what says no level comes last
    with pytest.raises(UserError, match=r"tasks 'staged': expected rising bounds, and as many rising steps .* got \[1, 3\] and \[20\]"):
        recipe("grpo", tasks=[{"name": "staged", "by": "level", "bounds": [1, 3], "until": [20]}])
    combine = recipe("craft_gui").single["combine"]
    assert combine({"correct": 1.0, "format": 0.0}) == 0.0 and combine({"correct": 1.0, "format": 1.0}) == 1.0
    assert advantage("craft_gui", 4) == pytest.approx([1.0, -1.0])


def test_curr_reft():
    """Yes or no, then choice, then open, one stage after the other."""
    said = replace(problem("yes"), answer_type="text")
    listed = replace(problem("A"), verifier="choice", verifier_args='{"options": ["true", "false"]}')
    chosen = replace(problem("AC"), verifier="choice", verifier_args='{"options": {"A": "2", "B": "3", "C": "5"}}')
    opened = problem("651")
    assert [form(p) for p in (said, listed, chosen, opened)] == [0, 0, 1, 2]
    row = sampler("curr_reft")
    pool = [opened, chosen, said, listed]
    assert [[p.answer for p in row(pool, at(step, 2))] for step in (20, 40, 41)] == [["yes", "A"], ["AC"], ["651"]]
    assert [Staged(by="working", bounds=[1], until=[5]).stage(replace(opened, solution=text)) for text in ("3 + 4 = 7", "a\n\nb")] == [0, 1]
    assert advantage("curr_reft", 4) == pytest.approx([1.0, -1.0])


def walk(row: Variants, variants: str, failing: str = "") -> list[str]:
    """The variants that one family is asked for, of which those that `failing` names get no right answer."""
    family = [replace(problem(key), topics=("seed 1", f"variant {key}")) for key in variants.split()]
    history, asked = History(Path()), []
    for step in range(1, 12):
        first = row(family, at(step, 1, history))[0]
        if row.at["1"] is None:
            return asked
        asked.append(first.answer)
        remember(history, step, {first.problem_id: int(first.answer not in failing.split())})
    return asked


ALL = "base x y z xy xz yz xyz"


def test_we_math():
    """Worked walks: all right; x failed; base failed; a to e lead to x whatever comes; what a family lacks ends it."""
    assert walk(sampler("we_math"), ALL) == ["base", "x", "xy", "xz", "xyz"]
    assert walk(sampler("we_math"), ALL, "x") == ["base", "x", "y", "xy", "xz", "xyz"]
    assert walk(sampler("we_math"), ALL, "base") == ["base"]
    assert walk(sampler("we_math"), ALL, "xy xz yz") == ["base", "x", "xy", "z", "xz", "yz"]
    assert walk(sampler("we_math"), "a b c d e x xy", "b") == ["a", "b", "c", "d", "e", "x", "xy"]
    assert walk(sampler("we_math"), "base xy") == ["base"]
    assert advantage("we_math", 4) == pytest.approx([1.0, -1.0])


def test_a_family_that_failed_is_served_first():
    pool = [replace(problem(f"{seed}{key}"), topics=(f"seed {seed}", f"variant {key}")) for seed in range(4) for key in ALL.split()]
    row, history = Variants(), History(Path())
    first = row(pool, at(1, 2, history))
    assert [p.answer[1:] for p in first] == ["base", "base"]
    remember(history, 1, {p.problem_id: 8 for p in first})
    other = row(pool, at(2, 2, history))
    assert {p.answer[0] for p in other}.isdisjoint(p.answer[0] for p in first)  # the other two in their turn
    remember(history, 2, {p.problem_id: 8 for p in other})
    third = row(pool, at(3, 2, history))
    assert [p.answer for p in third] == [f"{p.answer[0]}x" for p in first]
    remember(history, 3, {third[0].problem_id: 8, third[1].problem_id: 0})
    fourth = row(pool, at(4, 2, history))
    assert fourth[0].answer == f"{third[1].answer[0]}y" and fourth[1].answer == f"{other[0].answer[0]}x"
    never, history_of_failure = Variants(clear=False), History(Path())
    family = pool[:8]
    for step, (name, right) in enumerate((("base", 8), ("x", 0), ("y", 8)), 1):
        (asked,) = never(family, at(step, 1, history_of_failure))
        assert asked.answer == f"0{name}"
        remember(history_of_failure, step, {asked.problem_id: right})
    never(family, at(4, 1, history_of_failure))
    assert never.at["0"] == "xy" and "0" in never._blocked  # as in the released code


def test_one_shot():
    """One problem fills a step of 128, each place a group with draws of its own."""
    drawn = draw([problem("651")], [], at(1, 128))
    assert len(drawn) == 128 and {p.answer for p in drawn} == {"651"}
    made = groups(lambda before, number: "\\boxed{1}", drawn[:8], count=2)
    assert [group[0].group_id for group in made] == list(range(8)) and {t.problem_id for group in made for t in group} == {"p651"}
    row = recipe("one_shot")
    plain = batch(torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long), logp_ref_BT=torch.full((2, 1), -0.5))
    plain = plain.having(advantage_BT=advantages(row, plain))
    logp, entropy = torch.zeros(2, 1), torch.full((2, 1), 0.7)
    found, _ = objective(row, plain, logp, {"entropy_BT": entropy})
    bare, _ = objective(recipe("one_shot", regularisers=[]), plain, logp, {"entropy_BT": entropy})
    assert float(found - bare) == pytest.approx(0.001 * (math.exp(-0.5) + 0.5 - 1) - 0.001 * 0.7, abs=1e-7)


def test_self():
    """Greedy answers right, wrong, right, wrong: answers are asked of the second and the fourth, 16 in all; no greedy one trains."""

    def script(before: str, number: int) -> str:
        return "\\boxed{" + ("1" if number < 8 or "(652)" in before or "(654)" in before else before[before.index("(") + 1 :][:3]) + "}"

    made = groups(script, [problem(str(n)) for n in range(651, 655)], explore=recipe("self").single["explore"], count=8)
    assert [len(training(group)) for group in made] == [0, 8, 0, 8] and [len(group) for group in made] == [1, 9, 1, 9]
    assert all(group[-1].dropped == "probe" and group[-1].segments[-1].logp[0] == 0.0 for group in made)
    assert advantage("self", 1) == pytest.approx([2.6458, -0.3780], abs=1e-4)


def test_a_step_whose_problems_are_all_solved_has_no_update(tmp_path, start):
    """Three steps of 4 problems, of which 6 are solved greedily: weights move in no step without a failure, and steps go on."""
    for solved, name in ((10, "all"), (6, "some")):
        greedy = {p.prompt: f"\\boxed{{{p.answer if place < solved else ''}}}" for place, p in enumerate(PROBLEMS[:10])}
        said = {p.prompt: ["\\boxed{-1}", f"\\boxed{{{p.answer}}}", "\\boxed{-2}", "", greedy[p.prompt]] for p in PROBLEMS[:10]}
        (tmp_path / f"{name}.json").write_text(json.dumps(said))
        generation = GenerationSettings(engine="scripted", script=str(tmp_path / f"{name}.json"), max_new_tokens=24)
        weights, rows, _ = run(tmp_path / name, start, row="self", steps=3, generation=generation)
        assert [row["step"] for row in rows] == [1, 2, 3]
        assert all(row["dropped_probe"] == 4 and row["trained"] == row["answered"] - 4 for row in rows)
        assert all(("loss" in row) == (row["trained"] > 0) for row in rows)
        assert (sum(row["trained"] for row in rows) == 0) == (solved == 10)
        assert all(torch.equal(weights[key], start[key]) for key in start) == (solved == 10)


@pytest.mark.parametrize(
    "settings", [{"name": "rule_reasoner", "every": 2}, {"name": "rlcs"}, {"name": "success_pairs"}, {"name": "cyclic"}, {"name": "variants"}]
)
def test_a_sampler_draws_the_same_after_a_kill(settings):
    """A new one that sees the history draws what the one that has seen every step draws."""
    (make,) = recipe("grpo", tasks=[settings]).lists["tasks"]
    pool = [replace(problem(str(n)), domain="ab"[n % 2], topics=(f"seed {n // 8}", f"variant {ALL.split()[n % 8]}"), difficulty=n / 24) for n in range(24)]
    left, history, drawn = make(), History(Path()), []
    for step in range(1, 9):
        drawn.append([p.problem_id for p in draw(pool, [left], at(step, 4, history))])
        remember(history, step, {name: (7 * step + place) % 9 for place, name in enumerate(drawn[-1])})
    again = make()
    del history.tallies[8]
    for name in drawn[7]:
        history.visits[name].pop()
    assert [p.problem_id for p in draw(pool, [again], at(8, 4, history))] == drawn[7]
    assert set(TASKS) >= {settings["name"]} and math.prod(map(len, drawn)) == 4**8


KILLED = {
    "rlcs": {
        "tasks": [{"name": "rule_reasoner", "every": 2, "by": "source"}], "guidance": {"name": "templates"},
        "parts": [{"name": "verdict"}, {"name": "format"}, {"name": "template_form"}],
    },
    "self": {"tasks": [{"name": "success_pairs"}], "guidance": {"name": "solution_chunks"}},
}  # fmt: skip


@pytest.mark.parametrize(("row", "schedule"), [("rlcs", IN_FLIGHT), ("self", ScheduleSettings())])
def test_a_run_that_was_killed_ends_as_one_left_alone(tmp_path, start, row, schedule):
    changes = {"row": row, "overrides": KILLED[row], "schedule": schedule, "steps": 5}
    whole = run(tmp_path / "whole", start, **changes)
    with pytest.raises(Killed):
        run(tmp_path / "cut", start, stop_at=3, **changes)
    again = run(tmp_path / "cut", start, **changes)
    assert whole[1:] == again[1:] and all(torch.equal(whole[0][name], again[0][name]) for name in whole[0])
    assert all(torch.isfinite(value).all() for value in whole[0].values()) and len(whole[1]) == 5
    assert {"loss" in line for line in whole[1]} == ({True} if row == "rlcs" else {True, False})  # SELF has steps without an update
