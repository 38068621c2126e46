"""From a problem to a group: guidance, exploration, rewards and task samplers, and what is written of it."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from batches import batch
from loops import PROBLEMS, TOKENIZER
from playing import PLAIN_TOOLS, groups, problem

from pipelines import prompting
from pipelines.errors import InfrastructureError, UserError
from pipelines.records import PROMPT, Outcome, Segment, Trajectory, Verdict, one_turn
from pipelines.rl import advantages, recipe
from pipelines.rl.account import counts, place, training
from pipelines.rl.collate import tensors
from pipelines.rl.environments import SingleTurn, Tools
from pipelines.rl.episodes import Episode, Prompt
from pipelines.rl.explore import adaptive
from pipelines.rl.explore.adaptive import down_sampled
from pipelines.rl.history import History, Tally
from pipelines.rl.rewards import Scoring, weighted
from pipelines.rl.rewards.parts import cosine, form, length, repetition, verdict, verifier
from pipelines.rl.tasks import Bots, Draw, draw
from pipelines.store import read_trajectories, write_trajectories


def test_adaptive_rounds_stop_at_enough_of_both_outcomes():
    """Worked numbers of Reinforce-Ada: 4/8 at once is enough; 0, 0, 1, 0 of 8 takes all four rounds and keeps one right and three wrong."""
    right = {0: {0, 1, 2, 3}, 1: {17}}

    def script(before: str, number: int) -> str:
        return "\\boxed{" + ("651" if number in right["(652)" in before] else "1") + "}"

    first, second = groups(script, [problem("651"), problem("652")], explore=adaptive, count=4)
    assert len(first) == 8 and sorted(t.outcome for t in training(first)) == ["correct"] * 2 + ["wrong"] * 2
    assert len(second) == 32 and len(training(second)) == 4
    assert {t.dropped for t in second} == {"", "spare"}


def test_reinforce_ada():
    """The baseline is of all that was answered: 4/8, four of which train, +.5 and -.5; 0, 0, 1, 0 of 8, +.96875 and -.03125; one right answer is
    enough after three rounds, 1/24."""
    row = recipe("reinforce_ada")

    def worth(name: str, right: set[int], **changes) -> set[float]:
        explore = recipe("reinforce_ada", **changes).single["explore"]
        (made,) = groups(lambda before, number: "\\boxed{" + (name if number in right else "1") + "}", [problem(name)], explore=explore, count=4)
        kept = training(made)
        reward_B, pool_mean_B = (torch.tensor(column) for column in zip(*((t.reward, t.reward_parts["pool_mean"]) for t in kept), strict=True))
        return {round(value, 5) for value in advantages(row, batch(reward_B, torch.zeros(4, dtype=torch.long), pool_mean_B=pool_mean_B))[:, 0].tolist()}

    assert worth("651", {0, 1, 2, 3}) == {0.5, -0.5}
    assert worth("652", {17}) == {0.96875, -0.03125}
    assert worth("652", {17}, explore={"name": "adaptive", "until": "positive"}) == {round(23 / 24, 5), round(-1 / 24, 5)}


def test_what_could_not_be_judged_is_no_second_outcome():
    """Four right answers and four that the environment lost: another round is needed."""

    class Losing(SingleTurn):
        async def run(self, task, path, engine):
            if 4 <= path < 8:
                raise InfrastructureError("lost")
            return await super().run(task, path, engine)

    (made,) = groups(lambda before, number: "\\boxed{651}" if number < 8 else "\\boxed{1}", [problem()], Losing(), explore=adaptive, count=4)
    assert len(made) == 16 and sorted(t.outcome for t in training(made)) == ["correct"] * 2 + ["wrong"] * 2


def test_down_sampling_takes_what_there_is():
    def pool(positive: int, negative: int):
        (made,) = groups(lambda before, number: "\\boxed{" + ("651" if number < positive else "1") + "}", [problem()], count=positive + negative)
        return made

    for positive, negative, kept in ((4, 4, (2, 2)), (1, 31, (1, 3)), (8, 0, (4, 0)), (3, 1, (3, 1)), (1, 1, (1, 1))):
        chosen = down_sampled(pool(positive, negative), 4, 0.7)
        assert (sum(t.reward > 0.7 for t in chosen), sum(t.reward <= 0.7 for t in chosen)) == kept


def test_a_prefix_of_the_solution_opens_the_answer_or_stands_in_the_prompt():
    solved = replace(PROBLEMS[0], solution="3 + 4 = 7, 7 + 1 = 8")
    whole = prompting.response_ids(TOKENIZER, solved)
    guide = recipe("grpo", guidance={"name": "solution_prefix", "episodes": 1, "share": (0.5, 0.5)}).single["guidance"]
    ((given, alone),) = groups(lambda before, number: "\\boxed{8}", [solved], guide=guide)
    assert [s.author for s in given.segments] == ["prompt", "guide", "policy"] and given.segments[1].ids == whole[: -(-len(whole) // 2)]
    assert not given.segments[1].trains and given.segments[2].trains and given.response.startswith("<think>")
    assert [s.author for s in alone.segments] == ["prompt", "policy"] and given.prompt_ids == alone.prompt_ids
    _, _, batch = tensors([given, alone], torch.device("cpu"), 1, 64)
    assert batch.mask_BT[0].sum() == len(given.segments[2].ids)

    hinted = recipe("grpo", guidance={"name": "solution_prefix", "episodes": 2, "share": (1.0, 1.0), "shown": "hint"}).single["guidance"]
    ((given, _),) = groups(lambda before, number: "\\boxed{8}", [solved], guide=hinted)
    assert "The solution begins: 3 + 4 = 7, 7 + 1 = 8" in TOKENIZER.decode(given.prompt_ids)
    assert given.trained_prompt == prompting.prompt_ids(TOKENIZER, solved)
    ids, _, _ = tensors([given], torch.device("cpu"), 1, 64)
    assert ids[0].tolist() == [*given.trained_prompt, *given.response_ids]
    ((unsolved, _),) = groups(lambda before, number: "\\boxed{8}", [replace(solved, solution=None)], guide=hinted)
    assert unsolved.trained_prompt is None


def test_trajectories_come_back_from_disk_as_they_were(tmp_path):
    def script(before: str, number: int) -> str:
        return "<tool_call>calculator(3*217)</tool_call>" if "<|tool|>" not in before else "\\boxed{651}"

    guide = recipe("grpo", guidance={"name": "solution_prefix", "shown": "hint"}).single["guidance"]
    (made,) = groups(script, [problem(solution="3 * 217 = 651")], Tools(**PLAIN_TOOLS), guide=guide)
    write_trajectories(tmp_path / "a.parquet", made)
    assert read_trajectories(tmp_path / "a.parquet") == made


def test_files_of_before_segments_are_read(tmp_path):
    (made,) = groups(lambda before, number: "\\boxed{651}", [problem()])
    write_trajectories(tmp_path / "a.parquet", made)
    table = pq.read_table(tmp_path / "a.parquet").drop_columns(["segments", "trained_prompt_ids", "part"])
    pq.write_table(table, tmp_path / "old.parquet")
    assert read_trajectories(tmp_path / "old.parquet") == made


def tally(right: float, judged: int) -> Tally:
    return Tally(judged, round(right * judged))


def test_bots():
    """Worked numbers of BOTS, arXiv 2510.26374."""
    answered, other = problem("1"), problem("2")
    bots = Bots(strong=1.0)
    bots.observe([answered, other], {"p1": tally(0.25, 16)})
    assert bots.beliefs["p1"] == pytest.approx((5.0, 13.0)) and bots.beliefs["p2"] == pytest.approx((1.0, 1.0))
    bots.observe([answered, other], {"p1": tally(0.25, 16)})
    assert bots.beliefs["p1"] == pytest.approx((8.6, 23.8))
    graded = Bots()
    # the answered one was graded .2 and is at .6: half of the way to 1, so the other, graded .2 too, is believed at .6
    graded.observe([replace(answered, pass_rate=0.2), replace(other, pass_rate=0.2)], {"p1": Tally(10, 6)})
    assert graded.capability == pytest.approx(0.5, abs=1e-5) and graded.beliefs["p2"] == pytest.approx((1.96, 1.64), abs=1e-4)
    plain = Bots(forget=0.0, interpolate=0.0)
    plain.beliefs["p1"] = (2.0, 3.0)
    plain.observe([answered], {"p1": tally(0.25, 16)})
    assert plain.beliefs["p1"] == pytest.approx((6.0, 15.0))
    # nearest to the target by the mean of the belief
    pool = [problem(str(n)) for n in range(4)]
    near = Bots(thompson=False)
    near.beliefs = {f"p{n}": (100 * mean, 100 * (1 - mean)) for n, mean in enumerate((0.1, 0.45, 0.52, 0.9))}
    at = Draw(2, (1, "s"), 1, 0, History(Path()))
    assert {p.answer for p in near(pool, at)} == {"1", "2"} == {p.answer for p in draw(pool, [near], at)}


def test_bots_has_its_beliefs_again_after_a_kill(tmp_path):
    pool = [problem(str(n)) for n in range(6)]
    left = Bots()
    history = History(tmp_path)
    drawn = []
    for step in range(1, 6):
        drawn.append([p.answer for p in draw(pool, [left], Draw(2, (1, "s"), step, 0, history))])
        history.tallies[step] = {f"p{answer}": tally(0.5, 4) for answer in drawn[-1]}
    del history.tallies[5]
    again = Bots()
    assert [p.answer for p in draw(pool, [again], Draw(2, (1, "s"), 5, 0, history))] == drawn[4]


def test_the_reward_is_made_of_parts():
    said = ["\\boxed{651}", "\\boxed{7}", "", "it is it is \\boxed{651}"]

    def script(before: str, number: int) -> str:
        return said[number]

    def made(**combine):
        parts = [
            verdict,
            form,
            partial(length, among="group"),
            partial(verifier, part="sixes", verifier="regex", args={"pattern": "6.*"}),
        ]
        (group,) = groups(script, [problem()], count=4, parts=parts, combine=partial(weighted, **combine))
        return group

    group = made()
    assert [t.reward_parts["correct"] for t in group] == [1.0, 0.0, 0.0, 1.0] == [t.reward for t in group]
    assert [t.reward_parts["format"] for t in group] == [1.0, 1.0, 0.0, 1.0] and [t.reward_parts["sixes"] for t in group] == [1.0, 0.0, 0.0, 1.0]
    written = [t.written for t in group]
    shortness = [1 - (count - min(written)) / (max(written) - min(written)) for count in written]
    assert [t.reward_parts["length"] for t in group] == shortness and {0.0, 1.0} < set(shortness)
    assert [t.reward for t in made(weights={"correct": 1.0, "format": 0.5})] == [1.5, 0.5, 0.0, 1.5]
    assert [t.reward for t in made(weights={"correct": 1.0, "length": 1.0}, gates={"format": 1.0}, closed=-1.0)][2] == -1.0
    assert [t.reward for t in made(vetoes={"sixes": 0.5}, vetoed=-2.0)] == [-2.0, 0.0, 0.0, -2.0]
    with pytest.raises(UserError, match="names part 'corect'"):
        made(weights={"corect": 1.0})


def written(count: int) -> Trajectory:
    """An answer of so many tokens, all different."""
    return Trajectory("p", 0, 0, 1, "t", one_turn([1], list(range(count)), [0.0] * count, [0] * count), "stop")


def test_the_cosine_of_open_rs():
    """Worked numbers of 1000 tokens: right 1, .75, .5; wrong -1, -.75, -.5; longer is as long as may be."""
    group = [written(count) for count in (0, 500, 1000, 1200)]

    def at(outcome: Outcome) -> Scoring:
        return Scoring(problem(), [""] * 4, [Verdict(outcome, 0.0)] * 4, None, 1000, {})  # type: ignore[arg-type]  # no verifier is asked

    assert cosine(group, at(Outcome.CORRECT))["cosine"] == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert cosine(group, at(Outcome.UNPARSABLE))["cosine"] == pytest.approx([-1.0, -0.75, -0.5, -0.5])
    assert cosine(group, at(Outcome.WRONG), wrong=(0.0, -10.0))["cosine"] == pytest.approx([0.0, -5.0, -10.0, -10.0])
    assert cosine(group, at(Outcome.INFRASTRUCTURE))["cosine"] == [None] * 4


def test_repetition_is_the_share_of_runs_that_were_there_before():
    """1 2 1 2 1 2: of the five pairs (1 2)(2 1)(1 2)(2 1)(1 2) three are repeated, of the three runs of four one. What a tool says is not counted."""
    turns = [Segment("policy", [1, 2, 1], [0.0] * 3, [0] * 3, True), Segment("tool", [7, 7, 7, 7]), Segment("policy", [2, 1, 2], [0.0] * 3, [0] * 3, True)]
    group = [Trajectory("p", 0, 0, 1, "t", [Segment(PROMPT, [1]), *turns], "stop"), written(6), written(3)]
    at = Scoring(problem(), [""] * 3, [Verdict(Outcome.CORRECT, 1.0)] * 3, None, 64, {})  # type: ignore[arg-type]
    assert repetition(group, at, n=2)["repetition"] == pytest.approx([0.6, 0.0, 0.0])
    assert repetition(group, at)["repetition"] == pytest.approx([1 / 3, 0.0, 0.0])


def test_a_part_that_cannot_be_had_is_infrastructure():
    """A pattern that is none: never 0, and never trained."""
    parts = [verdict, partial(verifier, part="style", verifier="regex", args={"pattern": "("})]
    (group,) = groups(
        lambda before, number: "\\boxed{651}", [problem()], parts=parts, combine=partial(weighted, weights={"correct": 1.0, "style": 1.0})
    )
    assert {t.outcome for t in group} == {"infrastructure"} and "'style'" in group[0].detail and "style" not in group[0].reward_parts


class Forgetful:
    """Asks twice, and the second time not behind what was said, as a template does that cuts earlier thinking."""

    def prompt(self, tokenizer, problem, settings) -> Prompt:
        return SingleTurn().prompt(tokenizer, problem, settings)

    async def run(self, task, path, engine) -> Episode:
        first = await engine.sample(task.prompt.ids, (*task.key, path))
        again = Segment(PROMPT, [*task.prompt.ids, *TOKENIZER("once more", add_special_tokens=False)["input_ids"]])
        second = await engine.sample(again.ids, (*task.key, path, 1))
        return Episode([again, second.segment], "stop", second.text, second.text, earlier=[[*task.start, first.segment]])


def test_a_turn_that_does_not_follow_begins_a_new_trajectory(tmp_path):
    (made,) = groups(lambda before, number: "\\boxed{651}" if "once more" in before else "\\boxed{1}", [problem()], Forgetful(), count=2)
    assert [(t.sample_id, t.part) for t in made] == [(0, 0), (0, 1), (1, 0), (1, 1)] and len({place(t) for t in made}) == 4
    assert all(t.reward == 1.0 and t.response == "\\boxed{651}" for t in made) and "once more" not in TOKENIZER.decode(made[0].prompt_ids)
    history = History(tmp_path)
    history.add(1, made)
    assert history.totals["p651"] == Tally(2, 2) and counts(made)["answered"] == 4.0
    write_trajectories(tmp_path / "a.parquet", made)
    assert read_trajectories(tmp_path / "a.parquet") == made
    (rounds,) = groups(lambda before, number: "\\boxed{651}", [problem()], Forgetful(), explore=partial(adaptive, per_round=4, rounds=1), count=2)
    assert [(t.sample_id, t.part, t.dropped) for t in rounds if not t.dropped] == [(0, 0, ""), (0, 1, ""), (1, 0, ""), (1, 1, "")]
