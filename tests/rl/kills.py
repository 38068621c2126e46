"""kill -9 at random instants of a stage that runs as users run it: what the run leaves that was continued is what one leaves that nobody disturbed."""

import contextlib
import importlib
import json
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

from killing import Harness
from loops import PROBLEMS, TOKENIZER, response

from pipelines import graph, paths
from pipelines.models.loading import save_policy, write_vocabulary
from pipelines.records import POLICY
from pipelines.stages import ENTRIES
from pipelines.store import read_json, write_trajectories

STEPS, EVERY = 7, 2
"""Steps of the stage, and of them between two checkpoints."""
IN_FLIGHT = {"kind": "in_flight", "bound": 2, "groups": 8}


def made(root: Path) -> dict[str, bytes]:
    folders = (root / paths.model("t"), root / paths.ROLLOUTS / "t")
    files = {path.relative_to(root).as_posix(): path.read_bytes() for folder in folders for path in sorted(folder.glob("*"))}
    files |= {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted((root / paths.KEPT / "t").rglob("*.*"))}
    files |= {path.as_posix(): (root / path).read_bytes() for path in (paths.METRICS / "t.json", paths.manifest("t"), paths.seen("t"))}
    return files | {"journal": (root / paths.WORK / "t" / "journal.jsonl").read_bytes()}


def forget(root: Path) -> None:
    for path in (root / paths.model("t"), root / paths.ROLLOUTS / "t", root / paths.KEPT / "t", root / paths.WORK / "t"):
        shutil.rmtree(path, ignore_errors=True)
    (root / paths.manifest("t")).unlink(missing_ok=True)


def other(rl_project: Path, root: Path, **changes) -> tuple[Path, Harness, dict[str, bytes], float]:
    """A project of other settings in `root`, and what `alone` gives of it."""
    shutil.copytree(rl_project, root)
    given = read_json(root / "given.json")
    given["settings"] |= changes
    (root / "given.json").write_text(json.dumps(given))
    return alone(root)


def of_kind(rl_project: Path, root: Path, kind: str, teacher, **settings) -> tuple[Path, Harness, dict[str, bytes], float]:
    """A project in `root` whose stage `t` is of another kind, with responses and a teacher for it, and what `alone` gives of it."""
    shutil.copytree(rl_project, root)
    save_policy(root / paths.model("math"), teacher, TOKENIZER)
    answers = [response(p, f"<think> </think>\\boxed{{{p.answer}{wrong}}}", float(not wrong)) for p in PROBLEMS[:22] for wrong in ("", "1")]
    folder = root / paths.ROLLOUTS / "math"
    write_trajectories(folder / "step-000001.parquet", [replace(t, origin=POLICY, sample_id=n) for n, t in enumerate(answers)])
    write_vocabulary(folder, TOKENIZER)
    (root / "outputs.jsonl").write_text("\n".join(json.dumps({"problem_id": t.problem_id, "response": t.response}) for t in answers[:24:2]))
    _, module, name = ENTRIES[kind]
    given = getattr(importlib.import_module(module), name).model_validate({"init": "sft", **settings})
    (root / "given.json").write_text(json.dumps(graph.stage("t", kind, given).given(1)))
    return alone(root)


def alone(root: Path) -> tuple[Path, Harness, dict[str, bytes], float]:
    """The project, its harness, what its stage leaves that nobody disturbs, and how long that takes."""
    harness = Harness(root, "t")
    ended, seconds = harness("end")
    assert ended == 0 and harness.steps() == STEPS
    return root, harness, made(root), seconds


def killed(root: Path, harness: Harness, first: dict[str, bytes], seconds: float, most: int, seed: int = 2024) -> None:
    """Kill the run at so many random instants; whenever it has ended, it has left what it leaves alone."""
    rng = random.Random(seed)
    forget(root)
    kills = lost = trained = finished = 0
    while kills < most:
        ended, _ = harness("after", rng.uniform(0, 0.8 * seconds))
        assert ended in (0, signal.SIGKILL)
        kills += ended == signal.SIGKILL
        trained += harness.steps()
        if (root / paths.manifest("t")).exists():  # the last thing it writes; it may be killed while it clears its work
            assert made(root) == first
            forget(root)
            finished += 1
        else:
            assert ended
            lost += 1
    assert harness("end")[0] == 0
    assert made(root) == first
    assert trained + harness.steps() <= (finished + 1) * STEPS + lost * EVERY


def left(program: str) -> list[str]:
    """Processes that still play a program of this name; they have some seconds to end."""
    until = time.monotonic() + 20
    while True:
        lines = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended
                lines.append(path.read_text())
        playing = [line for line in lines if program in line]
        if not playing or time.monotonic() > until:
            return playing
        time.sleep(0.1)
