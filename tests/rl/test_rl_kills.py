"""kill -9 at any instant: the run that was continued leaves the same weights, rollouts and journal as one that was left alone.

The stage runs as users run it, with its real model folder, verifier pool and files, in a process that is forked from one that has imported
everything, so that kills take seconds. There are more of them in the long set.
"""

import shutil
import signal

import pytest
import torch
from killing import Harness
from kills import EVERY, IN_FLIGHT, STEPS, forget, killed, left, made, of_kind, other
from loops import shaken

import pipelines.__main__ as process
from pipelines import paths
from pipelines.store import read_json, read_trajectories


@pytest.fixture(scope="module")
def project(rl_project, tmp_path_factory):
    """A project in which the RL stage `t` can run, and the harness."""
    root = tmp_path_factory.mktemp("project") / "p"
    shutil.copytree(rl_project, root)
    return root, Harness(root, "t")


@pytest.fixture(scope="module")
def alone(project):
    """What a run that nobody disturbs leaves, and how long it takes."""
    root, harness = project
    assert harness("end")[0] == 0
    first = made(root)
    forget(root)
    ended, seconds = harness("end")
    assert ended == 0 and made(root) == first  # twice the same, before anything is killed
    assert len(first) > 12
    return first, seconds


LONG = pytest.mark.long


@pytest.mark.parametrize("most", [5, pytest.param(20, marks=LONG)])
def test_killed_at_random_instants(project, alone, most):
    killed(*project, *alone, most)


@pytest.mark.parametrize("most", [4, pytest.param(20, marks=LONG)])
def test_killed_with_groups_of_several_turns_in_flight(rl_project, tmp_path, most):
    """The same, where answers call tools, are made across updates in rounds, to problems that are chosen by what was answered before."""
    overrides = {
        "environment": {"name": "tools", "call": "function", "described": False},
        "explore": {"name": "adaptive", "rounds": 3, "per_round": 3},
        "tasks": [{"name": "drop_high_pass"}, {"name": "bots"}],
    }
    killed(*other(rl_project, tmp_path / "p", recipe="scale_rl", schedule=IN_FLIGHT, overrides=overrides), most)


STEPPING = {"prompts_per_step": 4, "checkpoint_every": 2, "optimiser": {"lr": 1e-3, "schedule": "constant"}, "keep": {"every": 3}, "steps": STEPS}
SAMPLING = STEPPING | {"group_size": 2, "generation": {"max_new_tokens": 12}, "data": ["graded", "new"]}
KINDS = {
    "dpo": ("preference", STEPPING | {"data": "math/rollouts", "recipe": "dpo"}),
    "kto": ("preference", STEPPING | {"data": "math/rollouts", "recipe": "kto", "pairs": None}),
    "teacher": ("distil", SAMPLING | {"teachers": {"*": "math"}}),
    "top k": ("distil", SAMPLING | {"teachers": {"*": "math"}, "recipe": "topk_distillation", "schedule": IN_FLIGHT}),
    "stored": ("distil", STEPPING | {"data": ["graded"], "stored": "outputs.jsonl", "recipe": "stored_distillation"}),
    "scorer": (
        "reward_model",
        {"data": "math/rollouts", "train": {"batch_size": 2, "checkpoint_every": 2, "optimiser": {"lr": 1e-3}, "held_out": {"problems": 2, "every": 2}}},
    ),
}


@pytest.mark.parametrize(
    ("case", "most"), [*((case, 3) for case in ("dpo", "teacher", "scorer")), *(pytest.param(case, 20, marks=LONG) for case in KINDS)]
)
def test_stages_of_other_kinds_that_are_killed(rl_project, start, tmp_path, case, most):
    kind, settings = KINDS[case]
    killed(*of_kind(rl_project, tmp_path / "p", kind, shaken(start, 0.05, 1), **settings), most)


PLAYS = """
import json, urllib.request

def ask(url, messages):
    with urllib.request.urlopen(urllib.request.Request(url + "/chat/completions", json.dumps({"messages": messages}).encode())) as answer:
        return json.loads(answer.read())["choices"][0]["message"]

def play(row, url):
    messages = [{"role": "user", "content": row["prompt"]}]
    said = [ask(url, messages)]
    said.append(ask(url, [*messages, said[0], {"role": "user", "content": "again"}]))
    said.append(ask(url, [*messages, {"role": "user", "content": said[1]["content"][:9]}]))
    right = [row["answer"] in each["content"] for each in said]
    return {"reward": sum(right) / 3, "metrics": {"right": sum(right)}}
"""


SYNCHRONOUS = {"kind": "synchronous"}


@pytest.mark.parametrize(
    ("schedule", "seed", "most"), [(IN_FLIGHT, 2, 2), pytest.param(SYNCHRONOUS, 3, 6, marks=LONG), pytest.param(IN_FLIGHT, 4, 6, marks=LONG)]
)
def test_killed_while_an_outside_program_leads(rl_project, tmp_path, monkeypatch, schedule, seed, most):
    """The same, where it asks three times, in two conversations. No process of it is left."""
    (tmp_path / f"plays_{seed}.py").write_text(PLAYS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    overrides = {"environment": {"name": "harness", "program": f"plays_{seed}:play", "described": False}}
    project = other(rl_project, tmp_path / "p", recipe="grpo", schedule=schedule, overrides=overrides)
    trajectories = [t for path in sorted((tmp_path / "p" / paths.ROLLOUTS / "t").glob("*.parquet")) for t in read_trajectories(path)]
    assert {t.part for t in trajectories} == {0, 1} and len({t.reward for t in trajectories}) > 1
    killed(*project, most, seed)
    assert not left(f"plays_{seed}:play")


PLACES = ["generation", "ledger", "checkpoint", "renamed", "torn rollouts"]
MORE_PLACES = ["verification", "update", "rollouts", "report", "saved 2", "saved 4"]


@pytest.mark.parametrize("place", [*PLACES, *(pytest.param(place, marks=LONG) for place in MORE_PLACES)])
def test_killed_in_the_middle_of(project, alone, place):
    root, harness = project
    forget(root)
    assert harness("target", place)[0] == signal.SIGKILL
    trained = harness.steps()
    assert harness("end")[0] == 0
    assert made(root) == alone[0]
    assert trained + harness.steps() <= STEPS + EVERY, "at most the steps since the last checkpoint are trained again"


@pytest.fixture(scope="module")
def all_steps_done(project, alone, tmp_path_factory):
    """The project killed after its last step, before it has written its model. To be copied."""
    root, harness = project
    forget(root)
    assert harness("target", "model")[0] == signal.SIGKILL
    assert harness.steps() == STEPS
    return shutil.copytree(root, tmp_path_factory.mktemp("done") / "p")


def put_back(root, saved):
    forget(root)
    shutil.copytree(saved, root, dirs_exist_ok=True)


@pytest.mark.parametrize("place", ["model", "copied", "metrics", "plot", "manifest", "clear"])
def test_killed_between_the_last_step_and_the_end_it_trains_none_again(project, alone, all_steps_done, place):
    root, harness = project
    put_back(root, all_steps_done)
    for kind, value, ended in (("target", place, signal.SIGKILL), ("end", "-", 0)):
        assert harness(kind, value)[0] == ended
        assert harness.steps() == 0
    assert made(root) == alone[0]
    assert not (root / paths.WORK / "t" / paths.RESUME).exists()


def test_changed_settings_are_refused_then_accepted_and_recorded(project, all_steps_done, capfd, monkeypatch):
    root, _ = project
    put_back(root, all_steps_done)
    given = (root / "given.json").read_text()
    (root / "changed.json").write_text(given.replace('"lr": 0.001', '"lr": 0.002'))
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)  # this process stays what it is
    threads = torch.get_num_threads()

    def attempt(*options: str) -> int:
        return process.main(["t", "--settings", str(root / "changed.json"), "--root", str(root), *options])

    torch.set_num_threads(2)  # as the harness has
    try:
        assert attempt() == 2
        assert "stands at step 7 that was made otherwise: settings.optimiser.lr: 0.001 -> 0.002. Undo that, or" in capfd.readouterr().err
        assert attempt("--accept-changes") == 0
    finally:
        torch.set_num_threads(threads)
    assert "continuing after step 7 though this changed" in capfd.readouterr().out
    statement = read_json(root / paths.manifest("t"))
    changes = [{"step": 7, "changes": ["settings.optimiser.lr: 0.001 -> 0.002"]}]
    assert statement["predicate"]["buildDefinition"]["internalParameters"]["accepted_changes"] == changes
    assert not (root / paths.WORK / "t" / paths.RESUME).exists()  # the next run starts clean
