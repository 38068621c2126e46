"""Stages that are forked from a process with the libraries loaded: they run as if each had been started by itself."""

import json
import os
import signal
import subprocess
import sys
import time

import mini_project
import psutil
import pytest

from pipelines import graph, paths, preloaded
from pipelines.config.sources import SourcesSettings
from pipelines.store import read_json
from tasks import preloading
from tasks.preloading import Preloaded

TELLS = """
import json, os, sys, time
from pathlib import Path
def run(context):
    loaded = sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "transformers"))
    Path("told.json").write_text(json.dumps({"modules": loaded, "folder": os.getcwd(), "group": os.getpgid(0) == os.getpid(), "said": os.environ.get("SAID")}))
    print("from the stage", flush=True)
    if os.environ.get("SAID") == "wait":
        time.sleep(60)
    return {}
"""
"""A stage that tells what it finds when it starts."""


@pytest.fixture
def project(tmp_path):
    folder = mini_project.make(tmp_path)
    (folder / "pipelines/stages/sources.py").write_text(TELLS)
    given = graph.stage("sources", "sources", SourcesSettings(train={}, benchmarks={}, max_bad_rows=0.0)).given(1)
    (folder / "given.json").write_text(json.dumps(given))
    return folder


@pytest.fixture
def stages():
    made = Preloaded()
    yield made
    made.stop()


def start(stages, project):
    with (project / "errors").open("wb") as errors:
        return stages.stage(project, ["sources", "--settings", str(project / "given.json"), "--root", str(project)], errors, needs_libraries=True)


def told(project):
    return read_json(project / "told.json")


def loaded_all(process):
    """Wait until a preloaded process, which runs nothing, has imported all: it sleeps then."""
    mini_project.wait_until(lambda: process.status() == psutil.STATUS_SLEEPING and process.cpu_times().user > 1, 60)
    mini_project.wait_until(lambda: quiet(process), 60)


def quiet(process):
    before = process.cpu_times().user
    time.sleep(0.5)
    return process.cpu_times().user == before


def test_what_stages_import_is_there_before_they_start():
    """Else every stage pays for what LIBRARIES lacks."""
    script = (
        "import importlib, sys\nfrom pipelines import preloaded\nfor name in preloaded.LIBRARIES: importlib.import_module(name)\n"
        "there = set(sys.modules)\nfor stage in ('base', 'sft', 'grade', 'rl', 'merge', 'command', 'evaluation'):\n"
        "    importlib.import_module(f'pipelines.stages.{stage}')\n"
        "print(*{name for name in set(sys.modules) - there if name.split('.')[0] in ('torch', 'transformers', 'sklearn', 'scipy')})"
    )
    late = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in late if name.startswith(("torch", "sklearn", "scipy"))]
    assert len(late) < 5, late


def test_no_project_code_is_loaded_before_a_stage_starts():
    script = "import sys, pipelines.preloaded; print(*[name for name in sys.modules if name.startswith('pipelines')])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert set(found) == {"pipelines", "pipelines.preloaded"}


def test_a_stage_is_a_process_of_its_own_with_the_libraries_loaded(project, stages, monkeypatch, capfd):
    stages.start(project, libraries=True)
    loaded_all(psutil.Process(stages._process.pid))
    monkeypatch.setenv("TOUCHSTONE_NOTHING", "1")  # may change between stages
    before = stages._process.pid
    process = start(stages, project)
    assert process.wait(30) == 0
    assert process.pid != before == stages._process.pid
    found = told(project)
    assert found["folder"] == str(project)
    assert found["group"]
    assert set(preloaded.LIBRARIES) & set(found["modules"]) == {name for name in preloaded.LIBRARIES if name.startswith(("torch", "transformers"))}
    assert "from the stage" in capfd.readouterr().out
    recorded = read_json(project / paths.manifest("sources"))["predicate"]["runDetails"]["metadata"]
    assert recorded == {}, "threads and kernels decide nothing of a stage that computes without torch"


def test_another_environment_or_other_packages_need_another_process(project, stages, monkeypatch):
    assert start(stages, project).wait(30) == 0
    first = stages._process.pid
    monkeypatch.setenv("SAID", "something")
    assert start(stages, project).wait(30) == 0
    second = stages._process.pid
    assert second != first
    assert not psutil.pid_exists(first)
    assert told(project)["said"] == "something"
    monkeypatch.setattr(preloading.sysconfig, "get_path", lambda name: str(project))  # as if something had been installed
    assert start(stages, project).wait(30) == 0
    assert stages._process.pid != second


def test_code_that_was_edited_after_the_libraries_were_loaded_is_what_runs(project, stages):
    assert start(stages, project).wait(30) == 0
    process = stages._process.pid
    (project / "pipelines/stages/sources.py").write_text("def run(context):\n    raise SystemExit(7)\n")
    assert start(stages, project).wait(30) == 7
    assert stages._process.pid == process


def test_a_stage_ends_with_the_process_that_forked_it(project, stages, monkeypatch):
    monkeypatch.setenv("SAID", "wait")
    process = start(stages, project)
    mini_project.wait_until((project / "told.json").exists, 30)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    assert process.poll() is None
    stages._process.kill()
    assert process.wait(5) == -signal.SIGKILL
    mini_project.wait_until(lambda: not psutil.pid_exists(process.pid) or psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, 5)
    monkeypatch.setenv("SAID", "go on")
    assert start(stages, project).wait(30) == 0, "the next stage gets another one"


def test_both_end_when_the_run_is_gone(project, tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom tasks.preloading import PRELOADED\nproject = Path.cwd()\n"
        "PRELOADED.start(project, libraries=True)\nprocess = PRELOADED.stage(project, ['sources', '--settings', 'given.json', '--root', str(project)], open('errors', 'wb'), needs_libraries=True)\n"
        "print(PRELOADED._process.pid, process.pid, flush=True)\nprocess.wait()"
    )
    run = mini_project.start(project, sys.executable, "-c", script, SAID="wait")
    pids = [int(pid) for pid in run.stdout.readline().split()]
    mini_project.wait_until((project / "told.json").exists, 30)
    os.kill(run.pid, signal.SIGKILL)  # while libraries come in, too: the kernel sees to it
    run.communicate()
    mini_project.wait_until(lambda: not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids), 5)
