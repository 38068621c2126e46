"""Runs that die: after one of their steps, or with kill -9 at a place in the code of a stage that runs as users run it."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

from pipelines.progress import Journal

AT_CALL = '''
import os, signal

def at_call(owner, name, number=1, before=lambda *arguments, **named: None):
    """Die at the call of that number."""
    real, calls = getattr(owner, name), [0]
    def counted(*arguments, **named):
        calls[0] += 1
        if calls[0] == number:
            before(*arguments, **named)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)
    setattr(owner, name, counted)
'''
STAGE = AT_CALL + '''
import importlib, io, json, sys, time
from pathlib import Path
import torch
import pipelines.__main__ as main
from pipelines import store, verifiers
from pipelines.generation import torch_engine
from pipelines.models import checkpoints, optimisation
from pipelines.rl import ledger, run as verbs, train as loop, update
from pipelines.sft import train as supervised
from pipelines.stages import ENTRIES, answers, learning, trained

def count(owner, counted_steps):
    """Every optimiser step leaves a byte."""
    real = owner.update
    def counted(*arguments, **named):
        counted_steps.write(b".")
        return real(*arguments, **named)
    owner.update = counted

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
    "verification": lambda: at_call(verifiers.VerifierPool, "submit", 40),
    "update": lambda: at_call(update, "update", 5),
    "checkpoint": lambda: at_call(torch, "save", 2, half),
    "renamed": lambda: at_call(checkpoints, "write_json", 4),
    "ledger": lambda: at_call(ledger, "write_trajectories", 3),
    "rollouts": lambda: at_call(verbs, "write_trajectories", 3),
    "torn rollouts": lambda: at_call(store, "write_table", 3, begun),
    "report": lambda: at_call(loop, "report", 4),
    **{f"saved {number}": lambda number=number: at_call(checkpoints.Checkpoints, "save", number) for number in (2, 3, 4)},
    "model": lambda: at_call(module if hasattr(module, "save_policy") else trained, "save_policy", 1),
    "copied": lambda: at_call(learning, "replacing_folder", 1),
    "metrics": lambda: at_call(main, "write_json", 1),
    "plot": lambda: at_call(main, "write_plot", 1),
    "manifest": lambda: at_call(main, "write_manifest", 1),
    "clear": lambda: at_call(main, "discard", 1),
    "answers": lambda: at_call(answers._Kept, "add", 3),
}

def start(root, stage, environment, target=None):
    global module
    counted_steps = open(root / "steps", "wb", buffering=0)
    child = os.fork()
    if child:
        counted_steps.close()
        return child
    try:
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(2)  # what a user has; more than one is where gradients could differ
        os.setsid()
        given = json.loads((root / "given.json").read_text())
        module = importlib.import_module(ENTRIES[given["kind"]][0])
        count(update, counted_steps), count(supervised, counted_steps)
        if target:
            TARGETS[target]()
        main.run(stage, root, given, "cpu")
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)

print("ready", flush=True)
for line in sys.stdin:
    kind, value, root, stage, environment = json.loads(line)
    began = time.monotonic()
    child = start(Path(root), stage, environment, value if kind == "target" else None)
    if kind == "after":
        time.sleep(value)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status), time.monotonic() - began, flush=True)
os._exit(0)  # what was imported takes seconds to be torn down
'''


@functools.cache
def warm() -> subprocess.Popen[str]:
    """The process that has imported everything and forks all stages of these tests; it ends when this one closes its pipe."""
    process = subprocess.Popen([sys.executable, "-c", STAGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    atexit.register(process.communicate)
    assert process.stdout.readline() == "ready\n"
    return process


def environment() -> dict[str, str]:
    """What stages get. The number of threads is part of a resume."""
    modules = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": modules, "OMP_NUM_THREADS": "2"}


class Harness:
    """Runs a stage in `root`, whose given.json holds what it is given, in a process forked from one that has imported everything: to its
    end, for some seconds, or to a place in the code."""

    def __init__(self, root: Path, stage: str) -> None:
        self.root = root
        self.stage = stage

    def __call__(self, kind: str, value: str | float = "-") -> tuple[int, float]:
        """(signal that ended it, or 0; seconds)."""
        warm().stdin.write(json.dumps([kind, value, str(self.root), self.stage, environment()]) + "\n")
        warm().stdin.flush()
        for line in warm().stdout:
            parts = line.split()
            if len(parts) == 2 and parts[0].lstrip("-").isdigit():  # else what the stage says
                return int(parts[0]), float(parts[1])
        raise AssertionError("the harness is gone")

    def steps(self) -> int:
        """Optimiser steps of the last run, those included that were lost."""
        return (self.root / "steps").stat().st_size


class Killed(Exception):
    pass


def die_after(journal: Journal, step: int) -> None:
    """Have `journal` raise Killed when it has logged `step`."""
    log = journal.log

    def dying(now, *args, **kwargs):
        log(now, *args, **kwargs)
        if now == step:
            raise Killed

    journal.log = dying
