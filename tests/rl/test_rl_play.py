"""What a drawn problem leads to: worked numbers of SvS with a scripted policy, and runs of it that are killed."""

import functools
import re

import pytest
import torch
from batches import batch
from killing import Killed
from loops import IN_FLIGHT, ONE_AHEAD, run
from playing import groups, problem

from pipelines.config.common import GenerationSettings
from pipelines.config.rl import ScheduleSettings
from pipelines.errors import InfrastructureError
from pipelines.records import Outcome
from pipelines.rl import RECIPES, advantages
from pipelines.rl.account import by_group
from pipelines.rl.environments import SingleTurn
from pipelines.rl.play import VariationalSynthesis
from pipelines.store import read_trajectories

ASKING = "Write a problem"


def script(right: int, before: str, number: int) -> str:
    """`right` of the answers to the problem are right, each with words of its own; variant V is solved V times."""
    if ASKING in before:
        return f"Variant {number}."
    if variant := re.search(r"Variant (\d)", before):
        return f"\\boxed{{{651 if number < int(variant[1]) else 1}}}"
    return f"So {number}. \\boxed{{{651 if number < right else 1}}}"


def test_svs():
    """Of 8 answers 2 are right, so each of them leads to 8 variants with 8 answers; a variant earns 1 where 1 to 5 of its answers are right."""
    play = VariationalSynthesis()
    (made,) = groups(functools.partial(script, 2), [problem()], count=8, play=play)
    found = by_group(made)
    assert [len(found[number]) for number in sorted(found)] == [8] * 11 and sorted(found) == list(range(11))
    assert [t.outcome for t in found[0]] == ["correct"] * 2 + ["wrong"] * 6
    for asked in (found[1], found[2]):
        assert [t.reward for t in asked] == [0, 1, 1, 1, 1, 1, 0, 0]
        assert [t.reward_parts for t in asked] == [{"variant": t.reward, "role": 1.0} for t in asked]
        assert [t.outcome for t in asked] == ["correct" if t.reward else "wrong" for t in asked]
        assert asked[3].detail == "3 of 8 answers to it are right"
    for number in range(8):
        assert sum(t.reward for t in found[3 + number]) == number
    worth = advantages(RECIPES["svs"], batch(torch.tensor([t.reward for t in found[1]]), torch.ones(8, dtype=torch.long)))[:, 0].tolist()
    assert worth == pytest.approx([-1.20761, *[0.724567] * 5, *[-1.20761] * 2], abs=1e-5)


@pytest.mark.parametrize(("right", "asked"), [(0, 0), (1, 1), (4, 4), (5, 0), (8, 0)])
def test_only_what_is_hardly_solved_is_varied(right, asked):
    (made,) = groups(functools.partial(script, right), [problem()], count=8, play=VariationalSynthesis(variants=2))
    assert len(by_group(made)) == 1 + asked + 2 * (asked > 0)


def test_what_variants_are_of_follows_from_what_was_said():
    """Nothing but trajectories and the drawn problems is needed to know all problems again: each variant has its parent's answer and verifier."""
    play, parent = VariationalSynthesis(responses=1, variants=3), problem()
    (made,) = groups(functools.partial(script, 1), [parent], count=8, play=play)
    found = play.problems(made, {parent.problem_id: parent})
    assert set(found) | {parent.problem_id} == {t.problem_id for t in made} and len(found) == 4
    variants = [p for p in found.values() if p.prompt.startswith("Variant")]
    assert {(p.answer, p.verifier, p.parents, p.source) for p in variants} == {("651", "math", (parent.problem_id,), "variant/")}
    (asking,) = [p for p in found.values() if p not in variants]
    assert "So 0. \\boxed{651}" in asking.prompt and parent.prompt not in asking.prompt


def test_a_copy_and_what_was_cut_earn_nothing_and_equal_variants_are_answered_once():
    parent = problem()
    said = {0: parent.prompt, 1: "Same.", 2: "Same.", 3: "Long " * 200}

    def speak(before: str, number: int) -> str:
        if ASKING in before:
            return said[number]
        return f"\\boxed{{{651 if number < (3 if 'Same' in before else 1) else 1}}}"

    (made,) = groups(speak, [parent], count=8, play=VariationalSynthesis(variants=4))
    found = by_group(made)
    assert len(found) == 3
    assert [(t.reward, t.detail) for t in found[1]] == [
        (0.0, "no variant"), (1.0, "3 of 8 answers to it are right"), (1.0, "3 of 8 answers to it are right"), (0.0, "no variant")
    ]  # fmt: skip


def test_a_variant_that_could_not_be_judged_is_infrastructure():
    class Losing(SingleTurn):
        async def run(self, task, path, engine):
            if task.problem.prompt == "Variant 1." or (ASKING in task.problem.prompt and path == 2):
                raise InfrastructureError("lost")
            return await super().run(task, path, engine)

    (made,) = groups(functools.partial(script, 1), [problem()], Losing(), count=8, play=VariationalSynthesis(variants=4))
    asked = by_group(made)[1]
    assert [t.outcome for t in asked] == ["wrong", "infrastructure", "infrastructure", "correct"]
    assert [t.reward for t in asked] == [0, 0, 0, 1]


EAGER = {"play": {"name": "variational_synthesis", "at_most": 1.0, "responses": 2, "variants": 2, "instruction": "{response} Write a problem"}}
"""A tiny policy is often right or never, and says some dozen tokens."""
DEEP = ScheduleSettings(kind="in_flight", bound=2, groups=8)


@pytest.mark.parametrize("schedule", [ScheduleSettings(), ONE_AHEAD, IN_FLIGHT, DEEP], ids=["synchronous", "one_ahead", "in_flight", "deep"])
def test_a_run_that_was_killed_knows_its_variants_again(tmp_path, start, schedule):
    """With replay of earlier steps, whose problems come back from their files."""
    changes = {
        "row": "svs", "schedule": schedule, "overrides": EAGER | {"recompose": {"name": "replay", "probability": 0.5}},
        "generation": GenerationSettings(max_new_tokens=12, batch_size=6),
    }  # fmt: skip
    whole = run(tmp_path / "whole", start, **changes)
    with pytest.raises(Killed):
        run(tmp_path / "cut", start, stop_at=3, **changes)
    again = run(tmp_path / "cut", start, **changes)
    assert whole[1:] == again[1:] and all((whole[0][name] == again[0][name]).all() for name in whole[0])
    steps = [read_trajectories(path) for path in sorted((tmp_path / "whole" / "rollouts").glob("*.parquet"))]
    said = [t for step in steps for t in step if "variant" in t.reward_parts]
    assert said and {t.outcome for t in said} <= {Outcome.CORRECT, Outcome.WRONG}
    for step in steps:
        assert max(t.group_id for t in step) < 4 * 7
        fresh = [t for t in step if t.origin == "policy"]
        assert all(len({t.problem_id for t in group}) == 1 for group in by_group(fresh).values())
