"""One project with its lasting servers up, shared by the tests of commands: each command then starts in seconds."""

import mini_project
import pytest


@pytest.fixture(scope="session")
def ports():
    return {"TOUCHSTONE_PREFECT_PORT": str(mini_project.free_port()), "TOUCHSTONE_MLFLOW_PORT": str(mini_project.free_port())}


@pytest.fixture(scope="session")
def served(tmp_path_factory, ports):
    """A project after `touchstone up`; `touchstone down` at the end leaves no process."""
    project = mini_project.make(tmp_path_factory.mktemp("served"))
    done = mini_project.touchstone(project, "up", **ports)
    assert (done.returncode, done.stderr) == (0, "")
    yield project
    done = mini_project.touchstone(project, "down", **ports)
    assert (done.returncode, done.stdout) == (0, "stopped prefect and mlflow\n")


@pytest.fixture
def project(served):
    """The served project with the usual params."""
    mini_project.write_params(served, mini_project.PARAMS)
    return served
