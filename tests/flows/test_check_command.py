"""Every front door refuses params that would fail later, before anything runs; `touchstone check` says what a run would do."""

import subprocess
import sys

import mini_project
import pytest
import yaml

from pipelines import graph, paths
from pipelines.config import load
from pipelines.errors import UserError
from tasks import describing

WRONG = "stages.code.recipe: there is no 'grppo'; did you mean 'grpo'?"
DOORS = {
    "run": ["flows.cli", "run"],
    "run until the first stage": ["flows.cli", "run", "--until", "sources"],
    "check": ["flows.cli", "check"],
    "stage of dvc repro": ["flows.stage", "sources"],
    "another stage of dvc repro": ["flows.stage", "math"],
    "bare": ["pipelines", "sources", "--params", "params.yaml"],
}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    return mini_project.make(tmp_path_factory.mktemp("wrong"), mini_project.params_with(stages__code__recipe="grppo", stages__merged__method="rma"))


def command(project, *words, **more):
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=project, env=mini_project.environment(**more), capture_output=True, text=True, timeout=120, check=False
    )


def files(project):
    """Path -> bytes of all but what git, DVC and Python keep for themselves, the lock of a run, and what is remembered to save time."""
    own = (".git", ".dvc", "__pycache__", "run.lock", paths.CODE_MEMORY.name, paths.CHECKED.name)
    return {path: path.read_bytes() for path in project.rglob("*") if path.is_file() and not set(own) & set(path.relative_to(project).parts)}


@pytest.mark.parametrize("door", [pytest.param(door, marks=pytest.mark.long if door in ("run", "another stage of dvc repro") else ()) for door in DOORS])
def test_a_wrong_name_is_refused_at_every_door_before_anything_runs(wrong, door):
    before = files(wrong)
    done = command(wrong, *DOORS[door])
    assert done.returncode == 2
    assert [line.removeprefix(f"{wrong}/").removeprefix("params.yaml: ").split(" Known: ")[0] for line in done.stderr.splitlines()] == [
        WRONG, "stages.merged.method: there is no 'rma'; did you mean 'ram'?",
    ]  # fmt: skip
    assert files(wrong) == before


def test_dvc_repro_and_a_deployment_refuse_too(wrong, monkeypatch):
    done = subprocess.run(
        [mini_project.BIN / "dvc", "repro"], cwd=wrong, env=mini_project.environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0 and WRONG in done.stdout + done.stderr
    assert not (wrong / paths.PROBLEMS).exists()
    from flows.post_training import post_training

    monkeypatch.setenv("TOUCHSTONE_ROOT", str(wrong))
    with pytest.raises(UserError, match="did you mean 'grpo'"):
        post_training.fn()  # what a served run calls
    assert not (wrong / paths.PROBLEMS).exists()


def test_an_overlay_that_would_not_hold_is_not_written(tmp_path):
    project = mini_project.make(tmp_path / "p")
    before = (project / "params.yaml").read_bytes()
    (project / "overlay.yaml").write_text(yaml.safe_dump({"stages": {"code": {"recipe": "grppo"}}, "base": {"model": "../none"}}))
    done = command(project, "flows.cli", "configure", "overlay.yaml")
    assert done.returncode == 2
    assert WRONG in done.stderr and "overlay.yaml: base.model: ../none: no such folder" in done.stderr
    assert done.stderr.splitlines()[-1] == "params.yaml is left as it was"
    assert (project / "params.yaml").read_bytes() == before


def test_check_tells_the_plan_and_changes_nothing(tmp_path):
    project = mini_project.make(tmp_path / "p")
    before = files(project)
    done = command(project, "flows.cli", "check")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    stages = ["sources", "curation", "base", "sft", "difficulty", "synthesis", "math", "code", "merged", "evaluation", "report"]
    assert lines[0] == "sources -> curation -> base -> sft -> difficulty -> synthesis -> math -> code -> merged -> evaluation -> report"
    assert [line for line in lines[1:] if not line.startswith(" ")] == [
        *(f"{stage}: runs (it has not run yet)" for stage in stages), "params.yaml holds: 11 stages, 11 to run",
    ]  # fmt: skip
    assert "    makes  data/models/code, data/rollouts/code, data/seen/code.parquet" in lines
    assert "    from math, reference sft; data difficulty, synthesis where domain math" in lines
    assert "    ram (its defaults) of code, math on sft" in lines
    after = files(project)
    assert after.pop(project / paths.GRAPH), "DVC is told what the stages are"
    assert after == before

    from tasks import processes, settings, versioning

    stage = graph.graph(settings.params(project))["sources"]
    versioning.prepare_code(project, stage)
    processes.run_stage(project, "sources", stage.given(7), lambda rows: None)
    versioning.record(project, "sources")
    assert "sources: current" in command(project, "flows.cli", "check").stdout.splitlines()
    mini_project.write_params(project, mini_project.params_with(sources__max_bad_rows=0.5))
    before = files(project)
    done = command(project, "flows.cli", "check")
    assert done.stdout.splitlines()[1] == "sources: runs (params.yaml: sources modified)"
    mini_project.write_params(project, mini_project.params_with(seed=8))
    assert "seed modified" in command(project, "flows.cli", "check").stdout.splitlines()[1]
    mini_project.write_params(project, mini_project.params_with(sources__max_bad_rows=0.5))
    assert files(project) == before


def test_a_reader_that_has_seen_enough_gets_no_traceback(tmp_path):
    project = mini_project.make(tmp_path / "p")
    told = subprocess.run(f"{sys.executable} -m flows.cli check | head -1; echo ${{PIPESTATUS[0]}}", shell=True, executable="/bin/bash", cwd=project,
                          env=mini_project.environment(PYTHONUNBUFFERED="1"), capture_output=True, text=True, timeout=120)  # fmt: skip
    assert told.stdout.startswith("sources -> curation") and told.stdout.endswith("141\n") and told.stderr == ""


def test_stages_that_need_not_wait_for_each_other_stand_side_by_side():
    params = load(mini_project.REPOSITORY / "params.yaml")
    drawn = "sources -> curation -> base -> sft -> difficulty -> synthesis -> code, math -> merged -> evaluation -> report"
    assert describing.drawn(graph.graph(params)) == drawn


def test_readme_draws_the_graph_of_params():
    drawn = describing.mermaid(graph.graph(load(mini_project.REPOSITORY / "params.yaml")))
    assert f"```mermaid\n{drawn}\n```" in (mini_project.REPOSITORY / "README.md").read_text()
    assert "    sft --> math" in drawn and "report" not in drawn
