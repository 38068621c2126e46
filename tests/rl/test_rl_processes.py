"""Several processes, as users start them: torchrun, sharded weights (FSDP2) over gloo, each answering its share of the problems."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pipelines import paths
from pipelines.__main__ import run as stage
from pipelines.rl.update import BY_TOKEN
from pipelines.store import read_json, read_trajectories


def started(root: Path, template: Path, **changes) -> list[str]:
    """A project like the template but for these settings, and the command that runs its stage."""
    shutil.copytree(template, root)
    given = json.loads((root / "given.json").read_text())
    (root / "given.json").write_text(json.dumps(given | {"settings": given["settings"] | changes}))
    return [sys.executable, "-m", "pipelines", "t", "--settings", str(root / "given.json"), "--root", str(root)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "2"}


def finish(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows(root: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (root / paths.WORK / "t" / "journal.jsonl").read_text().splitlines()]


CHANGES = {"recipe": "tis", "minibatches": 2, "steps": 3, "checkpoint_every": 1}


def test_two_processes_killed_and_resumed_do_what_two_left_alone_and_one_do(tmp_path, rl_project):
    started(tmp_path / "one", rl_project, **CHANGES)
    stage("t", tmp_path / "one", json.loads((tmp_path / "one" / "given.json").read_text()), "cpu")
    finish(started(tmp_path / "alone", rl_project, processes=2, **CHANGES))
    command = started(tmp_path / "two", rl_project, processes=2, **CHANGES)
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "two" / paths.WORK / "t" / paths.RESUME / "step-00000001.pt"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) >= 2 and not psutil.wait_procs(children, 20)[1]  # nobody is left behind
    assert "t: resuming after step" in finish(command)
    for folder in (paths.model("t"), paths.ROLLOUTS / "t"):
        for file in sorted((tmp_path / "alone" / folder).iterdir()):
            assert (tmp_path / "two" / folder / file.name).read_bytes() == file.read_bytes(), file.name
    assert rows(tmp_path / "two") == rows(tmp_path / "alone")

    ours, theirs = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert len(ours) == len(theirs) == 3
    assert [row["grad_norm"] for row in ours] == pytest.approx([row["grad_norm"] for row in theirs], rel=1e-3)  # AdamW magnifies rounding
    for name in ("loss", "reward", "length", "advantage_mean", "advantage_std", "staleness", *(set(BY_TOKEN) & set(ours[0]))):
        assert [row[name] for row in ours] == pytest.approx([row[name] for row in theirs], abs=1e-4), name
    made, one = (load_file(tmp_path / name / paths.model("t") / "model.safetensors") for name in ("two", "one"))
    for name, value in one.items():
        torch.testing.assert_close(made[name], value, rtol=0, atol=1e-4)
    for number in range(1, 4):
        first, second = (read_trajectories(tmp_path / name / paths.ROLLOUTS / "t" / f"step-{number:06d}.parquet") for name in ("one", "two"))
        said = [[(r.problem_id, r.group_id, r.response_ids, r.reward) for r in rollouts] for rollouts in (first, second)]
        assert said[0] == said[1]
    assert read_json(tmp_path / "two" / paths.manifest("t"))["predicate"]["buildDefinition"]["externalParameters"]
