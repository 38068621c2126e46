"""kill -9 at any instant: the run that was continued leaves the same weights, rollouts and journal as one that was left alone.

The stage runs as users run it, with its real model folder, verifier pool and files, in a process that is forked from one that has imported
everything, so that twenty kills take seconds.
"""

import shutil
import signal
import subprocess
import sys

import pytest
from killing import Harness
from kills import EVERY, IN_FLIGHT, STEPS, forget, killed, left, made, other

from pipelines import paths
from pipelines.store import read_json, read_trajectories


@pytest.fixture(scope="module")
def project(rl_project, tmp_path_factory):
    """A project in which the RL stage `t` can run, and the harness."""
    root = tmp_path_factory.mktemp("project") / "p"
    shutil.copytree(rl_project, root)
    harness = Harness(root, "t")
    yield root, harness
    harness.close()


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


def test_killed_at_twenty_random_instants(project, alone):
    killed(*project, *alone)


def test_killed_with_groups_of_several_turns_in_flight(rl_project, tmp_path):
    """The same, where answers call tools, are made across updates in rounds, to problems that are chosen by what was answered before."""
    overrides = {
        "environment": {"name": "tools", "call": "function", "described": False},
        "explore": {"name": "adaptive", "rounds": 3, "per_round": 3},
        "tasks": [{"name": "drop_high_pass"}, {"name": "bots"}],
    }
    with other(rl_project, tmp_path / "p", recipe="scale_rl", schedule=IN_FLIGHT, overrides=overrides) as project:
        killed(*project)


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


@pytest.mark.parametrize(("schedule", "seed"), [({"kind": "synchronous"}, 1), (IN_FLIGHT, 2)])
def test_killed_while_an_outside_program_leads(rl_project, tmp_path, monkeypatch, schedule, seed):
    """The same, where it asks three times, in two conversations. No process of it is left."""
    (tmp_path / f"plays_{seed}.py").write_text(PLAYS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    overrides = {"environment": {"name": "harness", "program": f"plays_{seed}:play", "described": False}}
    with other(rl_project, tmp_path / "p", recipe="grpo", schedule=schedule, overrides=overrides) as project:
        trajectories = [t for path in sorted((tmp_path / "p" / paths.ROLLOUTS / "t").iterdir()) for t in read_trajectories(path)]
        assert {t.part for t in trajectories} == {0, 1} and len({t.reward for t in trajectories}) > 1
        killed(*project, most=4, seed=seed)
    assert not left(f"plays_{seed}:play")


@pytest.mark.parametrize("place", ["generation", "verification", "ledger", "update", "checkpoint", "renamed", "rollouts", "torn rollouts", "report", "saved", "final"])
def test_killed_in_the_middle_of(project, alone, place):
    root, harness = project
    forget(root)
    assert harness("target", place)[0] == signal.SIGKILL
    trained = harness.steps()
    assert harness("end")[0] == 0
    assert made(root) == alone[0]
    assert trained + harness.steps() <= STEPS + EVERY, "at most the steps since the last checkpoint are trained again"


@pytest.mark.parametrize("place", ["model", "copied", "metrics", "plot", "manifest", "clear"])
def test_killed_between_the_last_step_and_the_end_it_trains_none_again(project, alone, place):
    root, harness = project
    forget(root)
    assert harness("target", place)[0] == signal.SIGKILL
    assert harness.steps() == STEPS
    assert harness("end")[0] == 0
    assert harness.steps() == 0
    assert made(root) == alone[0]
    assert not (root / paths.WORK / "t" / paths.RESUME).exists()


def test_changed_settings_are_refused_then_accepted_and_recorded(project, alone):
    root, harness = project
    forget(root)
    assert harness("target", "model")[0] == signal.SIGKILL
    given = (root / "given.json").read_text()
    command = [sys.executable, "-m", "pipelines", "t", "--settings", str(root / "changed.json"), "--root", str(root)]
    (root / "changed.json").write_text(given.replace('"lr": 0.001', '"lr": 0.002'))

    def attempt(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *options], capture_output=True, text=True, env=harness.environment, timeout=120)

    refused = attempt()
    assert refused.returncode == 2
    assert "stands at step 7 that was made otherwise: settings.optimiser.lr: 0.001 -> 0.002. Undo that, or" in refused.stderr
    accepted = attempt("--accept-changes")
    assert accepted.returncode == 0 and "continuing after step 7 though this changed" in accepted.stdout
    statement = read_json(root / paths.manifest("t"))
    changes = [{"step": 7, "changes": ["settings.optimiser.lr: 0.001 -> 0.002"]}]
    assert statement["predicate"]["buildDefinition"]["internalParameters"]["accepted_changes"] == changes
    assert not (root / paths.WORK / "t" / paths.RESUME).exists()  # the next run starts clean
