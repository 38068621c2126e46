"""kill -9 at any instant: the run that was continued leaves the same weights, rollouts and journal as one that was left alone.

The stage runs as users run it, with its real model folder, verifier pool and files, in a process that is forked from one that has imported
everything, so that twenty kills take seconds.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import paths
from pipelines.store import read_json

KILLS = 20
HARNESS = '''
import io, json, os, random, signal, sys, time
from pathlib import Path
import torch
import pipelines.stages.rl
from pipelines import paths, store, verifiers
from pipelines.__main__ import run
from pipelines.generation import torch_engine
from pipelines.models import checkpoints
from pipelines.rl import train as loop, update

root, given = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def at_call(owner, name, number, before=lambda *arguments, **named: None):
    """Die at the call of that number."""
    real, calls = getattr(owner, name), [0]
    def counted(*arguments, **named):
        calls[0] += 1
        if calls[0] == number:
            before(*arguments, **named)
            die()
        return real(*arguments, **named)
    setattr(owner, name, counted)

def half(state, path):
    """Write a torn file."""
    whole = io.BytesIO()
    save(state, whole)
    Path(path).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])

def begun(path, table):
    """Write the beginning of a file of rollouts."""
    Path(path).with_name(f".{Path(path).name}.{os.getpid()}.part").write_bytes(b"PAR1")

save = torch.save
TARGETS = {
    "generation": lambda: at_call(torch_engine._Rows, "pick", 40),
    "verification": lambda: at_call(verifiers.VerifierPool, "verify_batch", 3),
    "update": lambda: at_call(update, "update", 5),
    "checkpoint": lambda: at_call(torch, "save", 2, half),
    "renamed": lambda: at_call(checkpoints, "write_json", 4),
    "rollouts": lambda: at_call(loop, "write_rollouts", 3),
    "torn rollouts": lambda: at_call(store, "write_table", 3, begun),
    "end": lambda: at_call(pipelines.stages.rl, "save_policy", 1),
    "cleared": lambda: at_call(checkpoints.Checkpoints, "clear", 1),
}

def start(target=None):
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        os.setsid()
        if target:
            TARGETS[target]()
        run("rl@t", root, given, "cpu")
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)

print("ready", flush=True)
for line in sys.stdin:
    kind, value = line.strip().split(" ", 1)
    began = time.monotonic()
    child = start(value if kind == "target" else None)
    if kind == "after":
        time.sleep(float(value))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status), time.monotonic() - began, flush=True)
'''


class Harness:
    """Runs the stage in `root`, to its end, for some seconds, or to a place in the code."""

    def __init__(self, root: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", HARNESS, root, root / "given.json"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self._process.stdout.readline() == "ready\n"

    def __call__(self, kind: str, value: object = "-") -> tuple[int, float]:
        """(signal that ended it, or 0; seconds)."""
        self._process.stdin.write(f"{kind} {value}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            parts = line.split()
            if len(parts) == 2 and parts[0].lstrip("-").isdigit():  # else what the stage says
                return int(parts[0]), float(parts[1])
        raise AssertionError("the harness is gone")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def project(rl_project, tmp_path_factory):
    """A project in which the RL stage `t` can run, and the harness."""
    root = tmp_path_factory.mktemp("project") / "p"
    shutil.copytree(rl_project, root)
    harness = Harness(root)
    yield root, harness
    harness.close()


def made(root: Path) -> dict[str, bytes]:
    folders = (root / paths.model("t"), root / paths.ROLLOUTS / "t")
    files = {f"{folder.name}/{path.name}": path.read_bytes() for folder in folders for path in sorted(folder.iterdir())}
    return files | {"journal": (root / paths.WORK / "rl-t" / "journal.jsonl").read_bytes()}


def forget(root: Path) -> None:
    for path in (root / paths.model("t"), root / paths.ROLLOUTS / "t", root / paths.WORK / "rl-t"):
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


def test_killed_at_twenty_random_instants(project, alone):
    root, harness = project
    first, seconds = alone
    rng = random.Random(2024)
    forget(root)
    kills = 0
    while kills < KILLS:
        ended, _ = harness("after", rng.uniform(0, 0.8 * seconds))
        assert ended in (0, signal.SIGKILL)
        kills += ended == signal.SIGKILL
        if ended == 0:
            assert made(root) == first
            forget(root)
    assert harness("end")[0] == 0
    assert made(root) == first


@pytest.mark.parametrize("place", ["generation", "verification", "update", "checkpoint", "renamed", "rollouts", "torn rollouts", "end", "cleared"])
def test_killed_in_the_middle_of(project, alone, place):
    root, harness = project
    forget(root)
    assert harness("target", place)[0] == signal.SIGKILL
    assert harness("end")[0] == 0
    assert made(root) == alone[0]


def test_changed_settings_are_refused_then_accepted_and_recorded(project, alone):
    root, harness = project
    forget(root)
    assert harness("target", "end")[0] == signal.SIGKILL
    given = (root / "given.json").read_text()
    command = [sys.executable, "-m", "pipelines", "rl@t", "--settings", str(root / "changed.json"), "--root", str(root)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    (root / "changed.json").write_text(given.replace('"lr":0.001', '"lr":0.002'))

    def attempt(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *options], capture_output=True, text=True, env=environment, timeout=120)

    refused = attempt()
    assert refused.returncode == 2
    assert "stands at step 6 that was made otherwise: settings.optimiser.lr: 0.001 -> 0.002. Undo that, or" in refused.stderr
    accepted = attempt("--accept-changes")
    assert accepted.returncode == 0 and "continuing after step 6 though this changed" in accepted.stdout
    statement = read_json(root / paths.manifest("rl@t"))
    changes = [{"step": 6, "changes": ["settings.optimiser.lr: 0.001 -> 0.002"]}]
    assert statement["predicate"]["buildDefinition"]["internalParameters"]["accepted_changes"] == changes
    assert not (root / paths.WORK / "rl-t" / "accepted.json").exists()  # the next run starts clean
