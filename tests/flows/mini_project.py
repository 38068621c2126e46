"""A project in a folder of its own, with a copy of the code, params that are done in seconds, and commands as a user gives them."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipelines.stages import ENTRIES

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COPIED = ("pipelines", "tasks", "flows", "dvc.yaml", "prefect.yaml", ".dvc", ".dvcignore", ".gitignore", "data/external")
PARAMS: dict[str, Any] = {
    "seed": 7,
    "sources": {
        "train": {"stories": {"kind": "arithmetic", "count": 60}},
        "benchmarks": {"math": {"kind": "arithmetic", "count": 10}},
    },
    "curation": {"steps": ["normalise", "filters", "exact_dedup", "decontaminate"]},
    "base": {},
    "stages": {
        "sft": {"kind": "sft", "init": "base", "data": "curation/sft"},
        "difficulty": {"kind": "grade", "init": "sft", "data": "curation/rl"},
        "synthesis": {"kind": "synthesise", "data": "difficulty/graded"},
        "math": {"kind": "rl", "init": "sft", "data": ["difficulty", "synthesis"], "where": {"domain": ["math"]}},
        "code": {"kind": "rl", "init": "math", "reference": "sft", "data": ["difficulty", "synthesis"], "where": {"domain": ["math"]}},
        "merged": {"kind": "merge", "init": "sft", "models": ["code", "math"]},
    },
    "evaluation": {},
    "report": {},
}
SLOW = 3_000_000
"""So many stories take minutes: long enough to be interrupted."""


def environment(**more: str) -> dict[str, str]:
    """This process's environment with the verified `python` first, and nothing of this run's own Touchstone, Prefect or DVC."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TOUCHSTONE_", "PREFECT_", "MLFLOW_", "DVC_"))}
    return clean | {"PATH": f"{BIN}:{clean['PATH']}"} | more


def make(folder: Path, params: dict[str, Any] = PARAMS) -> Path:
    for name in COPIED:
        source, target = REPOSITORY / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("cache", "tmp", "*.tmp.*", "*.pyc.*"))
        else:
            shutil.copy(source, target)
    write_params(folder, params)
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    return folder


def write_params(folder: Path, params: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def params_with(**changes: Any) -> dict[str, Any]:
    """PARAMS with dotted keys, written with `__`, set to other values."""
    changed = copy.deepcopy(PARAMS)
    for key, value in changes.items():
        *above, last = key.split("__")
        section = changed
        for name in above:
            section = section[name]
        section[last] = value
    return changed


def touchstone(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=600, check=False)


def start(folder: Path, *command: str, **more: str) -> subprocess.Popen[str]:
    """A command in a session of its own, as a terminal would start it: Ctrl-C reaches it even where the tests run in the background."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment(**more), stdout=pipe, stderr=pipe, text=True, start_new_session=True, preexec_fn=_heed_interrupts
    )


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts background jobs with it ignored, and children inherit that


def stage_processes(folder: Path) -> list[psutil.Process]:
    """Children at the science of this project."""
    found = []
    for process in psutil.process_iter(["cmdline", "name", "cwd", "status"]):
        forked = process.info["name"].partition("@")[0] in ENTRIES and process.info["cwd"] == str(folder)
        words = process.info["cmdline"] or []
        with_torchrun = "pipelines" in words and str(folder) in words
        if (forked or with_torchrun) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_until(condition: Any, seconds: float) -> float:
    """Wait for `condition()`; returns the seconds it took and fails after `seconds`."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - started


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
