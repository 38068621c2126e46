"""The whole graph in miniature, as a user runs it: every stage real, killed in the middle of RL, finished, audited."""

import copy
import signal
import sys
import time

import mini_project
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from pipelines import paths
from pipelines.records import Outcome
from pipelines.store import read_json, read_problems

STAGES = ["sources", "curation", "base", "sft", "difficulty", "synthesis", "math", "code", "merged", "evaluation", "report"]
TINY = {
    "seed": 3,
    "sources": {
        "train": {
            "stories": {"kind": "arithmetic", "count": 300, "levels": {1: 1}, "styles": {"direct": 1}},
            "functions": {"kind": "functions", "count": 60, "levels": {1: 1}},
        },
        "benchmarks": {
            "math": {"kind": "arithmetic", "count": 8, "levels": {1: 1}},
            "code": {"kind": "functions", "count": 4, "levels": {1: 1}},
        },
    },
    "curation": {"splits": {"base": 0.2, "sft": 0.6, "rl": 0.2}, "decontamination": {"rule": "containment"}},
    "base": {
        "architecture": {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64, "vocab_size": 500, "context": 128},
        "train": {"epochs": 1, "batch_size": 16, "optimiser": {"name": "muon", "lr": 5e-3}},
    },
    "stages": {
        "sft": {
            "kind": "sft", "init": "base", "data": "curation/sft",
            "train": {"epochs": 3, "batch_size": 16, "optimiser": {"name": "muon", "lr": 5e-3}},
        },
        "difficulty": {
            "kind": "grade", "init": "sft", "data": "curation/rl", "samples": 2, "band": [0.0, 1.0], "limit": {"math": 12, "code": 6},
            "generation": {"max_new_tokens": 24},
        },
        "synthesis": {"kind": "synthesise", "data": "difficulty/graded", "budget": 4, "weak_below": 1.0},
        "merged": {"kind": "merge", "init": "sft", "models": ["code", "math"], "method": "linear"},
    } | {
        name: {
            "kind": "rl", "init": init, "reference": "sft", "data": ["difficulty", "synthesis"], "where": {"domain": [name]},
            "steps": steps, "prompts_per_step": 2, "group_size": 2, "checkpoint_every": 2, "generation": {"max_new_tokens": 24},
        }
        for name, init, steps in (("math", "sft", 400), ("code", "math", 1))
    },
    "evaluation": {"samples": 2, "ks": [1, 2], "generation": {"max_new_tokens": 24}, "bootstrap": 200},
    "report": {"samples": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project whose run was killed with SIGKILL during RL, shortened, and finished by a second run."""
    project = mini_project.make(tmp_path_factory.mktemp("whole"), TINY)
    process = mini_project.start(project, sys.executable, "-m", "flows.cli", "run")
    saved = project / paths.WORK / "math" / paths.RESUME
    mini_project.wait_until(lambda: process.poll() is not None or list(saved.glob("step-*.pt")), 600)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    mini_project.wait_until(lambda: not mini_project.stage_processes(project), 5)
    process.communicate()
    shortened(project)
    done = mini_project.touchstone(project, "run", "--discard")
    assert done.returncode == 0, done.stderr
    return project, done.stdout


def shortened(project):
    """Give the project a math stage that ends soon, so that the test does too; its settings differ, so what was interrupted is discarded."""
    params = copy.deepcopy(TINY)
    params["stages"]["math"]["steps"] = 4
    mini_project.write_params(project, params)


def test_the_second_run_does_what_was_left_and_nothing_twice(finished):
    project, printed = finished
    assert [line.split(":")[0] for line in printed.splitlines() if ": runs (" in line] == STAGES[6:]
    assert "starting afresh: settings.steps: 400 -> 4" in printed
    assert printed.splitlines()[-1] == f"report: {project / paths.PAGE}"


def test_a_third_run_does_nothing_and_is_quick(finished):
    project, _ = finished
    uri = f"sqlite:///{project}/.touchstone/mlflow.db"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("touchstone").experiment_id
    before = len(client.search_runs([experiment]))
    started = time.monotonic()
    done = mini_project.touchstone(project, "run")
    assert done.stdout == f"everything is current\nreport: {project / paths.PAGE}\n"
    assert time.monotonic() - started < 20
    assert len(client.search_runs([experiment])) == before


def test_every_stage_is_a_run_and_every_model_a_version(finished):
    project, _ = finished
    uri = f"sqlite:///{project}/.touchstone/mlflow.db"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("touchstone").experiment_id
    ended = {run.info.run_name for run in client.search_runs([experiment]) if run.info.status == "FINISHED"}
    assert set(STAGES) <= ended
    killed = [run.info.run_name for run in client.search_runs([experiment], "attributes.status = 'KILLED'")]
    assert sorted(killed) == ["math", "post-training"]
    for model in ("base", "sft", "math", "code", "merged"):
        assert client.get_model_version_by_alias(f"touchstone-{model}", "candidate").tags["path"] == f"data/models/{model}"
    (rl,) = [run for run in client.search_runs([experiment]) if run.info.run_name == "math" and run.info.status == "FINISHED"]
    assert len(client.get_metric_history(rl.info.run_id, "reward")) == 4
    passed = read_json(project / paths.SCORES)["gate"]["passed"]
    champion = "champion" in client.get_registered_model("touchstone-merged").aliases
    assert champion == passed


def test_rows_and_counts_add_up(finished):
    project, _ = finished
    ledger = read_json(project / paths.CURATION / paths.LEDGER)
    kept = {problem.problem_id for split in paths.SPLITS.values() for problem in read_problems(project / split)}
    dropped = pq.read_table(project / paths.CURATION / paths.DROPPED)
    assert ledger["input"] == 360 == len(kept) + len(dropped)
    for row in read_problems(project / paths.rows("synthesis")):
        assert row.parents and row.problem_id not in kept
    samples = pq.read_table(project / paths.SAMPLES / "merged" / "math.parquet").to_pylist()
    assert len(samples) == 16
    right = sum(row["outcome"] == Outcome.CORRECT for row in samples) / 16
    assert read_json(project / paths.SCORES)["models"]["merged"]["math"]["pass_at_k"]["1"]["mean"] == pytest.approx(right)


def test_lineage_reaches_the_sources_and_finds_a_changed_byte(finished):
    project, _ = finished
    done = mini_project.touchstone(project, "lineage", "data/models/merged", "--verify")
    assert done.returncode == 0, done.stderr
    for stage in STAGES[:9]:
        assert stage in done.stdout
    weights = project / paths.model("sft") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()  # the file may be a link into DVC's cache
    weights.write_bytes(content)
    broken = mini_project.touchstone(project, "lineage", "data/models/merged", "--verify")
    assert broken.returncode == 1
    assert "data/models/sft" in broken.stderr
