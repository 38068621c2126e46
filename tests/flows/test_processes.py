"""A stage's child process: what it says reaches the user, and nothing of it outlives its parent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mini_project
import psutil
import pytest

from pipelines import graph
from pipelines.config.sources import SourcesSettings
from pipelines.errors import UserError
from pipelines.progress import Journal
from tasks import processes

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"])
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}")
time.sleep(60)
"""
"""A process that will not end when asked, with a child that will not either."""


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def pids_in(file):
    mini_project.wait_until(lambda: file.exists() and len(file.read_text().split()) == 2, 20)
    return [int(pid) for pid in file.read_text().split()]


def test_a_group_that_ignores_signals_is_gone_within_five_seconds(tmp_path):
    stubborn = subprocess.Popen([sys.executable, "-c", STUBBORN, str(tmp_path / "pids")], start_new_session=True)
    with pytest.raises(KeyboardInterrupt), processes.whole(stubborn):
        pids = pids_in(tmp_path / "pids")
        assert all(alive(pid) for pid in pids)
        started = time.monotonic()
        raise KeyboardInterrupt
    mini_project.wait_until(lambda: not any(alive(pid) for pid in pids), 1)
    assert time.monotonic() - started < 5


def test_what_a_finished_child_left_running_is_stopped(tmp_path):
    leaves = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); open(sys.argv[1], 'w').write(f'0 {p.pid}')"
    with processes.whole(subprocess.Popen([sys.executable, "-c", leaves, str(tmp_path / "pids")], start_new_session=True)) as process:
        assert process.wait(20) == 0
        left = pids_in(tmp_path / "pids")[1]
        assert alive(left)
    mini_project.wait_until(lambda: not alive(left), 5)


def test_a_killed_parent_takes_the_stage_with_it(tmp_path):
    project = mini_project.make(tmp_path, mini_project.params_with(sources__train__stories__count=mini_project.SLOW))
    parent = (
        "from pathlib import Path; from pipelines import graph; from tasks import processes, settings; project = Path.cwd();"
        "processes.run_stage(project, 'sources', graph.graph(settings.params(project))['sources'].given(7), print)"
    )
    process = mini_project.start(project, sys.executable, "-c", parent)
    mini_project.wait_until(lambda: mini_project.stage_processes(project), 30)
    process.kill()
    process.communicate()
    mini_project.wait_until(lambda: not mini_project.stage_processes(project), 5)
    assert not (project / "data/sources").exists()


def test_errors_of_the_user_and_others(tmp_path):
    project = mini_project.make(tmp_path)
    given = graph.stage("sources", "sources", SourcesSettings(train={}, benchmarks={}, max_bad_rows=0.0)).given(1)
    with pytest.raises(UserError, match="sources: no training problem came from"):
        processes.run_stage(project, "sources", given, lambda rows: None)
    (project / "pipelines/stages/sources.py").write_text("def run(context):\n    raise ZeroDivisionError('a bug')\n")
    with pytest.raises(RuntimeError, match=r"(?s)exit code 1.*Traceback.*ZeroDivisionError: a bug"):
        processes.run_stage(project, "sources", given, lambda rows: None)
    (project / "pipelines/stages/sources.py").write_text("import os, signal\ndef run(context):\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(UserError, match="sources: the process was killed from outside"):
        processes.run_stage(project, "sources", given, lambda rows: None)


def test_the_journal_is_followed_from_where_this_run_begins(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", "sft", out=(tmp_path / "out").open("w"))
    journal.log(1, 9, loss=1.0)
    journal.log(2, 9, loss=2.0)
    seen = []
    follower = processes._Follower(journal, seen.extend)
    follower.look()
    assert seen == [], "what an earlier run left is not this run's"
    journal.cut(1)
    journal.log(2, 9, loss=2.5)
    follower.look()
    journal.log(3, 9, loss=3.0)
    with journal.path.open("a") as file:
        file.write('{"step": 4, "lo')
    follower.look()
    assert seen == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.5}, {"step": 3, "loss": 3.0}]


def test_a_stage_ends_when_its_dvc_is_killed(tmp_path):
    """The ancestor is a stand-in called dvc; test_commands.py does the same with the real one."""
    project = mini_project.make(tmp_path / "project", mini_project.params_with(sources__train__stories__count=mini_project.SLOW))
    stage = (
        "from pathlib import Path; from pipelines import graph; from tasks import processes, settings; project = Path.cwd();"
        "processes.run_stage(project, 'sources', graph.graph(settings.params(project))['sources'].given(7), print)"
    )
    (tmp_path / "dvc").write_text("import subprocess, sys\nsubprocess.run([sys.executable, '-c', sys.argv[1]])\n")
    dvc = subprocess.Popen([sys.executable, str(tmp_path / "dvc"), stage], cwd=project, env=mini_project.environment(DVC_STAGE="sources"))
    mini_project.wait_until(lambda: mini_project.stage_processes(project), 30)
    (stage_parent,) = psutil.Process(dvc.pid).children()
    os.kill(dvc.pid, signal.SIGKILL)
    dvc.wait()
    mini_project.wait_until(lambda: not mini_project.stage_processes(project) and not alive(stage_parent.pid), 5)


def test_settings_reach_the_child_as_they_were_resolved(tmp_path):
    project = mini_project.make(tmp_path)
    echo = "import json\nfrom pathlib import Path\ndef run(context):\n    Path('seen.json').write_text(context.settings.model_dump_json())\n    return {}\n"
    (project / "pipelines/stages/sources.py").write_text(echo)
    given = graph.stage("sources", "sources", SourcesSettings(train={"a": {"kind": "arithmetic", "count": 5}}, benchmarks={})).given(3)
    processes.run_stage(project, "sources", given, lambda rows: None)
    assert json.loads(Path(project / "seen.json").read_text())["train"]["a"]["count"] == 5
