"""Stages that run at the same time: real processes with stand-ins for the science, which tell when they ran."""

import os
import shutil
import signal
import sys
import threading

import mini_project
import psutil
import pytest
from mlflow import MlflowClient
from test_mapping import edited, entry, run, with_stand_ins

from pipelines import graph, paths
from pipelines.config import load, read_yaml
from pipelines.errors import UserError
from pipelines.lineage.digests import files_below
from pipelines.store import read_json
from tasks import settings, side_by_side

CLI = (sys.executable, "-m", "flows.cli")
TOLD = """


import json, os, time
plain = run


def run(context):
    began = time.time()
    if (context.root / f"fails-{context.stage}").exists():
        from pipelines.errors import UserError
        raise UserError(f"{context.stage}: it cannot be done")
    while (context.root / f"waits-{context.stage}").exists():
        time.sleep(0.05)
    if (context.root / "meet").exists() and context.stage in ("code", "math"):
        (context.root / f"met-{context.stage}").touch()
        while not all((context.root / f"met-{name}").exists() for name in ("code", "math")):
            assert time.time() < began + 60, f"{context.stage} is alone"
            time.sleep(0.05)
    context.journal.log(1, 1, show="done", reward=0.5)
    summary = plain(context)
    told = {"began": began, "ended": time.time(), "threads": os.environ.get("OMP_NUM_THREADS")}
    (context.work / "told.json").write_text(json.dumps(told))
    return summary
"""
"""A stage that says when it ran, and fails, waits for a file to go or for another stage to run if it is told to."""
SFT = {"init": "sft", "reference": "sft"}


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """Two RL stages, `code` and `math`, that start from `sft` and have yet to run."""
    project = with_stand_ins(tmp_path_factory.mktemp("side") / "project")
    with (project / "pipelines/stages/rl.py").open("a") as file:
        file.write(TOLD)
    with (project / "pipelines/stages/merge.py").open("a") as file:
        file.write(TOLD)
    edited(project, code=entry("code", **SFT))
    (project / "fails-math").touch()
    (project / "fails-code").touch()
    with pytest.raises(UserError, match="it cannot be done"):
        run(project)
    for name in ("code", "math"):
        (project / f"fails-{name}").unlink()
    return project


@pytest.fixture
def project(unfinished, tmp_path):
    return shutil.copytree(unfinished, tmp_path / "copy", symlinks=True)


@pytest.fixture
def environment(served, ports):
    """Of a command that uses the Prefect server that is up, without a word on threads."""
    return {"PREFECT_API_URL": f"http://127.0.0.1:{ports['TOUCHSTONE_PREFECT_PORT']}/api", "OMP_NUM_THREADS": "", **ports}


def told(project, stage):
    return read_json(project / paths.WORK / stage / "told.json")


def made(project):
    """Path -> bytes of all that the stages have made, and what DVC has recorded of each."""
    lock = read_yaml(project / "data/dvc.lock")["stages"]
    return {file.relative_to(project): file.read_bytes() for file in files_below(project / "data") if file.name != "dvc.lock"}, lock


def at_work(project):
    """Processes of the two stages."""
    found = psutil.process_iter(["name", "cwd", "status"])
    return [each for each in found if each.info["name"] in ("code", "math") and each.info["cwd"] == str(project) and each.info["status"] != psutil.STATUS_ZOMBIE]


def runs(project):
    client = MlflowClient(f"sqlite:///{project}/.touchstone/mlflow.db", f"sqlite:///{project}/.touchstone/mlflow.db")
    return client.search_runs([client.get_experiment_by_name("touchstone").experiment_id], order_by=["attributes.start_time"])


def test_stages_whose_inputs_are_made_run_together_and_make_what_they_make_alone(project, unfinished, environment, tmp_path):
    alone = shutil.copytree(unfinished, tmp_path / "alone", symlinks=True)
    done = mini_project.touchstone(alone, "run", **environment | {"OMP_NUM_THREADS": "3"})
    assert (done.returncode, done.stderr) == (0, "")
    assert told(alone, "math")["threads"] == "3", "who names a number has it"
    first, second = sorted((told(alone, name) for name in ("code", "math")), key=lambda each: each["began"])
    assert first["ended"] < second["began"], "one at a time without a word"

    (project / "meet").touch()
    done = mini_project.touchstone(project, "run", "--at-once", "2", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    math, code, merged = (told(project, name) for name in ("math", "code", "merged"))
    assert max(math["began"], code["began"]) < min(math["ended"], code["ended"])
    assert merged["began"] > max(math["ended"], code["ended"]), "it reads both"
    part = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert [each["threads"] for each in (math, code, merged)] == [part, part, ""]
    assert {"math 1/1  done", "code 1/1  done"} <= set(done.stdout.splitlines()), "every line names its stage"
    assert made(project) == made(alone)
    parent, *children = runs(project)
    assert sorted(run.info.run_name for run in children) == ["code", "evaluation", "math", "merged", "report"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert mini_project.touchstone(project, "run", **environment).stdout.startswith("everything is current\n")


@pytest.mark.long
def test_after_a_failure_what_runs_may_end_and_nothing_starts(project, environment):
    """`math` fails while `code` runs and `other` waits for a free place."""
    edited(project, code=entry("code", **SFT), other=entry("code", **SFT), merged=entry("merged", models=["code", "math"]))
    (project / "fails-math").touch()
    done = mini_project.touchstone(project, "run", TOUCHSTONE_AT_ONCE="2", **environment)
    assert (done.returncode, done.stderr) == (2, "math: it cannot be done\n")
    assert "math failed; code may end, and nothing new starts" in done.stdout
    assert not (project / paths.WORK / "other").exists() and not (project / paths.WORK / "merged/told.json").exists()
    assert {run.info.run_name: run.info.status for run in runs(project)} == {"post-training": "FAILED", "math": "FAILED", "code": "FINISHED"}
    (project / "fails-math").unlink()
    done = mini_project.touchstone(project, "run", **environment)
    assert [line.partition(": runs")[0] for line in done.stdout.splitlines() if ": runs" in line] == ["math", "merged", "other", "evaluation", "report"]


def test_the_errors_of_all_that_ran_are_told_and_a_bug_among_them_is_not_hidden(tmp_path):
    edited(tmp_path, code=entry("code", **SFT))
    stages, begun, both = graph.graph(load(tmp_path / "params.yaml")), [], threading.Barrier(2, timeout=20)

    def fails(error):
        def run(stage, waiting, beside):
            begun.append(stage)
            if stage in ("code", "math"):
                both.wait()
                raise error(f"{stage}: it cannot be done")

        return run

    with pytest.raises(UserError) as told:
        side_by_side.walk(stages, 2, fails(UserError))
    assert sorted(str(told.value).splitlines()) == ["code: it cannot be done", "math: it cannot be done"]
    assert begun[-2:] in (["code", "math"], ["math", "code"]), "merged has not begun"
    with pytest.raises(ExceptionGroup, match="several stages failed"):
        side_by_side.walk(stages, 2, fails(ZeroDivisionError))
    begun.clear()
    side_by_side.walk(stages, 1, lambda stage, waiting, beside: begun.append((stage, beside)))
    assert begun == [(stage, ()) for stage in stages], "one at a time, in the order of the graph"


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_a_run_is_ended_no_stage_is_left_and_the_next_run_goes_on(project, environment, number):
    for name in ("code", "math"):
        (project / f"waits-{name}").touch()
    process = mini_project.start(project, *CLI, "run", "--at-once", "2", **environment)
    mini_project.wait_until(lambda: len(at_work(project)) == 2, 120)
    process.send_signal(number)
    mini_project.wait_until(lambda: not at_work(project), 5)
    _, error = process.communicate(timeout=60)
    said = "stopped; the next run continues from here\n"
    assert (process.returncode, error) == {signal.SIGINT: (130, said), signal.SIGTERM: (143, ""), signal.SIGKILL: (-9, "")}[number]
    status = "RUNNING" if number == signal.SIGKILL else "KILLED"
    assert {run.info.run_name: run.info.status for run in runs(project)} == {"post-training": status, "math": status, "code": status}
    for name in ("code", "math"):
        (project / f"waits-{name}").unlink()
    done = mini_project.touchstone(project, "run", "--at-once", "2", **environment)
    assert done.returncode == 0 and "RUNNING" not in {run.info.status for run in runs(project)}


def test_a_stage_that_may_have_another_beside_it_has_its_part_of_the_threads(project):
    """Whatever happens to run: the part follows from the graph, so that a run again computes alike."""
    stages = graph.graph(settings.params(project))
    assert [name for name in stages if side_by_side.sharing(stages, name, 4) == 2] == ["code", "math"]
    assert {side_by_side.sharing(stages, name, 4) for name in stages} == {1, 2}
    assert {side_by_side.sharing(stages, name, 1) for name in stages} == {1}


@pytest.mark.parametrize("text", ["0", "-1", "two", ""])
def test_a_limit_that_is_none_is_refused(text, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_AT_ONCE", text)
    with pytest.raises(UserError, match=f"TOUCHSTONE_AT_ONCE: expected a whole number of at least 1, got '{text}'"):
        side_by_side.at_once()
    monkeypatch.setenv("TOUCHSTONE_AT_ONCE", "3")
    assert (side_by_side.at_once(), side_by_side.at_once(2)) == (3, 2)
