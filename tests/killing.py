"""Runs that die: after one of their steps, or with kill -9 at a place in the code of a stage that runs as users run it."""

from __future__ import annotations

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
from pipelines.rl import ledger, train as loop, update
from pipelines.sft import train as supervised
from pipelines.stages import ENTRIES, trained

root, given, stage = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), sys.argv[3]
module = importlib.import_module(ENTRIES[given["kind"]][0])
counted_steps = open(root / "steps", "ab", buffering=0)

def count(owner):
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
    "rollouts": lambda: at_call(loop, "write_trajectories", 3),
    "torn rollouts": lambda: at_call(store, "write_table", 3, begun),
    "report": lambda: at_call(loop, "report", 4),
    "saved": lambda: at_call(checkpoints.Checkpoints, "save", 2),
    "final": lambda: at_call(checkpoints.Checkpoints, "save", int(sys.argv[4])),
    "model": lambda: at_call(module if hasattr(module, "save_policy") else trained, "save_policy", 1),
    "copied": lambda: at_call(module, "replacing_folder", 1),
    "metrics": lambda: at_call(main, "write_json", 1),
    "plot": lambda: at_call(main, "write_plot", 1),
    "manifest": lambda: at_call(main, "write_manifest", 1),
    "clear": lambda: at_call(main, "discard", 1),
    "wave": lambda: at_call(module, "_wave", 3),
}

def start(target=None):
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(2)  # what a user has; more than one is where gradients could differ
        os.setsid()
        count(update), count(supervised)
        if target:
            TARGETS[target]()
        main.run(stage, root, given, "cpu")
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)

print("ready", flush=True)
for line in sys.stdin:
    kind, value = line.strip().split(" ", 1)
    counted_steps.truncate(0)
    began = time.monotonic()
    child = start(value if kind == "target" else None)
    if kind == "after":
        time.sleep(float(value))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status), time.monotonic() - began, flush=True)
'''


class Harness:
    """Runs a stage in `root`, whose given.json holds {seed, settings}, in a process forked from one that has imported everything: to its
    end, for some seconds, or to a place in the code. checkpoints: so many are saved, for the place `final`. environment: what the process
    got; other processes of the same test take it too, since the number of threads is part of a resume."""

    def __init__(self, root: Path, stage: str, checkpoints: int = 4) -> None:
        self.root = root
        modules = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        self.environment = {**os.environ, "PYTHONPATH": modules, "OMP_NUM_THREADS": "2"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", STAGE, root, root / "given.json", stage, str(checkpoints)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment,
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

    def steps(self) -> int:
        """Optimiser steps of the last run, those included that were lost."""
        return (self.root / "steps").stat().st_size

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


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
