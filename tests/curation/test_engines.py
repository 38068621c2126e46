"""The same rows whatever runs the steps, however rows are cut into batches and shards, and after an interruption."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import paths
from pipelines.config.curation import CurationSettings
from pipelines.curation import engines, tables
from pipelines.curation.run import curate_file
from pipelines.curation.steps import Inputs
from pipelines.progress import Journal
from pipelines.records import Problem, problem_id
from pipelines.stages import Context
from pipelines.stages import curation as stage
from pipelines.store import write_problems

STEPS = ("normalise", "filters", "exact_dedup", "near_dedup", "decontaminate")
WORDS = ["river", "lamp", "table", "garden", "window", "seven", "green", "paper", "stone", "bread", "music", "glass", "honest", "winter", "candle"]


def problems(count: int = 400) -> list[Problem]:
    rng = random.Random(5)
    rows = []
    for number in range(count):
        text = f"How many {' '.join(rng.choices(WORDS, k=14))} are there when {rng.randrange(30)} of {rng.randrange(30)} go?"
        for copy, changed in enumerate([text, text.upper(), text.replace("How many", "Tell me how many")][: 1 + number % 3]):
            rows.append(
                Problem(
                    problem_id(changed, "3"), "math", changed, "3", "integer", "math",
                    solution=None if number % 2 else "worked", source=f"s{number % 3}", source_id=f"{number}/{copy}",
                )
            )  # fmt: skip
    return [*rows, Problem(problem_id("tiny", "1"), "math", "tiny", "1", "integer", "math", source="s0", source_id="t")]


HELD = {"held": [problems()[0]]}


def run(rows: list[Problem], folder: Path, **settings: object) -> tuple[bytes, bytes, list]:
    folder.mkdir()
    write_problems(folder / "in.parquet", rows)
    given = CurationSettings.model_validate({"steps": STEPS, **settings})
    ledger = curate_file(folder / "in.parquet", folder / "kept", folder / "dropped", Inputs(given, HELD), folder / "scratch")
    return (folder / "kept").read_bytes(), (folder / "dropped").read_bytes(), ledger


def test_batches_shards_and_order_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = problems(40)
    first = run(rows, tmp_path / "a")
    assert [entry["dropped"] > 0 for entry in first[2]] == [False, True, True, True, True]
    assert all(entry["kept"] + entry["dropped"] == entry["input"] for entry in first[2])
    kept, dropped = pq.read_table(tmp_path / "a" / "kept"), pq.read_table(tmp_path / "a" / "dropped")
    assert len(kept) + len(dropped) == len(rows) and len(kept) == first[2][-1]["kept"]
    assert dropped.column("step").to_pylist() == sorted(dropped.column("step").to_pylist(), key=STEPS.index)
    for number, (batch, shard) in enumerate([(1, 1), (7, 20), (1000, 33)]):
        monkeypatch.setattr(engines, "BATCH", batch)
        monkeypatch.setattr(tables, "SHARD", shard)
        assert run(random.Random(number).sample(rows, len(rows)), tmp_path / f"b{number}") == first


@pytest.mark.long
def test_ray_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.setattr(tables, "SHARD", 400)  # two tasks of each step, one for each worker
    rows = problems()
    try:
        assert run(rows, tmp_path / "ray", engine="ray", workers=2) == run(rows, tmp_path / "local")
        nodes = ray.cluster_resources()
        assert nodes["CPU"] == 2
    finally:
        ray.shutdown()


def test_without_ray_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.errors import UserError

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'touchstone\[ray\]'"):
        engines.engine("ray", 2)


def test_no_rows_at_all(tmp_path: Path) -> None:
    kept, dropped, ledger = run([], tmp_path / "empty")
    assert [entry["input"] for entry in ledger] == [0] * 5
    assert pq.read_table(tmp_path / "empty" / "kept").num_rows == 0 and kept and dropped


INTERRUPTED = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from pipelines.curation import tables
from test_engines import run_stage
annotate = tables.Annotate.__call__
def slow(self, table):
    print("batch", flush=True)
    time.sleep(0.3)
    return annotate(self, table)
tables.Annotate.__call__ = slow
run_stage(Path(sys.argv[1]))
"""


def run_stage(root: Path) -> dict[str, bytes]:
    """What the stage makes, name -> bytes."""
    settings = CurationSettings.model_validate({"steps": STEPS})
    stage.run(Context("curation", root, 1, settings, root / "work", Journal(root / "work" / "journal.jsonl", "curation")))
    return {path.name: path.read_bytes() for path in (root / paths.CURATION).iterdir()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources") / "p"
    write_problems(root / paths.PROBLEMS, problems())
    write_problems(root / paths.BENCHMARKS / "held.parquet", HELD["held"])
    return root


@pytest.fixture(scope="module")
def made(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What nobody interrupts."""
    return run_stage(Path(shutil.copytree(sources, tmp_path_factory.mktemp("whole") / "p")))


@pytest.mark.parametrize("batches", [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(3, marks=pytest.mark.long)])
def test_killed_in_a_pass_and_started_again(tmp_path: Path, sources: Path, made: dict[str, bytes], batches: int) -> None:
    killed = shutil.copytree(sources, tmp_path / "killed")
    here = Path(__file__).parent
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, killed, here, here.parents[1]], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(batches):
        assert process.stdout.readline() == "batch\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (killed / paths.CURATION).exists()
    assert run_stage(killed) == made
    assert json.loads(made["ledger.json"])["input"] == len(problems())
