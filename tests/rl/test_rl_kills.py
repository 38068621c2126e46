"""kill -9 at any instant: the run that was continued leaves the same weights, rollouts and journal as one that was left alone.

The stage runs as users run it, with its real model folder, verifier pool and files, in a process that is forked from one that has imported
everything, so that twenty kills take seconds.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from killing import Harness

from pipelines import paths
from pipelines.store import read_json

KILLS = 20
STEPS, EVERY = 7, 2
"""Steps of the stage, and of them between two checkpoints."""


@pytest.fixture(scope="module")
def project(rl_project, tmp_path_factory):
    """A project in which the RL stage `t` can run, and the harness."""
    root = tmp_path_factory.mktemp("project") / "p"
    shutil.copytree(rl_project, root)
    harness = Harness(root, "t")
    yield root, harness
    harness.close()


def made(root: Path) -> dict[str, bytes]:
    folders = (root / paths.model("t"), root / paths.ROLLOUTS / "t")
    files = {f"{folder.name}/{path.name}": path.read_bytes() for folder in folders for path in sorted(folder.iterdir())}
    told = (paths.METRICS / "t.json", paths.PLOTS / "t.csv", paths.manifest("t"))
    files |= {path.name: (root / path).read_bytes() for path in told if path.suffix == ".json"}
    return files | {"journal": (root / paths.WORK / "t" / "journal.jsonl").read_bytes()}


def forget(root: Path) -> None:
    for path in (root / paths.model("t"), root / paths.ROLLOUTS / "t", root / paths.WORK / "t"):
        shutil.rmtree(path, ignore_errors=True)


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


def killed(root: Path, harness: Harness, first: dict[str, bytes], seconds: float) -> None:
    """Kill the run at twenty random instants; whenever it ends, it has left what it leaves alone."""
    rng = random.Random(2024)
    forget(root)
    kills = trained = finished = 0
    while kills < KILLS:
        ended, _ = harness("after", rng.uniform(0, 0.8 * seconds))
        assert ended in (0, signal.SIGKILL)
        kills += ended == signal.SIGKILL
        trained += harness.steps()
        if ended == 0:
            assert made(root) == first
            forget(root)
            finished += 1
    assert harness("end")[0] == 0
    assert made(root) == first
    assert trained + harness.steps() <= (finished + 1) * STEPS + kills * EVERY


def test_killed_at_twenty_random_instants(project, alone):
    killed(*project, *alone)


def test_killed_with_groups_of_several_turns_in_flight(rl_project, tmp_path):
    """The same, where answers call tools, are made across updates in rounds, to problems that are chosen by what was answered before."""
    shutil.copytree(rl_project, tmp_path / "p")
    given = read_json(tmp_path / "p" / "given.json")
    given["settings"] |= {
        "recipe": "scale_rl",
        "schedule": {"kind": "in_flight", "bound": 2, "groups": 8},
        "overrides": {
            "environment": {"name": "tools", "call": "function", "described": False},
            "explore": {"name": "adaptive", "rounds": 3, "per_round": 3},
            "tasks": [{"name": "drop_high_pass"}, {"name": "bots"}],
        },
    }
    (tmp_path / "p" / "given.json").write_text(json.dumps(given))
    harness = Harness(tmp_path / "p", "t")
    try:
        ended, seconds = harness("end")
        assert ended == 0
        killed(tmp_path / "p", harness, made(tmp_path / "p"), seconds)
    finally:
        harness.close()


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
    (root / "changed.json").write_text(given.replace('"lr":0.001', '"lr":0.002'))

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
