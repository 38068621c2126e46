"""Rows that learn from answers which go on from the beginnings of others, against hand-computed numbers."""

import functools
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import loops
import pytest
import torch
from killing import Killed
from loops import IN_FLIGHT, ONE_AHEAD, TOKENIZER, policy_of, run, settings
from playing import groups, problem

from pipelines import graph, paths
from pipelines.config import Params
from pipelines.config.common import GenerationSettings, PromptSettings
from pipelines.errors import UserError
from pipelines.generation import Request, ScriptedGenerator
from pipelines.models.loading import save_policy
from pipelines.records import GUIDE, POLICY, PROMPT, Outcome, Segment, Trajectory, cut
from pipelines.rl import advantages, objective, recipe
from pipelines.rl import run as run_of_stage
from pipelines.rl.account import training
from pipelines.rl.clock import Clock
from pipelines.rl.collate import minibatches, tensors
from pipelines.rl.costs import cost, needs
from pipelines.rl.demands import Need
from pipelines.rl.environments import SingleTurn
from pipelines.rl.episodes import Asking
from pipelines.rl.history import History
from pipelines.rl.later import Later
from pipelines.rl.ledger import Ledger
from pipelines.rl.recompose import Recomposition
from pipelines.rl.recompose.auto_npo import stalls, weight_cost, worth
from pipelines.rl.recompose.corrected_prefixes import right_steps
from pipelines.rl.recompose.critical_tokens import candidates
from pipelines.rl.recompose.feedback import BEHAVIOURS, working
from pipelines.rl.recompose.interventions import intervention
from pipelines.rl.run import answerers
from pipelines.rl.schedule import Source
from pipelines.stages import rl
from pipelines.store import read_trajectories
from pipelines.verifiers import VerifierPool

ASKING = Asking(SingleTurn(), TOKENIZER, PromptSettings())
ONE = problem("651", solution="200 * 3 = 600.\n\n17 * 3 = 51.\n\n600 + 51 = 651.")
ROOMY = GenerationSettings(max_new_tokens=96)


@functools.cache
def verifiers() -> VerifierPool:
    """One for all tests here."""
    return VerifierPool()


@pytest.fixture(scope="module", autouse=True)
def closed():
    yield
    verifiers().close()
    verifiers.cache_clear()


def close(got, expected, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(got).double(), torch.as_tensor(expected).double(), atol=atol, rtol=0)


def said(text: str, number: int = 0, group_id: int = 0, one=ONE) -> Trajectory:
    """An answer of the policy."""
    ids = [*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    segments = [Segment(PROMPT, ASKING.prompt(one).ids), Segment(POLICY, ids, [-0.1] * len(ids), [0] * len(ids), trains=True)]
    right = f"\\boxed{{{one.answer}}}" in text
    outcome = (Outcome.CORRECT if right else Outcome.WRONG).value
    return Trajectory(
        one.problem_id, group_id, number, 1, "t", segments, "stop", None, text, outcome, reward=float(right), reward_parts={"correct": float(right)}
    )


def speaking(script) -> ScriptedGenerator:
    """script(text of all before, number of the draw) -> what is said next."""
    return ScriptedGenerator(TOKENIZER, ROOMY, lambda request, number: script(TOKENIZER.decode(request.prompt_ids), number))


def recomposed(row: str, rollouts, folder: Path, *others, script=None, foresee=None, tokens=None, problems=(ONE,), longest=None, held=None, **settings_):
    """What a row's first `recompose` makes of answers, with real verifiers; the policy goes on as `script` says."""
    made = recipe(row, recompose=[{**recipe(row).slots["recompose"][0], **settings_}])
    by_id = {p.problem_id: p for p in problems}
    answering, examining = answerers(made, speaking(script), verifiers())
    source = Source(answering, examining, by_id, lambda step, number: [], settings(), (1, "t"), Ledger(folder / "ledger"))
    asking = ASKING if longest is None else replace(ASKING, longest=longest)
    at = Recomposition(
        1, (1, "t"), by_id, History(folder), answering.rewards, None, asking, foresee, None,
        lambda name, begun: source.continued(1, Clock(), name, begun), tokens, {} if held is None else held,
    )  # fmt: skip
    return made.lists["recompose"][0](rollouts, at, *others)


def of_row(row: str, rollouts) -> list[float]:
    """An advantage for each response that trains."""
    _, _, made = tensors(training(rollouts), torch.device("cpu"), 1, 96)
    found = advantages(recipe(row), made)
    return (found.sum(1) / made.mask_BT.sum(1)).tolist()


def text(segment: Segment) -> str:
    return TOKENIZER.decode(segment.ids)


STEPS = "200 * 3 = 600\n17 * 3 = 51\n600 + 51 = 641\nIt is \\boxed{641}"
"""A wrong answer in four steps, of which the first two are right."""


def test_scope(tmp_path):
    """Scores .9 .8 .2 .7: the first two steps stay; .9 .8 .6 .7: none is below .5; .2 first: nothing stays. The longest beginnings come first."""
    assert [right_steps(scores, 0.5) for scores in ([0.9, 0.8, 0.2, 0.7], [0.9, 0.8, 0.6, 0.7], [0.2, 0.9])] == [2, 4, 0]

    table = {"200 * 3": [0.9, 0.8, 0.2, 0.7], "200 * 4": [0.9, 0.3, 0.2, 0.7], "500 * 3": [0.2, 0.8, 0.8, 0.7]}

    def scored(asked):
        beginnings = [TOKENIZER.decode(ids) for _, _, ids in asked]
        return [table[said[:7]][said[:-1].count("\n")] for said in beginnings]

    guide = speaking(lambda before, number: "600 + 51 = 651\n\\boxed{651}" if before.endswith("51\n") else "\\boxed{1}")
    rollouts = [said(STEPS), said(STEPS.replace("200 * 3", "200 * 4"), 1), said(STEPS.replace("200 * 3", "500 * 3"), 2), said("\\boxed{651}", 3)]
    made = recomposed("scope", rollouts, tmp_path, guide, foresee=scored)
    assert [t.dropped for t in made] == ["replaced", "", "", "", "", "spare"] and [t.sample_id for t in made[4:]] == [4, 5]
    first, second = made[4:]
    assert [s.author for s in first.segments] == [PROMPT, POLICY, GUIDE] and all(s.trains for s in first.turns)
    assert text(first.segments[1]) == "200 * 3 = 600\n17 * 3 = 51\n" and text(second.segments[1]) == "200 * 4 = 600\n"
    assert first.segments[1].logp == [-0.1] * len(first.segments[1].ids) and first.origin == first.policy == GUIDE
    assert first.response == "200 * 3 = 600\n17 * 3 = 51\n600 + 51 = 651\n\\boxed{651}" and (first.reward, second.reward) == (1.0, 0.0)
    assert [t.origin for t in recomposed("scope", rollouts, tmp_path, guide, foresee=scored, most=1)] == [POLICY] * 4 + [GUIDE]
    assert recomposed("scope", rollouts[:1], tmp_path, guide, foresee=lambda asked: [0.9, 0.8, 0.6, 0.7]) == rollouts[:1]
    assert recomposed("scope", rollouts[:1], tmp_path, guide, foresee=lambda asked: [0.9, 0.8, 0.2, 0.7], longest=10) == rollouts[:1]  # no room
    close(of_row("scope", made), [-0.866025, -0.866025, 0.866025, 0.866025], atol=1e-3)
    assert needs(recipe("scope")) == {Need.POLICY} and cost(recipe("scope")).answers == (8, 10)
    with pytest.raises(UserError, match="recompose 'corrected_prefixes' has answers of one turn go on, and those of environment 'tools' may"):
        recipe("scope", environment={"name": "tools"})


def test_cure(tmp_path):
    """4 answers and 12 that go on from 3 of each: 16; the first token is never drawn, nor one of a character; of the others the likeliest to branch."""
    ids = [*TOKENIZER("<think> </think>\\boxed{", add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    assert [TOKENIZER.decode([token]) for token in ids] == ["<think>", " ", "</think>", "\\boxed{", "<|end|>"]
    assert candidates(TOKENIZER, ids, [9.0, 5.0, 0.1, 0.2, 7.0], 20) == [3, 2] and candidates(TOKENIZER, ids, [9.0, 5.0, 0.1, 0.2, 7.0], 1) == [3]
    rollouts = [said(f"<think> {word} </think>\\boxed{{{number}}}", n) for n, (word, number) in enumerate([("a", 1), ("b", 2), ("c", 3), ("d", 651)])]
    asked = []

    def entropies(name, answers):
        assert name == "entropy_old_BT"
        asked.extend(answers)
        return [[float(place) for place in range(len(t.response_ids))] for t in answers]

    made = recomposed(
        "cure", rollouts, tmp_path, script=lambda before, number: "\\boxed{651}" if number == 1 else "\\boxed{1}", tokens=entropies, top=1
    )
    assert made[:4] == rollouts == asked and [t.sample_id for t in made] == list(range(16)) and {t.group_id for t in made} == {0}
    for place, t in enumerate(made[4:]):
        first, opening, rest = t.segments
        whole = rollouts[place // 3].response_ids
        assert first.ids == rollouts[0].prompt_ids and opening == Segment(GUIDE, whole[: len(opening.ids)]) and rest.author == POLICY and rest.trains
        assert TOKENIZER.decode(whole[len(opening.ids) :][:1]) == "\\boxed{" and t.reward == float(place % 3 == 1)
        assert t.response == f"<think> {'abcd'[place // 3]} </think>" + ("\\boxed{651}" if place % 3 == 1 else "\\boxed{1}")
    close(of_row("cure", made), [1.436139 if t.reward else -0.652790 for t in made], atol=1e-4)  # 5 of 16 right, ddof 1
    again = recomposed("cure", rollouts, tmp_path, script=lambda before, number: "never asked", tokens=entropies, top=1)
    assert again == made  # the ledger has it
    trains = recomposed("cure", rollouts, tmp_path / "t", script=lambda before, number: "\\boxed{1}", tokens=entropies, top=1, trains=True)
    assert trains[4].turns[0] == cut(rollouts[0].turns, len(made[4].turns[0].ids))[0] and trains[4].turns[0].trains
    few = recomposed("cure", rollouts, tmp_path / "f", script=lambda before, number: "no", tokens=entropies, longest=1)
    assert few == rollouts  # the first is never drawn, the second is a space
    assert cost(recipe("cure"), 4).answers == (4, 16) and cost(recipe("cure")).passes == ("the policy on its answers",)


def test_auto_npo(tmp_path, start):
    """S of the worked checkpoints is highest for the second; it guides from there until the run has passed it, and nobody looks again for 20 steps."""
    values = worth([0.10, 0.25, 0.30], [1.2, 1.5, 2.5])
    assert values == pytest.approx([0.083333, 0.166667, 0.12], abs=1e-6) and weight_cost([math.log(0.5), math.log(1.5)]) == pytest.approx(1.25)
    bounds = {"window": 20, "slope": 1e-3, "failing": 0.5, "unsure": 0.5}
    rising = [0.01 * n for n in range(20)]
    assert stalls([0.3] * 20, 0.5, 1.0, **bounds) and not stalls([0.3] * 19, 0.5, 1.0, **bounds) and not stalls(rising, 0.5, 0.5, **bounds)
    assert stalls(rising, 0.51, 1.0, **bounds) and stalls(rising, 0.0, 0.49, **bounds)
    kept = Later({step: Path(str(step)) for step in (5, 10, 15, 20, 25)}, lambda folder: speakers[folder.name])
    assert kept.near(7, (5, 10, 20)) == [10, 15, 25] and kept.near(1, (5, 10, 20)) == [5, 10, 20] and kept.near(25, (5,)) == []
    right = {"5": 1, "10": 3, "20": 4}
    speakers = {name: speaking(lambda before, n, share=share: "\\boxed{651}" if n % 4 < share else "\\boxed{1}") for name, share in right.items()}
    gaps = {"5": 0.0, "10": 0.5, "20": 2.0}

    def tokens(name, answers):
        """The policy holds the answers of a later checkpoint for less likely, the even ones of them."""
        assert name == "logp_old_BT"
        gap = gaps[["5", "10", "20"][(answers[0].sample_id - 8) // 4]]
        return [[-gap if t.sample_id % 2 else 0.0] * len(t.response_ids) for t in answers]

    rollouts, held = [said("\\boxed{1}", n) for n in range(4)] + [said("\\boxed{651}", n, 1) for n in range(4)], {}
    made = recomposed("auto_npo", rollouts, tmp_path, kept, tokens=tokens, held=held, failing=0.4)
    cost_of = [1 + ((1 - math.exp(-gap)) / 2) ** 2 for gap in gaps.values()]
    found = worth([0.25, 0.75, 1.0], cost_of)
    assert found == pytest.approx([0.25, 0.722, 0.8427], abs=1e-3) and held["npo_looked"] == 1 and held["npo_guide"] == 20
    assert [t.dropped for t in made if t.origin == GUIDE and not t.dropped] == [""] and sum(t.dropped == "spare" for t in made) == 3 + 12
    assert Counter(t.dropped for t in made if t.origin == POLICY) == {"": 7, "replaced": 1} and len({(t.group_id, t.sample_id) for t in made}) == len(made)
    again = recomposed("auto_npo", rollouts, tmp_path, kept, held=held, failing=0.4)  # no look ahead: tokens would be called
    assert len(again) == 8 + 4
    passed = {"npo_looked": 0.0, "npo_guide": 1.0, "npo_first": 0.1}
    assert recomposed("auto_npo", rollouts, tmp_path, kept, held=passed, failing=0.4) == rollouts  # no later one any more
    assert recomposed("auto_npo", rollouts, tmp_path, kept, held={}) == rollouts  # half of the groups are not more than half
    few = recomposed("auto_npo", rollouts, tmp_path, kept, tokens=tokens, held=(dear := {}), failing=0.4, at_most=1.0, gain=2.0)
    assert dear["npo_guide"] == 0 and all(t.dropped == "spare" for t in few[8:])  # the policy itself has half of them right
    close(of_row("auto_npo", [t for t in training(made) if t.group_id == 0]), [-0.5] * 3 + [1.5], atol=1e-3)
    assert needs(recipe("auto_npo")) == {Need.POLICY} and cost(recipe("auto_npo")).answers == (8, 24)


def test_a_stage_names_what_kept_later_checkpoints():
    for row, later, words in (("auto_npo", None, "name the stage that kept them under `later`"), ("grpo", "one", "reads no `later`")):
        stage = settings(recipe=row, later=later)
        assert stage.models_read == (("sft", "one") if later else ("sft",))
        assert (paths.KEPT / "one" in graph.stage("t", "rl", stage).reads) == bool(later)
        with pytest.raises(UserError, match=f"t: recipe '{row}' .*{words}"):
            rl.run(SimpleNamespace(settings=stage, stage="t"))
    first = {"kind": "rl", "init": "base", "data": "curation/rl"}
    content = {
        "seed": 1,
        "sources": {"train": {"a": {"kind": "arithmetic", "count": 9}}, "benchmarks": {"b": {"kind": "arithmetic", "count": 2}}},
        "stages": {"first": first, "second": first | {"recipe": "auto_npo", "later": "first"}},
        "evaluation": {"gate": {"candidate": "second", "against": "first", "improve": ["b"]}},
    }
    with pytest.raises(ValueError, match="later: 'first' keeps no weights along its training; give a stage that trains `keep"):
        Params.model_validate(content)
    content["stages"]["first"] = first | {"keep": {"every": 5}}
    stages = graph.graph(Params.model_validate(content))
    assert stages["first"].feeds(stages["second"]) and list(stages).index("first") < list(stages).index("second")


def test_what_a_stage_kept_speaks(tmp_path, learnt, start):
    save_policy(tmp_path / paths.model("sft"), learnt, TOKENIZER)
    for step in (5, 10):
        save_policy(tmp_path / paths.KEPT / "first" / f"step-{step:06d}", policy_of(start), TOKENIZER)
    later = rl._later(SimpleNamespace(root=tmp_path, stage="t", settings=settings(later="first")), "first", "cpu")
    assert later.near(2, (5,)) == [5]
    prompt = tuple(ASKING.prompt(loops.PROBLEMS[0]).ids)
    (theirs,), (ours,) = (g.generate([Request(prompt, 1, (1, "t"))])[0] for g in (later.generator(10), loops.speaker(policy_of(start))))
    assert theirs.token_ids == ours.token_ids and theirs.text.startswith("<think>")


TRACE = "<think> 200 * 3 = 600\n\n17 * 3 = 41\n\n600 + 41 = 641 </think>\\boxed{641}"


def test_int(tmp_path):
    """The second of three steps is mended: it trains with the first, and nothing after. With the final answer in it, or 0 of 32 right, it does not."""
    assert intervention("2: 17 * 3 = 51", 3, "651") == (1, "17 * 3 = 51") and intervention("Step 1. Add.", 3, "651") == (0, "Add.")
    assert [intervention(reply, 3, "651") for reply in ("2: so it is \\boxed{651}", "4: no", "0: no", "", "second: no", "2:")] == [None] * 6
    heard = []

    def mends(before: str, number: int) -> str:
        heard.append(before)
        return "2: 17 * 3 = 51"

    def goes_on(before: str, number: int) -> str:
        return " </think>\\boxed{651}" if before.endswith("17 * 3 = 51") and number == 30 else " </think>\\boxed{1}"

    rollouts = [said(TRACE), said(TRACE, 1), said("\\boxed{651}", 0, 1), said(TRACE, 1, 1)]
    made = recomposed("int", rollouts, tmp_path, speaking(mends), script=goes_on)
    assert made[:4] == rollouts and len(made) == 4 + 32 + 1 and len(heard) == 1
    assert "1: 200 * 3 = 600\n2: 17 * 3 = 41\n3: 600 + 41 = 641" in heard[0] and ONE.solution in heard[0]
    assert {(t.group_id, t.dropped) for t in made[4:36]} == {(0, "probe")} and [t.sample_id for t in made[4:36]] == list(range(2, 34))
    taught = made[36]
    assert (taught.group_id, taught.origin, taught.policy, taught.dropped) == (2, GUIDE, GUIDE, "") and taught.written == 0
    assert [(s.author, s.trains, TOKENIZER.decode(s.ids)) for s in taught.turns] == [
        (GUIDE, True, "<think> 200 * 3 = 600\n\n"), (GUIDE, True, "17 * 3 = 51"),
    ]  # fmt: skip
    assert minibatches(training(made), 1) == [[0, 1], [2]]
    alone = training(recomposed("int", rollouts, tmp_path / "b", speaking(mends), script=goes_on, beginning_trains=False))[-1]
    assert [s.trains for s in alone.turns] == [False, True] and alone.response == taught.response
    assert len(recomposed("int", rollouts, tmp_path / "n", speaking(mends), script=lambda before, number: "\\boxed{1}")) == 36  # 0 of 32
    for leaves in ("2: it is \\boxed{651}", "<think> 2: 17"):
        assert recomposed("int", rollouts, tmp_path / "l", speaking(lambda before, number, said=leaves: said)) == rollouts
    assert recomposed("int", rollouts, tmp_path / "s", speaking(mends), problems=(replace(ONE, solution=None),)) == rollouts
    _, _, whole = tensors([made[0], made[1], taught], torch.device("cpu"), 1, 96)
    guided = whole.having(guided_BT=whole.mask_BT * torch.tensor([0.0, 0, 1])[:, None])
    found = advantages(recipe("int"), guided)
    close(found.sum(1) / whole.mask_BT.sum(1), [0.0, 0.0, 1.0])
    last = guided.having(advantage_BT=found).rows(torch.tensor([2]))
    leaf = torch.full_like(last.mask_BT, -0.4).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(recipe("int"), last.having(logp_old_BT=leaf.detach()), leaf)[0], leaf)
    close(gradient, -last.mask_BT / last.mask_BT.sum())  # of -mean_t log pi
    assert needs(recipe("int")) == {Need.POLICY, Need.SOLUTIONS} and cost(recipe("int")).answers == (8, 40)


def test_think_tuning(tmp_path, start):
    """Probability 1: every group has guided members, whose comments train where A > 0 alone; 0: GRPO, bit by bit."""
    ids = [*TOKENIZER("<think> a b </think>\\boxed{1}", add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    assert TOKENIZER.decode(ids[: working(TOKENIZER, ids)]) == "<think> a b " and working(TOKENIZER, ids[:3]) == 3
    heard = []

    def advises(before: str, number: int) -> str:
        heard.append(before)
        return "<think> </think>Look at 17 * 3 again." if "34" in before.rpartition("Working so far:")[2] else ""

    guide = speaking(advises)
    rollouts = [said("<think> 17 * 3 = 34 </think>\\boxed{634}"), said("<think> 17 * 3 = 41 </think>\\boxed{641}", 1)]
    script = lambda before, number: " 17 * 3 = 51 </think>\\boxed{651}" if "Look" in before else "never asked"  # noqa: E731
    made = recomposed("think_tuning", rollouts, tmp_path, guide, script=script, share=1.0)
    assert [t.dropped for t in made] == ["replaced", "", ""] and [t.sample_id for t in made] == [0, 1, 2]
    guided = made[2]
    assert [(s.author, s.trains) for s in guided.segments] == [(PROMPT, False), (POLICY, True), (GUIDE, True), (POLICY, True)]
    assert guided.response == "<think> 17 * 3 = 34 \nLook at 17 * 3 again.\n 17 * 3 = 51 </think>\\boxed{651}"
    assert guided.turns[0].logp == [-0.1] * len(guided.turns[0].ids) and guided.origin == POLICY and guided.reward == 1.0
    asked_for = [next(name for name, words in BEHAVIOURS.items() if f"voice: {words}." in before.rpartition("Working so far:")[2]) for before in heard]
    assert len(asked_for) == 2 and all(before.count("Working so far:") == 3 for before in heard)  # two examples
    _, _, whole = tensors(training(made), torch.device("cpu"), 1, 96)
    comment = torch.zeros_like(whole.mask_BT)
    first = len(guided.prompt_ids) + len(guided.turns[0].ids)
    comment[1, first : first + len(guided.turns[1].ids)] = 1.0
    assert int(whole.mask_BT[1].sum()) == len(guided.response_ids)
    for rewards, held in (([0.0, 1.0], 1.0), ([1.0, 0.0], 0.0)):
        filled = whole.having(reward_B=torch.tensor(rewards), guided_BT=comment)
        filled = filled.having(advantage_BT=advantages(recipe("think_tuning"), filled), logp_old_BT=torch.full_like(comment, -0.7))
        close(filled.advantage_BT.sum(1) / filled.mask_BT.sum(1), [0.707106 * (2 * r - 1) for r in rewards], atol=1e-3)
        leaf = torch.full_like(comment, -0.7).requires_grad_()
        (gradient,) = torch.autograd.grad(objective(recipe("think_tuning"), filled, leaf)[0], leaf)
        assert bool((gradient * comment).any()) == bool(held) and bool((gradient * (1 - comment))[1].any())
    assert recomposed("think_tuning", rollouts, tmp_path / "n", speaking(lambda before, number: "never asked"), share=0.0) == rollouts
    none = {"overrides": {"recompose": [{"name": "feedback", "share": 0.0}]}, "steps": 2}
    plain, tuned = run(tmp_path / "grpo", start, row="grpo", steps=2), run(tmp_path / "tuned", start, row="think_tuning", **none)
    assert all(torch.equal(plain[0][name], tuned[0][name]) for name in plain[0])


def test_an_answer_is_forced_where_the_thought_uses_up_its_tokens():
    """Of 40 tokens 12 are left: a thought that goes on is closed and the answer opened, one that has ended goes on by itself, a short one is whole."""
    environment = recipe("rlcs", environment={"name": "forced_answer", "tokens": 12}).single["environment"]()
    made = {}
    for name, first in (("forced", "<think> " + "1 + " * 40), ("open", "<think> 1 + 1 </think> " + "so " * 40), ("short", "\\boxed{651}")):
        second = "651}" if name == "forced" else "\\boxed{651}"
        script = lambda before, number, first=first, second=second: second if "1 +" in before else first  # noqa: E731
        ((made[name], _),) = groups(script, [ONE], environment, settings=GenerationSettings(max_new_tokens=40))
    closing = TOKENIZER("</think>\\boxed{", add_special_tokens=False)["input_ids"]
    forced = made["forced"]
    assert [(s.author, s.trains) for s in forced.segments] == [(PROMPT, False), (POLICY, True), (GUIDE, False), (POLICY, True)]
    assert len(forced.turns[0].ids) == 28 and forced.turns[1].ids == closing and forced.outcome == "correct" and forced.finish_reason == "stop"
    assert forced.response == "<think> 1 + 1 + 1 + 1 + 1 + 1 + 1 </think>\\boxed{651}"
    assert [s.author for s in made["open"].segments] == [PROMPT, POLICY, POLICY] and made["open"].outcome == "correct"
    assert [s.author for s in made["short"].segments] == [PROMPT, POLICY] and made["short"].outcome == "correct"
    assert {name: t.reward_parts["forced"] for name, t in made.items()} == {"forced": 1.0, "open": 0.0, "short": 0.0}
    _, _, whole = tensors([forced], torch.device("cpu"), 1, 40)
    assert int(whole.mask_BT.sum()) == len(forced.response_ids) - len(closing) <= 40 - len(closing)
    tight = groups(lambda before, number: "<think> " + "1 + " * 40, [ONE], environment, settings=GenerationSettings(max_new_tokens=4))[0][0]
    assert [s.author for s in tight.segments] == [PROMPT, POLICY] and tight.finish_reason == "length"  # no room for an answer at all


def test_beginnings_are_cut_inside_segments():
    parts = [Segment(GUIDE, [1, 2]), Segment(POLICY, [3, 4, 5], [-1.0, -2.0, -3.0], [0, 0, 1], trains=True)]
    assert cut(parts, 4) == (parts[0], Segment(POLICY, [3, 4], [-1.0, -2.0], [0, 0], trains=True)) and cut(parts, 2) == (parts[0],) and cut(parts, 0) == ()


KILLED = {
    "scope": {"overrides": {"recompose": [{"name": "corrected_prefixes", "delimiters": [">"]}]}},
    "cure": {"schedule": IN_FLIGHT, "group_size": 2},
    "think_tuning": {"schedule": ONE_AHEAD},
    "auto_npo": {"overrides": {"recompose": [{"name": "auto_npo", "ahead": [1, 2, 3], "window": 2, "failing": 0.0, "gain": 0.0, "at_most": 0.5}]}},
    "int": {"group_size": 2, "overrides": {"recompose": [{"name": "interventions", "continuations": 4}]}},
}  # fmt: skip


@pytest.mark.parametrize("row", KILLED)
def test_a_run_that_was_killed_ends_as_one_left_alone(tmp_path, start, row, monkeypatch):
    """With answers so short, the first token counts as a right step and the others as a wrong one."""
    monkeypatch.setattr(loops, "PROBLEMS", [replace(p, solution="1 + 1 = 2") for p in loops.PROBLEMS])
    monkeypatch.setattr(sys.modules["pipelines.rl.recompose.interventions"], "ASKED", "{steps}")
    monkeypatch.setattr(sys.modules["pipelines.rl.recompose.interventions"], "intervention", lambda reply, steps, answer: (0, "<think>"))
    for name, value in (("ASKED", "{working}{behaviour}"), ("BEHAVIOURS", {"again": "?"}), ("SHOTS", ())):  # its context is short, too
        monkeypatch.setattr(sys.modules["pipelines.rl.recompose.feedback"], name, value)
    monkeypatch.setattr(run_of_stage, "foreseen", lambda actor, settings, asked: [0.9 if len(ids) == 1 else 0.1 for _, _, ids in asked])
    changes = {"row": row, "steps": 4, **KILLED[row]}
    whole = run(tmp_path / "whole", start, **changes)
    with pytest.raises(Killed):
        run(tmp_path / "cut", start, stop_at=3, **changes)
    again = run(tmp_path / "cut", start, **changes)
    assert whole[1:] == again[1:] and all(torch.equal(whole[0][name], again[0][name]) for name in whole[0])
    assert all(torch.isfinite(value).all() for value in whole[0].values()) and len(whole[1]) == 4
    assert all(line["answered"] + line["replayed"] + line["guided"] == line["trained"] + line["dropped"] for line in whole[1])
    shapes = Counter(
        tuple(s.author for s in t.turns) for path in (tmp_path / "whole" / "rollouts").iterdir() for t in read_trajectories(path) if not t.dropped
    )
    assert shapes[WANTED[row]], shapes


WANTED = {"scope": (POLICY, GUIDE), "cure": (GUIDE, POLICY), "think_tuning": (POLICY, GUIDE, POLICY), "int": (GUIDE,), "auto_npo": (GUIDE,)}
"""What a run of the row must have had train: the authors of a response in turn."""
