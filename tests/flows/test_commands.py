"""The `touchstone` command and `dvc`, as a user gives them, against real servers."""

import json
import signal
import subprocess
import sys
import time
import urllib.request

import mini_project
import pytest
from mlflow import MlflowClient

from pipelines import paths
from pipelines.config import read_yaml
from pipelines.store import write_json

CLI = (sys.executable, "-m", "flows.cli")


def runs(project):
    """Runs of the project's experiment, oldest first."""
    uri = f"sqlite:///{project}/.touchstone/mlflow.db"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("touchstone")
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]) if experiment else []


def api(ports, path, body):
    url = f"http://127.0.0.1:{ports['TOUCHSTONE_PREFECT_PORT']}/api/{path}"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)


def test_run_then_nothing_to_run(project, ports):
    done = mini_project.touchstone(project, "run", "--until", "curation", **ports)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sources: runs (it has not run yet)" in done.stdout
    parent, *children = runs(project)
    assert [run.info.run_name for run in children] == ["sources", "curation"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    curation = children[1]
    assert curation.data.params["splits.base"] == "0.8" and curation.data.params["seed"] == "7"
    recorded = {out["path"]: out["md5"] for stage in read_yaml(project / "data/dvc.lock")["stages"].values() for out in stage["outs"]}
    (dataset,) = [entry.dataset for entry in curation.inputs.dataset_inputs]
    assert (dataset.name, dataset.digest + ".dir") == ("data/sources", recorded["data/sources"])
    assert curation.data.tags["dvc.stage"] == "curation"
    assert curation.data.tags["dvc.out.data/curation"] == recorded["data/curation"]
    assert curation.data.tags["git.commit"] == "none"
    assert curation.data.metrics["final.kept"] > 0
    flow_runs = api(ports, "flow_runs/filter", {})
    assert curation.data.tags["prefect.flow_run_id"] in {run["id"] for run in flow_runs if run["state_type"] == "COMPLETED"}

    started = time.monotonic()
    again = mini_project.touchstone(project, "run", "--until", "curation", **ports)
    assert (again.returncode, again.stdout) == (0, "everything is current\n")
    assert time.monotonic() - started < 15, "it asks DVC and starts neither Prefect nor MLflow"
    assert len(runs(project)) == 3
    assert "didn't change, skipping" in dvc(project, "repro", "data/dvc.yaml:curation", **ports).stdout
    assert "up to date" in dvc(project, "status", "data/dvc.yaml:curation").stdout
    metrics = json.loads(dvc(project, "metrics", "show", "--json").stdout)
    assert metrics[""]["data"]["data/metrics/curation.json"]["data"]["kept"] == curation.data.metrics["final.kept"]


def dvc(project, *arguments, **more):
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=project, env=mini_project.environment(**more), capture_output=True, text=True, timeout=240, check=True)


@pytest.mark.long
def test_dvc_repro_does_the_same(project, ports, tmp_path):
    """The lock of a project that DVC ran equals that of one that `touchstone run` ran; its stages share a parent run in MLflow."""
    mini_project.touchstone(project, "run", "--until", "curation", **ports)
    other = mini_project.make(tmp_path / "other")
    url = f"http://127.0.0.1:{ports['TOUCHSTONE_PREFECT_PORT']}/api"
    assert mini_project.touchstone(other, "check").returncode == 0  # a project has data/dvc.yaml in its repository
    dvc(other, "repro", "data/dvc.yaml:curation", PREFECT_API_URL=url)
    assert (other / "data/dvc.lock").read_bytes() == (project / "data/dvc.lock").read_bytes()
    parent, *children = runs(other)
    assert [run.info.run_name for run in (parent, *children)] == ["post-training", "sources", "curation"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert mini_project.touchstone(other, "run", "--until", "curation").stdout == "everything is current\n"


def test_lineage_of_a_file_and_a_flipped_byte(project, ports):
    mini_project.touchstone(project, "run", "--until", "curation", **ports)
    done = mini_project.touchstone(project, "lineage", "data/curation/sft.parquet", "--verify")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].startswith("curation  (seed 7, code ")
    assert "the chain holds: " in done.stdout
    file = project / "data/sources/problems.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    done = mini_project.touchstone(project, "lineage", "data/curation", "--verify")
    assert done.returncode == 1
    assert done.stderr.startswith("broken: stage sources: data/sources/problems.parquet: is not what the stage wrote: sha256 ")
    file.write_bytes(content)


def test_after_ctrl_c_and_kill_9_no_child_is_left_and_the_next_run_continues(project, ports):
    mini_project.write_params(project, mini_project.params_with(sources__train__stories__count=mini_project.SLOW))
    process = mini_project.start(project, *CLI, "run", "--until", "sources", **ports)
    mini_project.wait_until(lambda: mini_project.stage_processes(project), 60)
    second = mini_project.touchstone(project, "run", **ports)
    assert second.returncode == 2
    assert second.stderr == f"{project}: another run is at work here (process {process.pid}); wait for it or stop it\n"
    process.send_signal(signal.SIGINT)
    mini_project.wait_until(lambda: not mini_project.stage_processes(project), 5)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "stopped; the next run continues from here\n")
    assert runs(project)[-1].info.status == "KILLED"

    process = mini_project.start(project, *CLI, "run", "--until", "sources", **ports)
    mini_project.wait_until(lambda: mini_project.stage_processes(project), 60)
    process.kill()
    process.communicate()
    mini_project.wait_until(lambda: not mini_project.stage_processes(project), 5)
    assert runs(project)[-1].info.status == "RUNNING"

    mini_project.write_params(project, mini_project.params_with(seed=8))
    assert mini_project.touchstone(project, "run", "--until", "sources", **ports).returncode == 0
    assert "RUNNING" not in {run.info.status for run in runs(project)}, "the next run closes what kill -9 left open"


def test_a_killed_dvc_leaves_no_child(project, ports):
    mini_project.write_params(project, mini_project.params_with(sources__train__stories__count=mini_project.SLOW))
    process = mini_project.start(project, str(mini_project.BIN / "dvc"), "repro", "data/dvc.yaml:sources", **ports)
    mini_project.wait_until(lambda: mini_project.stage_processes(project), 60)
    process.kill()
    mini_project.wait_until(lambda: not mini_project.stage_processes(project), 5)
    process.communicate(timeout=30)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"curation__spltis": {}}, ["run"], "params.yaml: unknown key 'curation.spltis'; did you mean 'splits'?"),
        ({"stages__math__init": "maths"}, ["run"], "math.init: 'maths' names no model; choose one of base, code, merged, sft"),
        ({"stages__math__init": "code"}, ["run"], "make a cycle"),
        ({}, ["run", "--until", "stf"], "there is no stage 'stf'; there are sources, curation"),
        ({}, ["lineage", "data/none"], "data/none: no such file or folder"),
        ({}, ["configure", "none.yaml"], "none.yaml: no such file"),
        (
            {"sources__train__mine": {"kind": "file", "path": "none.jsonl", "fields": {"prompt": "p", "answer": "a"}}},
            ["run", "--until", "sources"],
            "none.jsonl",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(project, ports, change, arguments, message):
    mini_project.write_params(project, mini_project.params_with(**change))
    done = mini_project.touchstone(project, *arguments, **ports)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_no_disk_space_port_in_use_and_no_project(project, ports, tmp_path):
    mini_project.write_params(project, mini_project.params_with(seed=9))
    done = mini_project.touchstone(project, "run", "--until", "sources", **ports, TOUCHSTONE_MIN_FREE_GB="1e9")
    assert done.returncode == 2
    assert "GB of disk space are free, a stage needs 1e+09 (TOUCHSTONE_MIN_FREE_GB)" in done.stderr and len(done.stderr.splitlines()) == 1
    other = mini_project.make(tmp_path / "other")
    done = mini_project.touchstone(other, "up", **ports)
    port = ports["TOUCHSTONE_PREFECT_PORT"]
    assert (done.returncode, done.stderr) == (
        2,
        f"port {port} on 127.0.0.1, meant for prefect, is in use; free it or set TOUCHSTONE_PREFECT_PORT to another\n",
    )
    done = mini_project.touchstone(tmp_path, "run", PYTHONPATH=str(project))
    assert done.returncode == 2 and "no project here or above" in done.stderr


def test_a_served_deployment_runs_to_its_end(project, ports):
    """prefect.yaml's deployment, its schedule off, triggered through the server's API as the UI would."""
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
    gate = {"passed": True, "candidate": "sft", "reasons": []}
    write_json(project / paths.SCORES, {"benchmarks": {"math": {}}, "models": {"sft": {"math": {"pass_at_k": {"1": interval}}}}, "gate": gate})
    server = mini_project.start(project, *CLI, "serve", **ports)
    try:
        wanted = {"deployments": {"name": {"any_": ["post-training"]}}}
        mini_project.wait_until(lambda: api(ports, "deployments/filter", wanted), 60)
        (deployment,) = api(ports, "deployments/filter", wanted)
        assert [(each["schedule"]["cron"], each["active"]) for each in deployment["schedules"]] == [("0 3 * * *", False)]
        body = {"parameters": {"until": "curation", "force": ["sources", "curation"]}}
        run = api(ports, f"deployments/{deployment['id']}/create_flow_run", body)["id"]
        this = {"flow_runs": {"id": {"any_": [run]}}}
        mini_project.wait_until(lambda: api(ports, "flow_runs/filter", this)[0]["state_type"] not in ("SCHEDULED", "PENDING", "RUNNING"), 90)
        assert api(ports, "flow_runs/filter", this)[0]["state_type"] == "COMPLETED"
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=30)
    flows = {flow["id"]: flow["name"] for flow in api(ports, "flows/filter", {})}
    children = api(ports, "flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}, "sort": "START_TIME_ASC"})
    assert [(flows[child["flow_id"]], child["state_type"]) for child in children] == [("sources", "COMPLETED"), ("curation", "COMPLETED")]
    artifacts = {each["key"]: each["data"] for each in api(ports, "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})}
    assert artifacts["progress"] == 100.0
    assert "| math | sft | 0.500 (0.400 to 0.600) |" in artifacts["scores"]
    parent = next(each for each in reversed(runs(project)) if each.info.run_name == "post-training")
    assert parent.info.run_id in artifacts["mlflow"]
