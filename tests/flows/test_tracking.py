"""MLflow on a real SQLite store: runs, metrics, inputs, the registry, and who becomes champion."""

import json
import math
import os
import shutil
import signal
import sys
import urllib.request
from pathlib import Path

import mini_project
import mlflow
import pytest

from pipelines import graph, paths
from tasks import dvc_graph, settings, versioning
from tasks.promotion import promote
from tasks.reporting import score_table
from tasks.tracking import Tracker

GIVEN = {"seed": 7, "settings": {"train": {"epochs": 1.0, "betas": [0.9, 0.95]}, "limit": {}, "model": None}}


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    return Tracker.open(tmp_path_factory.mktemp("project"))


def stage(tracker, name, inputs=None, models=None, given=GIVEN):
    return tracker.stage(name, given, parent="0" * 32, flow_run="f", inputs=inputs or {}, models=models or {})


def files(tracker, digest):
    """A model's files as they might lie in DVC's cache."""
    weights, tokenizer = (tracker.project / "cache" / digest / name for name in ("4f", "a0"))
    for file in (weights, tokenizer):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{file.name} of {digest}")
    return {"model.safetensors": weights, "inner/tokenizer.json": tokenizer}


def train(tracker, name, model, digest, **read):
    """A stage that makes `model`; returns its run's id."""
    with stage(tracker, name, **read) as run:
        run.register(model, digest, files(tracker, digest))
    return run.id


def gate(tracker, passed):
    file = tracker.project / paths.SCORES
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"gate": {"passed": passed, "candidate": "merged", "decided_by": ["improve math"], "reasons": ["math: +0.1"]}}))


def alias(tracker, name, alias):
    return tracker.client.get_model_version_by_alias(name, alias).tags["dvc_md5"]


def test_params_and_metrics_over_steps(tracker):
    with stage(tracker, "sft") as run:
        run.log_rows([{"step": 1, "loss": 2.0, "pass@1": 0.25}, {"step": 2, "loss": math.nan}])
        run.log_rows([{"step": 3, "loss": 1.0, "note": "text"}])
    data = tracker.client.get_run(run.id).data
    assert data.params == {"seed": "7", "train.epochs": "1.0", "train.betas": "[0.9, 0.95]", "limit": "{}", "model": "null"}
    history = [(metric.step, metric.value) for metric in tracker.client.get_metric_history(run.id, "loss")]
    assert history == [(1, 2.0), (3, 1.0)], "what is no finite number is left out"
    assert data.metrics["pass_at_1"] == 0.25


@pytest.mark.parametrize(("error", "status"), [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_ends_as_its_stage_does(tracker, error, status):
    try:
        with stage(tracker, "sft") as run:
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert tracker.client.get_run(run.id).info.status == status


def test_data_and_models_read_are_inputs(tracker):
    sft = train(tracker, "sft", "sft", "aaa.dir")
    train(tracker, "sft", "sft", "bbb.dir")
    inputs = {"data/models/sft": "aaa.dir", "data/rows/difficulty/problems.parquet": "ddd"}
    run = tracker.client.get_run(train(tracker, "math", "math", "ccc.dir", inputs=inputs, models={"sft": "aaa.dir"}))
    datasets = {entry.dataset.name: (entry.dataset.digest, json.loads(entry.dataset.source)["dvc_md5"]) for entry in run.inputs.dataset_inputs}
    assert datasets == {"data/models/sft": ("aaa", "aaa.dir"), "data/rows/difficulty/problems.parquet": ("ddd", "ddd")}
    (model,) = run.inputs.model_inputs
    assert tracker.client.get_logged_model(model.model_id).source_run_id == sft, "the version with these weights, not the newest"
    assert alias(tracker, "touchstone-sft", "candidate") == "bbb.dir"


def test_only_a_passed_gate_makes_a_champion_and_only_of_what_was_evaluated(tracker):
    train(tracker, "merged", "merged", "one.dir")
    gate(tracker, passed=True)
    with stage(tracker, "evaluation") as run:
        assert promote(run, {"merged": "one.dir"}, lambda model: files(tracker, "one.dir")).promoted
    assert alias(tracker, "touchstone-merged", "champion") == "one.dir"

    train(tracker, "merged", "merged", "two.dir")
    gate(tracker, passed=False)
    with stage(tracker, "evaluation") as run:
        decision = promote(run, {"merged": "two.dir"}, lambda model: files(tracker, "two.dir"))
    assert (decision.promoted, decision.decided_by, decision.reasons) == (False, ("improve math",), ("math: +0.1",))
    assert alias(tracker, "touchstone-merged", "candidate") == "two.dir"
    assert alias(tracker, "touchstone-merged", "champion") == "one.dir", "the old champion stays"

    gate(tracker, passed=True)
    with stage(tracker, "evaluation") as run:
        promote(run, {"merged": "from the cache.dir"}, lambda model: files(tracker, "from the cache.dir"))
    assert alias(tracker, "touchstone-merged", "champion") == "from the cache.dir"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of an MLflow server as a team shares it: its store and its artifacts are its own, behind HTTP."""
    folder, port = tmp_path_factory.mktemp("server"), mini_project.free_port()
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--host", "127.0.0.1", "--port", str(port)]
    process = mini_project.start(folder, *command, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    try:
        mini_project.wait_until(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{port}/health"), 180)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


@pytest.mark.parametrize("where", ["local", "server"])
def test_a_version_keeps_its_weights_when_the_stage_has_run_again(request, tmp_path, monkeypatch, where):
    """What a user downloads by alias, from DVC's own cache objects, after the work tree has other weights."""
    if where == "server":
        monkeypatch.setenv("TOUCHSTONE_MLFLOW_URI", request.getfixturevalue("server"))
    project = mini_project.make(tmp_path / "project")
    tracker, folder = Tracker.open(project), project / paths.model("merged")
    loaded = settings.params(project)
    dvc_graph.write(project, loaded, graph.graph(loaded))
    for weights in ("first", "second"):
        shutil.rmtree(folder, ignore_errors=True)  # as DVC does before a stage runs
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(f"{weights} weights")
        for written in (paths.manifest("merged"), *graph.records("merged", "merge")):
            (project / written).parent.mkdir(parents=True, exist_ok=True)
            (project / written).write_text("{}")
        digest = versioning.output_digests(project, "merged")[paths.model("merged").as_posix()]
        with stage(tracker, "merged") as run:
            run.register("merged", digest, versioning.weights(project, "merged"))
        gate(tracker, passed=weights == "first")
        with stage(tracker, "evaluation") as run:
            promote(run, {"merged": digest}, lambda model: versioning.weights(project, "merged"))
    shutil.rmtree(folder)
    usual = mlflow.get_tracking_uri()
    request.addfinalizer(lambda: mlflow.set_tracking_uri(usual))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # which mlflow sets, and which goes again after the test
    mlflow.set_tracking_uri(settings.mlflow_uri(project))  # all that a user says before loading by alias
    for role, weights in (("champion", "first"), ("candidate", "second")):
        found = mlflow.artifacts.download_artifacts(f"models:/touchstone-merged@{role}")
        assert {file.name: file.read_text() for file in Path(found).iterdir()} == {"model.safetensors": f"{weights} weights"}
    kept = [file for file in (project / ".dvc/cache").rglob("*") if file.is_file() and file.read_bytes() == b"first weights"]
    assert len(kept) == 1
    assert kept[0].stat().st_nlink == (2 if where == "local" else 1), "a local version takes no space of its own"


def test_the_trials_of_a_search_are_nested_runs(tracker):
    trials = [
        {"name": "math", "method": None, "settings": {}, "models": ["math"], "mean": 0.5, "low": 0.4, "high": 0.6, "count": 9},
        {"name": "ties density 0.2", "method": "ties", "settings": {"density": 0.2}, "models": ["math", "code"], "mean": 0.625},
    ]
    with stage(tracker, "merged") as run:
        run.log_search({"trials": trials, "winner": "ties density 0.2", "expert": "math"})
    children = tracker.client.search_runs([tracker.experiment], f"tags.`mlflow.parentRunId` = '{run.id}'", order_by=["attributes.start_time"])
    assert [(child.info.run_name, child.info.status, child.data.tags["winner"]) for child in children] == [
        ("math", "FINISHED", "false"),
        ("ties density 0.2", "FINISHED", "true"),
    ]
    assert children[0].data.metrics == {"mean": 0.5, "low": 0.4, "high": 0.6}
    assert children[1].data.params == {"method": "ties", "models": '["math", "code"]', "density": "0.2"}
    tags = tracker.client.get_run(run.id).data.tags
    assert (tags["search.winner"], tags["search.expert"]) == ("ties density 0.2", "math")


def test_runs_of_a_killed_process_are_closed_by_the_next(tracker):
    left = tracker.client.create_run(tracker.experiment).info.run_id
    with tracker.pipeline() as run:
        assert tracker.client.get_run(left).info.status == "KILLED"
        assert tracker.client.get_run(run).info.status == "RUNNING"
    assert tracker.client.get_run(run).info.status == "FINISHED"


def test_the_table_of_scores():
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
    scores = {
        "benchmarks": {"math": {}},
        "models": {"sft": {"math": {"pass_at_k": {"8": interval, "1": interval}}}},
        "gate": {"passed": False, "candidate": "merged", "reasons": ["because"]},
    }
    assert score_table(scores).splitlines() == [
        "| benchmark | model | pass@1 | pass@8 |",
        "|---|---|---:|---:|",
        "| math | sft | 0.500 (0.400 to 0.600) | 0.500 (0.400 to 0.600) |",
        "",
        "The gate does not pass merged.",
        "- because",
    ]
