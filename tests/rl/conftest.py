"""What the tests of RL share: weights of a policy that has learnt a little, and a project in which an RL stage can run."""

import pytest
from loops import cold_start, project

from pipelines.rl import RECIPES, run
from pipelines.rl.objective import Tensors
from pipelines.verifiers import VerifierPool


class WarmPool(VerifierPool):
    """The real pool with verdicts of its own, on worker processes that stay: they take longer to start than a run of these tests to end."""

    _warm = None

    def __init__(self, **given) -> None:
        super().__init__(**given)
        WarmPool._warm = self._workers = WarmPool._warm or self._workers

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


@pytest.fixture(scope="session", autouse=True)
def warm_verifiers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "VerifierPool", WarmPool)
        yield
    if WarmPool._warm:
        WarmPool._warm.close()


@pytest.fixture(autouse=True)
def a_worked_example_runs_its_row(request, monkeypatch):
    """A test called `test_<row>` computes advantages or a loss by that very row."""
    name = request.function.__name__.removeprefix("test_")
    if name not in RECIPES:
        yield
        return
    ran, call = set(), Tensors.call

    def noting(tensors, function):
        ran.add(tensors._recipe)
        return call(tensors, function)

    monkeypatch.setattr(Tensors, "call", noting)
    yield
    assert name in ran, f"test_{name} computes nothing by the row {name} (it ran {sorted(ran) or 'none'})"


@pytest.fixture(scope="session")
def learnt(tmp_path_factory):
    """A policy that answers in the right form and is sometimes right; nobody may train it."""
    return cold_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="session")
def start(learnt):
    """Its weights."""
    return {name: value.clone() for name, value in learnt.state_dict().items()}


@pytest.fixture(scope="session")
def rl_project(learnt, tmp_path_factory):
    """A project whose stage t has what it reads; given.json holds what it is given. To be copied."""
    root = tmp_path_factory.mktemp("template")
    project(root, learnt)
    return root
