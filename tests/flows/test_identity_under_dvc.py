"""Code and libraries as `dvc repro` sees them: what a user edits between runs, before a stage, and while it runs."""

import shutil
import subprocess
import sys

import mini_project
import pytest
from mlflow import MlflowClient

from pipelines import graph
from pipelines.config import read_yaml
from tasks import dvc_graph, settings


@pytest.fixture(scope="module")
def sources_done(served, ports, tmp_path_factory):
    """A project whose sources were made by DVC alone. To be copied."""
    project = mini_project.make(tmp_path_factory.mktemp("done") / "project")
    params = settings.params(project)
    dvc_graph.write(project, params, graph.graph(params))
    done = Repro(project, ports)("sources")
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def repro(sources_done, ports, tmp_path):
    """`dvc repro` in a project with its sources done."""
    return Repro(shutil.copytree(sources_done, tmp_path / "project", symlinks=True), ports)


class Repro:
    def __init__(self, project, ports):
        self.project = project
        self.environment = mini_project.environment(PREFECT_API_URL=f"http://127.0.0.1:{ports['TOUCHSTONE_PREFECT_PORT']}/api")

    def __call__(self, *arguments):
        command = [sys.executable, "-m", "dvc", "repro", *(stage if stage.startswith("-") else f"data/dvc.yaml:{stage}" for stage in arguments)]
        return subprocess.run(command, cwd=self.project, env=self.environment, capture_output=True, text=True, timeout=600, check=False)


def append(file, text):
    with file.open("a") as opened:
        opened.write(text)


def ran(done):
    return [line.split("'")[1].removeprefix("data/dvc.yaml:") for line in done.stdout.splitlines() if line.startswith("Running stage")]


def test_a_bare_repro_sees_an_edit_of_code_and_no_comment(repro):
    project = repro.project
    append(project / "pipelines/errors.py", "# said more clearly\n")
    done = repro("sources")
    assert (done.returncode, ran(done)) == (0, ["code-identity"])
    append(project / "pipelines/sources/arithmetic.py", "LIMIT = 3\n")
    assert ran(repro("curation")) == ["code-identity", "sources", "curation"]
    uri = f"sqlite:///{project}/.touchstone/mlflow.db"
    client = MlflowClient(uri, uri)
    found = client.search_runs([client.get_experiment_by_name("touchstone").experiment_id], order_by=["attributes.start_time DESC"], max_results=3)
    curated, sourced, parent = found
    assert [run.info.run_name for run in (parent, sourced, curated)] == ["post-training", "sources", "curation"], "what one `dvc repro` runs is one pipeline"
    assert {run.data.tags["mlflow.parentRunId"] for run in (sourced, curated)} == {parent.info.run_id}
    append(project / "pipelines/curation/filters.py", "LIMIT = 4\n")
    mini_project.write_params(project, mini_project.params_with(curation__filters={"prompt_chars": [9, 600]}))
    refused = repro("--single-item", "curation")
    assert refused.returncode != 0
    said = "curation: pipelines/curation/filters.py changed since DVC's stage `code-identity` looked; run `dvc repro` again, with that stage in it"
    assert said in refused.stdout + refused.stderr
    assert ran(repro("curation")) == ["code-identity", "curation"]
    assert mini_project.touchstone(project, "run", "--until", "curation").stdout == "everything is current\n"


@pytest.mark.long
def test_what_is_edited_while_dvc_runs_a_stage_is_not_recorded(repro, ports):
    project = repro.project
    locked = read_yaml(project / "data/dvc.lock")["stages"]["sources"]
    mini_project.write_params(project, mini_project.params_with(sources__train__stories__count=50_000))
    url = f"http://127.0.0.1:{ports['TOUCHSTONE_PREFECT_PORT']}/api"
    process = mini_project.start(project, str(mini_project.BIN / "dvc"), "repro", "data/dvc.yaml:sources", PREFECT_API_URL=url)
    mini_project.wait_until(lambda: mini_project.stage_processes(project) and list((project / "data").glob(".sources.part/*")), 120)
    append(project / "pipelines/sources/arithmetic.py", "LIMIT = 3\n")
    out, error = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "sources: pipelines/sources/arithmetic.py changed while the stage ran" in out + error
    assert read_yaml(project / "data/dvc.lock")["stages"]["sources"] == locked
    assert not (project / "data/manifests/sources.json").exists()
