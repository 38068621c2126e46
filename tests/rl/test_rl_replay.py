"""What is answered again: rows of replay, recomposition, rehearsal and sharing against hand-computed numbers; killed and resumed, on two ranks, and
between two processes over a folder."""

import json
import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import loops
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from batches import batch
from killing import Killed
from loops import IN_FLIGHT, PROBLEMS, TOKENIZER, beside, policy_of, run, settings
from playing import problem

from pipelines import tables
from pipelines.config.common import ClasspSettings, GenerationSettings, OptimiserSettings
from pipelines.errors import UserError
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.optimisation import Classp
from pipelines.models.sharding import weights
from pipelines.progress import Journal
from pipelines.records import Outcome, Trajectory, one_turn
from pipelines.rl import advantages, objective, recipe
from pipelines.rl.account import by_group, drop, training
from pipelines.rl.collate import tensors
from pipelines.rl.history import History, Tally
from pipelines.rl.recompose import Recomposition, dynamic_sampling, prioritised_replay, replay, response_recomposition
from pipelines.rl.recompose.swarm import FOLDER, read
from pipelines.rl.tasks import Draw, Rehearsal, draw
from pipelines.rl.train import train
from pipelines.store import read_trajectories, write_trajectories


def answer(group: int, sample: int, right: bool, tokens: int = 1, step: int = 1) -> Trajectory:
    outcome = Outcome.CORRECT if right else Outcome.WRONG
    segments = one_turn([1], [2] * tokens, [-0.1] * tokens, [step - 1] * tokens)
    return Trajectory("p", group, sample, step, "t", segments, "stop", response=f"{group}.{sample}", outcome=outcome.value, reward=float(right))


def at(step: int, folder: Path, more=None, seed: int = 1) -> Recomposition:
    return Recomposition(step, (seed, "t"), {}, History(folder), None, more, None, None)  # type: ignore[arg-type]


def keep(folder: Path, step: int, trajectories) -> None:
    write_trajectories(folder / f"step-{step:06d}.parquet", trajectories)


def advantage(row: str, right: int, of: int = 8) -> list[float]:
    """Of a right and of a wrong answer in a group of which so many are right."""
    made = batch(torch.tensor([1.0] * right + [0.0] * (of - right)), torch.zeros(of, dtype=torch.long))
    found = advantages(recipe(row), made)[:, 0]
    return [float(found[0]), float(found[-1])]


def test_confucius3(tmp_path):
    """A batch of four, six valid groups: the fifth and the sixth head the next step, a step old. Advantages of 1, 4 and 7 of 8."""
    groups = [[answer(g, s, s == 0) for s in range(2)] for g in range(4)]
    further = [[answer(4 + g, s, s == 0) for s in range(2)] for g in range(3)]
    first = [r for g in (0, 1, 2) for r in groups[g]] + [replace(r, outcome="wrong") for r in groups[3]]
    drawn = dynamic_sampling(first, at(1, tmp_path, lambda number: [r for group in further for r in group]), recover=True)
    assert {r.group_id: r.dropped for r in drawn} == {0: "", 1: "", 2: "", 3: "uniform", 4: "", 5: "full", 6: "full"}
    keep(tmp_path, 1, drawn)
    now = [replace(r, step=2) for group in groups for r in group]
    second = dynamic_sampling(now, at(2, tmp_path), recover=True)
    assert [(r.group_id, r.origin, 2 - r.step, r.response) for r in second[:4]] == [
        (-2, "replay", 1, "5.0"), (-2, "replay", 1, "5.1"), (-1, "replay", 1, "6.0"), (-1, "replay", 1, "6.1"),
    ]  # fmt: skip
    assert {r.group_id for r in training(second)} == {-2, -1, 0, 1} and {r.group_id for r in second if r.dropped == "full"} == {2, 3}
    for right, expected in ((1, [2.534, -0.362]), (4, [1.256, -1.256]), (7, [0.266, -1.862])):
        assert advantage("confucius3", right) == pytest.approx(expected, abs=1e-6)
    combine = recipe("confucius3").single["combine"]
    parts = {"correct": 1.0, "format": 1.0, "repetition": 0.1}
    assert combine(parts) == 1.0 and combine(parts | {"repetition": 0.5}) == combine(parts | {"format": 0.0}) == combine(parts | {"correct": 0.0}) == 0.0


def test_rorecomp(tmp_path):
    """Four right and four wrong of 1 to 4 tokens, half kept: right 1 and 2, wrong 3 and 4 train; the others wait, and train once."""
    pool = [answer(0, s, right=True, tokens=1 + s) for s in range(4)] + [answer(1, s, right=False, tokens=1 + s) for s in range(4)]

    def step(number: int, **settings):
        now = [replace(r, step=number) for r in pool]
        out = response_recomposition(now, at(number, tmp_path), keep=0.5, **settings)
        keep(tmp_path, number, out)
        assert len([r for r in out if r.origin == "policy"]) == 8  # nothing is lost
        return out

    first = step(1, decay=1.0)
    assert [(r.group_id, r.written) for r in training(first)] == [(0, 1), (0, 2), (1, 3), (1, 4)]
    assert [(r.group_id, r.written) for r in first if r.dropped == "buffered"] == [(0, 3), (0, 4), (1, 1), (1, 2)]
    trained = [(r.step, r.response) for number in (2, 3, 4) for r in step(number, decay=1.0) if r.origin == "replay"]
    assert len(trained) == len(set(trained)) == 12 and {s for s, _ in trained} == {1, 2, 3}  # each step's at once, each once
    assert [step(number, chance=0.0) for number in (5, 6)] and all(r.origin == "policy" for r in step(7, chance=0.0))
    back = [r for r in step(8, decay=1.0) if r.origin == "replay"]
    assert Counter(r.step for r in back) == {7: 4}  # in all steps before it, by these settings, what waited was taken
    late = [r for r in response_recomposition(pool, at(8, tmp_path, seed=3), keep=0.5, chance=0.5, decay=1.0, last=3) if r.origin == "replay"]
    assert {r.step for r in late} <= {5, 6, 7} and len({r.group_id for r in late}) == 2 * len({r.step for r in late})
    # one in group 0 of four right, one in group 1: the baseline is of the whole group, whatever trains of it
    mixed = [answer(0, s, right=s == 0, tokens=1 + s) for s in range(4)]
    made = training(response_recomposition(mixed, at(1, tmp_path), keep=0.5))
    assert [r.reward_parts["pool_mean"] for r in made] == [0.25] * 3 and [r.sample_id for r in made] == [0, 2, 3]
    pooled = batch(torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3).long(), pool_mean_B=torch.full((3,), 0.25))
    assert advantages(recipe("rorecomp"), pooled)[:, 0].tolist() == [0.75, -0.25, -0.25]


def test_the_chance_of_a_compensation_batch_falls(tmp_path):
    """0.98^(step - 1), keyed by seed and step: in 400 seeds about all at step 1, half of them at step 35, a seventh at step 100."""
    for step, expected in ((2, 0.98), (35, 0.503), (100, 0.135)):
        for number in range(max(1, step - 1), step):
            keep(tmp_path, number, [drop(answer(0, 0, right=False, step=number), "buffered")])
        found = [response_recomposition([], at(step, tmp_path, seed=seed), last=1) for seed in range(400)]
        assert sum(bool(r) for r in found) / 400 == pytest.approx(expected, abs=0.07)


def test_prioritised_replay(tmp_path):
    """p (1 - p) 0.9^age: of a group at one half one step ago and one at 1/4 two steps ago, .225 to .151875; the ratio is to what sampled them."""
    keep(tmp_path, 1, [answer(0, s, right=s < 1, step=1) for s in range(4)])
    keep(tmp_path, 2, [answer(0, s, right=s < 2, step=2) for s in range(4)])
    now = [answer(g, s, right=g > 0, step=3) for g in range(4) for s in range(4)]
    drawn = [[r for r in prioritised_replay(now, at(3, tmp_path, seed=seed)) if r.origin == "replay"] for seed in range(500)]
    assert all(len(group) == 4 and {r.group_id for r in group} == {0} for group in drawn)  # a quarter of four groups, the first of one outcome
    assert sum(group[0].step == 2 for group in drawn) / 500 == pytest.approx(0.225 / 0.376875, abs=0.06)
    row, logp = recipe("prioritised_replay"), torch.tensor([[-1.0], [-1.0]])
    made = batch(torch.tensor([1.0, 0.0]), torch.zeros(2).long(), logp_roll_BT=torch.tensor([[-1.1], [-1.3]]), logp_old_BT=logp)
    made = made.having(advantage_BT=advantages(row, made))
    loss, _ = objective(row, made, logp)
    ahead = 1 / (math.sqrt(0.5) + 1e-6) / 2
    assert float(loss) == pytest.approx(-ahead * (math.exp(0.1) - math.exp(0.3)) / 2, abs=1e-5)  # the wrong one is beyond 1.2, where it is not clipped


def test_what_was_answered_for_comparison_is_not_replayed(tmp_path):
    """Greedy answers, spare ones and those that nobody could judge stay where they are; what gave way to others may come back."""
    old = [answer(0, s, right=s < 2) for s in range(6)]
    reasons = ["", "replaced", "probe", "spare", "infrastructure", "uniform"]
    keep(tmp_path, 1, [drop(r, reason) if reason else r for r, reason in zip(old, reasons, strict=True)])
    now = [answer(g, s, right=False, step=2) for g in range(2) for s in range(2)]
    for made in (replay(now, at(2, tmp_path), probability=1.0), prioritised_replay(now, at(2, tmp_path), share=0.5)):
        again = [r.sample_id for r in made if r.origin == "replay"]
        assert set(again) == {0, 1, 5} and len(again) % 3 == 0


def tally(history: History, step: int, *problems) -> None:
    history.tallies[step] = {p.problem_id: Tally(8, 4) for p in problems}


def test_power_law_rehearsal():
    """d = 1, 2, 4, 8 give 8/15, 4/15, 2/15, 1/15; exponent 1/2 gives .3905 .2761 .1953 .1381, exponent 0 all alike."""
    (make,) = recipe("power_law_rehearsal").lists["tasks"]
    row, d = make(), np.array([1, 2, 4, 8])
    assert row.chances(d) == pytest.approx([0.533333, 0.266667, 0.133333, 0.066667], abs=1e-6)
    assert Rehearsal(power=0.5).chances(d) == pytest.approx([0.390524, 0.276142, 0.195262, 0.138071], abs=1e-6)
    assert Rehearsal(power=0.0).chances(d) == pytest.approx([0.25] * 4)
    pool = [replace(problem(str(n)), domain="new" if n < 20 else "abcd"[n % 4]) for n in range(40)]
    history = History(Path())
    last = {"a": 8, "b": 7, "c": 5, "d": 1}  # before step 9: 1, 2, 4 and 8 steps ago
    for step in range(1, 9):
        tally(history, step, pool[0], *(next(p for p in pool if p.domain == name) for name, when in last.items() if when == step))
    counts = Counter(p.domain for run in range(200) for p in draw(pool, [row], Draw(100, (run, "s"), 9, 0, history)))
    assert counts["new"] == 200 * 80
    assert [counts[name] / 4000 for name in "abcd"] == pytest.approx([0.533, 0.267, 0.133, 0.067], abs=0.03)
    # the main task goes on through its epochs: of 20 problems, 8 a step, each twice in five steps
    seen = Counter(p.problem_id for step in range(1, 6) for p in draw(pool, [row], Draw(10, (1, "s"), step, 0, History(Path()))) if p.domain == "new")
    assert len(seen) == 20 and set(seen.values()) == {2}
    banks = {p.problem_id for step in range(1, 60) for p in Rehearsal(bank=1)(pool, Draw(10, (1, "s"), step, 0, history)) if p.domain != "new"}
    assert len(banks) == 4  # one of each of the four
    alone = [p for p in pool if p.domain == "new"]
    assert list(row(alone, Draw(10, (1, "s"), 1, 0, history))) == alone and list(row(pool, Draw(2, (1, "s"), 1, 0, history))) == pool
    assert {p.domain for p in Rehearsal(main="a", share=0.0, by="domain")(pool, Draw(4, (1, "s"), 1, 0, history))} == {"new", *"abcd"}
    assert advantage("power_law_rehearsal", 4) == pytest.approx([0.935414, -0.935414], abs=1e-5)


def test_recap_replays_general_data():
    """A fifth of a step is of the other domains, whenever they were drawn last."""
    (make,) = recipe("recap").lists["tasks"]
    pool = [replace(problem(str(n)), domain=("math", "logic", "code")[n % 3]) for n in range(30)]
    history = History(Path())
    tally(history, 1, pool[1])
    counts = Counter(p.domain for run in range(100) for p in draw(pool, [make()], Draw(50, (run, "s"), 3, 0, history)))
    assert counts["math"] == 100 * 40 and counts["logic"] / 1000 == pytest.approx(0.5, abs=0.06)


def test_remix_ends_with_one_pass_over_what_is_new(tmp_path, start):
    """Two passes over the batches of the first two steps, one over the next two: six optimiser steps, and no group of before after step 2."""
    overrides = {"recompose": [{"name": "replay", "probability": 1.0, "until": 2}]}
    changes = {"row": "remix", "steps": 4, "epochs": 2, "epochs_until": 2, "reset_reference": (2,), "overrides": overrides, "checkpoint_every": 1}
    whole, rows, _ = run(tmp_path / "whole", start, **changes)
    moments = torch.load(tmp_path / "whole" / "checkpoints" / "step-00000004.pt")["optimiser"]["state"].values()
    assert {float(one["step"]) for one in moments} == {6.0}
    assert [row["replayed"] > 0 for row in rows] == [False, True, False, False]
    assert rows[2]["kl_reference"] == pytest.approx(0.0, abs=1e-6)  # on policy, and the reference is the policy of step 2
    with pytest.raises(Killed):
        run(tmp_path / "cut", start, stop_at=3, **changes)
    again, rows_again, _ = run(tmp_path / "cut", start, **changes)
    assert rows == rows_again and all(torch.equal(whole[name], again[name]) for name in whole)


def test_classp():
    """Gradients .3, -.9 and .05 twice at rate .2: only the second is above .5; as released, all move."""

    def moved(steps: int = 2, optimiser=None, **how):
        p = torch.nn.Parameter(torch.zeros(3))
        optimiser = Classp([p], 0.2, ClasspSettings(quantile=False, **how))
        for _ in range(steps):
            p.grad = torch.tensor([0.3, -0.9, 0.05])
            optimiser.step()
        return p.tolist(), optimiser.state[p]["summed"].tolist()

    assert moved() == (pytest.approx([0.0, 0.299997, 0.0], abs=1e-6), pytest.approx([0.0, 1.8, 0.0]))
    assert moved(variant="released") == (pytest.approx([-0.299992, 0.299997, -0.29995], abs=1e-6), pytest.approx([0.6, 1.8, 0.1]))
    squared = moved(steps=1, power=2.0)  # .81 is above .5: w = .2 * .9 / sqrt(.81)
    assert squared == (pytest.approx([0.0, 0.2, 0.0], abs=1e-5), pytest.approx([0.0, 0.81, 0.0]))
    p = torch.nn.Parameter(torch.zeros(2, 4))
    optimiser = Classp([p], 0.2, ClasspSettings(threshold=0.5))
    p.grad = torch.tensor([[1e-3, -2e-3, 3e-3, 4e-3], [-5e-3, 6e-3, 0.0, 7e-3]])
    optimiser.step()  # the upper half of the eight, whatever their scale
    assert (p != 0).tolist() == [[False, False, False, True], [True, True, False, True]]
    with pytest.raises(ValueError, match="threshold 3 is no quantile"):
        ClasspSettings(threshold=3.0)
    with pytest.raises(ValueError, match=r"optimiser.name classp needs whole matrices"):
        settings(optimiser=OptimiserSettings(name="classp"), processes=2)


CLASSP = {"optimiser": OptimiserSettings(name="classp", lr=1e-3, classp=ClasspSettings(threshold=0.9))}
DOMAINS = [replace(p, domain="abc"[n % 3]) for n, p in enumerate(PROBLEMS[:10])]
RESUMED = {
    "confucius3": {"row": "confucius3", "prompts_per_step": 3},
    "rorecomp": {"row": "rorecomp", "overrides": {"recompose": [{"name": "response_recomposition", "keep": 0.5, "chance": 0.6}]}},
    "in flight": {"row": "rorecomp", "schedule": IN_FLIGHT},
    "prioritised": {"row": "prioritised_replay", "overrides": {"recompose": [{"name": "prioritised_replay", "share": 0.5}]}},
    "rehearsal": {"row": "power_law_rehearsal", "overrides": {"tasks": [{"name": "rehearsal", "share": 0.5}]}},
    "classp": CLASSP,
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_ends_where_it_would_have_ended(tmp_path, start, monkeypatch, name):
    """Killed after step 5, whose checkpoint is of step 4: weights, journal and rollouts of one that was left alone. Problems are of three domains."""
    monkeypatch.setattr(loops, "PROBLEMS", DOMAINS)
    whole, rows, files = run(tmp_path / "whole", start, **RESUMED[name])
    with pytest.raises(Killed):
        run(tmp_path / "cut", start, stop_at=5, **RESUMED[name])
    again, rows_again, files_again = run(tmp_path / "cut", start, **RESUMED[name])
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert rows == rows_again and files == files_again
    if name in ("confucius3", "rorecomp", "in flight", "prioritised"):
        assert sum(row["replayed"] for row in rows) > 0
    if name == "rehearsal":
        assert others(tmp_path / "whole") == [2] * 6


def others(folder: Path) -> list[int]:
    """Problems of other domains than the first one's that each step answered."""
    of_main = {p.problem_id for p in DOMAINS if p.domain == "a"}
    steps = [read_trajectories(path) for path in sorted((folder / "rollouts").glob("*.parquet"))]
    return [len({t.group_id for t in step if t.problem_id not in of_main}) for step in steps]


SWARM = {"row": "swarm", "prompts_per_step": 6, "steps": 4, "checkpoint_every": 3}


def shared_by(folder: Path, step: int = 1, wrong=False) -> Path:
    """What another run has in the folder: to every problem a right and a wrong answer."""
    texts = {p.problem_id: [f"<think> </think>\\boxed{{{p.answer}}}", "<think> </think>\\boxed{-1}"] for p in PROBLEMS[:10]}
    groups = [{"problem_id": key, "answers": [{"text": text, "ended": True} for text in said]} for key, said in texts.items()]
    path = folder / f"{'ab' * 8}.json"
    path.write_text(json.dumps({"step": step, "groups": groups}))
    return path


def shared_of(folder: Path) -> list[list[Trajectory]]:
    """What was taken from others, by step."""
    return [[t for t in read_trajectories(path) if t.origin == "shared"] for path in sorted((folder / "rollouts").glob("*.parquet"))]


def test_swarm(tmp_path, start, monkeypatch):
    """Of rewards [1, 1], [0, 1] and [0, 0] only the middle group is taken; the policy answers for what is lacking; ratios begin at 1."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    right, wrong = [f"<think> </think>\\boxed{{{PROBLEMS[0].answer}}}", "<think> </think>\\boxed{-1}"]
    said = [[right, right], [wrong, right], [wrong, wrong]]
    groups = [{"problem_id": PROBLEMS[0].problem_id, "answers": [{"text": t, "ended": True} for t in texts]} for texts in said]
    (tmp_path / f"{'ab' * 8}.json").write_text(json.dumps({"step": 7, "groups": groups}))
    _, rows, _ = run(tmp_path / "own", start, **SWARM | {"steps": 2, "checkpoint_every": 1})
    first, second = shared_of(tmp_path / "own")
    assert [t.response for t in first] == [wrong, right] and [t.reward for t in first] == [0.0, 1.0] and not second  # taken from once
    assert {(t.policy, t.step, t.dropped) for t in first} == {(f"{'ab' * 8}@7", 1, "")}
    assert [row["shared"] for row in rows] == [2, 0] and all(row["trained"] == 2 * 6 * 4 - 2 * bool(row["shared"]) for row in rows)
    assert rows[0]["ratio"] == pytest.approx(1.0, abs=1e-6)
    ids, where, _ = tensors(first, torch.device("cpu"), 1, 64)
    with torch.no_grad():
        logp = torch.log_softmax(policy_of(start)(ids).logits.float(), -1)
    for row, t in enumerate(first):  # its own log-probabilities of another's words, in its own tokens
        places = where[row].nonzero()[:, 0]
        expected = [float(logp[row, place - 1, ids[row, place]]) for place in places]
        assert t.behaviour_logp == pytest.approx(expected, abs=1e-4) and t.response_ids == [*TOKENIZER(t.response)["input_ids"], TOKENIZER.eos_token_id]
    made = batch(torch.tensor([t.reward for t in first]), torch.zeros(2).long())
    assert advantages(recipe("swarm", scale={"name": "group_std", "ddof": 0, "eps": 0.0}), made)[:, 0].tolist() == [-1.0, 1.0]
    own = next(path for path in tmp_path.glob("*.json") if path.stem != "ab" * 8)
    published = read(own)
    assert published is not None and published.step == 2 and len(published.groups) == 6 and all(len(g.answers) == 4 for g in published.groups)
    alone, rows_alone, _ = run(tmp_path / "alone", start, **SWARM | {"steps": 2, "overrides": {"recompose": [{"name": "swarm", "external": 0.0}]}})
    plain, rows_plain, _ = run(tmp_path / "plain", start, **SWARM | {"steps": 2, "overrides": {"recompose": []}})
    assert rows_alone == rows_plain and all(torch.equal(alone[key], plain[key]) for key in plain)  # none of others: a run by itself


def test_a_swarm_run_resumes_on_what_it_had_taken(tmp_path, start, monkeypatch):
    """Killed at step 4, where the newest checkpoint is of step 3; what others say is another by then, and what it took at step 4 is in its ledger."""
    found = {}
    for name in ("whole", "cut"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setenv(FOLDER, str(folder))
        other = shared_by(folder)
        if name == "whole":
            found[name] = run(folder / "own", start, **SWARM)
        else:
            for stop in (3, 4):
                other.write_text(json.dumps({"step": 1, "groups": []})) if stop == 4 else None
                with pytest.raises(Killed):
                    run(folder / "own", start, stop_at=stop, **SWARM | {"checkpoint_every": 9})
            other.unlink()  # all that it took was at step 1, before any checkpoint: the ledger alone has it
            found[name] = run(folder / "own", start, **SWARM | {"checkpoint_every": 9})
    (whole, rows, files), (again, rows_again, files_again) = found["whole"], found["cut"]
    assert rows == rows_again and files == files_again and rows[0]["shared"] == 12
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_a_torn_or_foreign_file_harms_nobody(tmp_path, start, monkeypatch):
    """Beside one good group there lies what must not be taken; the run ends as it does with the good group alone."""
    problem_id, text = PROBLEMS[0].problem_id, f"<think> </think>\\boxed{{{PROBLEMS[0].answer}}}"
    good = {"problem_id": problem_id, "answers": [{"text": text, "ended": True}, {"text": "no", "ended": False}]}

    def step(*groups) -> str:
        return json.dumps({"step": 1, "groups": groups})

    def with_text(other: str) -> str:
        return step({"problem_id": problem_id, "answers": [{"text": other, "ended": True}, {"text": text, "ended": True}]})

    bad = {
        "torn": step(good)[:-9], "empty": "", "list": "[1, 2]", "deep": "[" * 100_000, "surrogate": with_text("\ud800"), "turn": with_text(f"7{TOKENIZER.eos_token}7"),
        "long": with_text("7 " * 500), "nothing": step({"problem_id": problem_id, "answers": [{"text": "", "ended": False}, {"text": text, "ended": True}]}),
        "unknown": step({"problem_id": "mine", "answers": good["answers"]}), "one": step({"problem_id": problem_id, "answers": good["answers"][:1]}),
        "wrong": '{"step": "1", "groups": []}', "more": json.dumps({"step": 1, "groups": [good | {"reward": 1.0}]}),
    }  # fmt: skip
    ends = {}
    for name in ("good", "both"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setenv(FOLDER, str(folder))
        (folder / f"{'00' * 8}.json").write_text(step(good))
        if name == "both":
            for number, content in enumerate(bad.values(), 1):
                (folder / f"{number:016x}.json").write_text(content)
            os.mkfifo(folder / f"{'f0' * 8}.json")
            (folder / f"{'f1' * 8}.json").symlink_to(folder / f"{'00' * 8}.json")
            (folder / f"{'f2' * 8}.json").mkdir()
            (folder / f"{'f3' * 8}.json").write_bytes(b"\xff\xfe\x00PAR1")
            (folder / "notes.json").write_text(step(good))
            (folder / f".{'f4' * 8}.json.77.part").write_text(step(good))
        ends[name] = run(folder / "own", start, **SWARM | {"steps": 2})
        assert [t.response for t in shared_of(folder / "own")[0]] == [text, "no"]
    (weights_one, rows_one, _), (weights_two, rows_two, _) = ends.values()
    assert rows_one == rows_two and all(torch.equal(weights_one[key], weights_two[key]) for key in weights_one)


@pytest.mark.parametrize(("value", "words"), [(None, "TOUCHSTONE_SWARM names, which is not set"), ("/nowhere", "which is /nowhere, which is no folder")])
def test_a_swarm_without_a_folder_is_refused(tmp_path, start, monkeypatch, value, words):
    monkeypatch.delenv(FOLDER, raising=False)
    if value:
        monkeypatch.setenv(FOLDER, value)
    with pytest.raises(UserError, match=words):
        run(tmp_path, start, **SWARM | {"steps": 1})


def test_check_says_so_beforehand(monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    asked = {"key": "stages.math", "about": "recipe", "name": "swarm", "overrides": {}, "kl_control": False}
    ((key, words),) = tables.Process(json.dumps([asked, asked | {"overrides": {"recompose": []}}])).faults()
    assert key == "stages.math.recipe" and "TOUCHSTONE_SWARM names, which is not set" in words


RANKS = {
    "rorecomp": {"row": "rorecomp", "overrides": {"recompose": [{"name": "response_recomposition", "keep": 0.5, "decay": 1.0}]}},
    "swarm": {"row": "swarm", "prompts_per_step": 4},
    "rehearsal": {"row": "power_law_rehearsal", "overrides": {"tasks": [{"name": "rehearsal", "share": 0.5}]}},
}


def three_steps(rank: int, folder: Path, start, row: str, overrides=None, **changes):
    """The weights after three steps, and what the first process has said."""
    policy, checkpoints = policy_of(start), Checkpoints(folder / "checkpoints", {}, writes=rank == 0)
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    (folder / "swarm").mkdir(exist_ok=True)
    os.environ[FOLDER] = str(folder / "swarm")
    if rank == 0:
        shared_by(folder / "swarm")
    train(
        policy, TOKENIZER, DOMAINS, recipe(row, **(overrides or {})), settings(steps=3, generation=GenerationSettings(max_new_tokens=8), **changes),
        stage="rl@t", seed=1, journal=Journal(folder / f"journal-{rank}.jsonl", "rl"), checkpoints=checkpoints,
        rollout_folder=folder / "rollouts", frozen=beside(row, start),
    )  # fmt: skip
    return {name: value.clone() for name, value in weights(policy).items()}


def apart_and_together(rank: int, folder: str) -> None:
    """Two runs that share a folder, each in a process of its own; then the two processes as ranks of one run."""
    start = torch.load(f"{folder}/start.pt")
    os.environ[FOLDER] = f"{folder}/between"
    run(Path(folder) / f"run-{rank}", start, **SWARM)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save({name: three_steps(rank, Path(folder) / name, start, **changes) for name, changes in RANKS.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torch.save(start, folder / "start.pt")
    (folder / "between").mkdir()
    processes.spawn(apart_and_together, (str(folder),), nprocs=2)
    return folder


@pytest.mark.long
def test_two_processes_share_over_a_folder(two):
    """Whichever came second at its first step found what the first had said; what it took are the other's words."""
    runs = [two / f"run-{number}" for number in (0, 1)]
    said = [{t.response for path in (folder / "rollouts").glob("*.parquet") for t in read_trajectories(path) if t.origin == "policy"} for folder in runs]
    taken = [[t for step in shared_of(folder) for t in step] for folder in runs]
    assert any(taken)
    for number, trajectories in enumerate(taken):
        assert {t.response for t in trajectories} <= said[1 - number]
        assert all(0 < sum(t.reward for t in group) < len(group) for group in by_group(replace(t, group_id=t.step * 99 + t.group_id) for t in trajectories).values())
    assert len(list((two / "between").iterdir())) == 2


@pytest.mark.long
def test_two_ranks_do_what_one_process_does(two, tmp_path, start, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for name, changes in RANKS.items():
        alone = three_steps(0, tmp_path / name, start, **changes)
        ours, theirs = torch.load(two / "0.pt")[name], torch.load(two / "1.pt")[name]
        for key, value in alone.items():
            torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-4)
            assert torch.equal(ours[key], theirs[key])
        rows = [[json.loads(line) for line in (folder / name / "journal-0.jsonl").read_text().splitlines()] for folder in (two, tmp_path)]
        counts = [[{key: row[key] for key in ("answered", "replayed", "shared", "trained", "dropped")} for row in each] for each in rows]
        assert counts[0] == counts[1], name
        if name == "rehearsal":
            assert others(two / name) == others(tmp_path / name) == [2] * 3
        else:
            assert sum(row["replayed"] + row["shared"] for row in counts[0]) > 0
