"""Experiments of DVC: what of them outlives the folder they run in, and sweeps over params.yaml."""

import subprocess
from pathlib import Path

import mini_project
import pytest
import yaml
from mlflow import MlflowClient
from test_mapping import run, with_stand_ins

from pipelines import paths
from pipelines.errors import UserError
from tasks import experiments

SAMPLES = """


def samples(context, model):
    from pipelines.evaluation.samples import SAMPLE_SCHEMA
    from pipelines.store import write_table
    import pyarrow as pa

    right = int((context.root / paths.model(model) / "model.safetensors").read_text(), 16)
    row = {"topics": [], "prompt": "", "answer": "", "answer_type": "text", "seed": 0, "response": "", "response_tokens": 1, "finish_reason": "stop", "detail": ""}
    rows = [
        {**row, "problem_id": f"{p:03d}", "sample": s, "outcome": ("correct", "wrong")[right >> (p + s) & 1], "score": float(1 - (right >> (p + s) & 1))}
        for p in range(60) for s in range(2)
    ]
    write_table(context.root / paths.SAMPLES / model / "math.parquet", pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA))


plain = run


def run(context):
    summary = plain(context)
    for model in context.settings.models:
        samples(context, model)
    return summary
"""
LAID_OUT = "# mine\n" + yaml.safe_dump(mini_project.PARAMS, sort_keys=False, default_flow_style=None, width=150).replace(
    "data: [difficulty, synthesis]\n", "data: [difficulty, synthesis]  # both, in a line of more than the eighty columns at which others break it\n"
)
GIT = ("git", "-c", "user.name=somebody", "-c", "user.email=somebody@example.org")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages done and committed; what the models of the evaluation answer follows from their weights."""
    project = with_stand_ins(tmp_path_factory.mktemp("experiments") / "project")
    with (project / "pipelines/stages/evaluation.py").open("a") as file:
        file.write(SAMPLES)
    (project / "params.yaml").write_text(LAID_OUT)
    run(project)
    for command in (["add", "-A"], ["commit", "-qm", "all stages"]):
        git(project, *command)
    return project


def git(project: Path, *command: str) -> str:
    return subprocess.run([*GIT, *command], cwd=project, capture_output=True, text=True, check=True).stdout


def test_a_sweep_runs_what_its_edits_affect_and_compares_it(project: Path, served, ports) -> None:
    environment = {"PREFECT_API_URL": f"http://127.0.0.1:{ports['TOUCHSTONE_PREFECT_PORT']}/api", **ports}
    before = (project / "params.yaml").read_bytes(), (project / "data/dvc.lock").read_bytes()

    def swept() -> subprocess.CompletedProcess[str]:
        return mini_project.touchstone(project, "sweep", "stages.math.recipe=grpo,dapo", "--name", "try", **environment)

    done = swept()
    assert done.returncode == 0, done.stdout + done.stderr
    ran = [line.partition(": runs (")[0] for line in done.stdout.splitlines() if ": runs (" in line]
    assert ran == ["math", "report", "math", "code", "merged", "evaluation", "report"], "grpo is what math has made already"
    lines = done.stdout.splitlines()
    assert "pass@1, each against stages.math.recipe grpo; p is corrected over all of them (Holm)" in lines
    assert lines[-1].startswith("math       stages.math.recipe dapo")
    assert ((project / "params.yaml").read_bytes(), (project / "data/dvc.lock").read_bytes()) == before, "the work tree stays as it is"
    client = MlflowClient(f"sqlite:///{project}/.touchstone/mlflow.db", f"sqlite:///{project}/.touchstone/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("touchstone").experiment_id], "tags.`touchstone.kind` = 'stage'")
    assert {run.data.tags["dvc.exp"].partition("-")[0] for run in found} == {"try"} and {run.info.status for run in found} == {"FINISHED"}
    assert client.search_model_versions("name = 'touchstone-merged'") and client.get_registered_model("touchstone-merged").aliases == {}
    named = experiments.named("try", {"stages.math.recipe": "dapo"})
    kept = list((project / experiments.EXPERIMENTS).glob("*/work/math"))
    assert len(kept) == 2 and not list((project / ".dvc/tmp/exps/standalone").glob("tmp*"))
    (ref,) = [ref for ref in git(project, "for-each-ref", "--format=%(refname)").split() if ref.endswith(named)]
    edited = git(project, "show", f"{ref}:params.yaml").splitlines()
    assert [line for line in edited if line not in LAID_OUT.splitlines()] == ["    recipe: dapo"], "comments and lines stay"
    assert [line for line in LAID_OUT.splitlines() if line not in edited] == []
    again = swept()
    assert " runs (" not in again.stdout and again.stdout.splitlines()[-4:] == lines[-4:], "each point once"


@pytest.mark.parametrize(
    ("edits", "points"),
    [
        (["a.b=1,2", "c=x"], [{"a.b": 1, "c": "x"}, {"a.b": 2, "c": "x"}]),
        (["band=[0.1, 0.9],[0, 1]"], [{"band": [0.1, 0.9]}, {"band": [0, 1]}]),
        (["o={name: ppo, low: 0.2},null"], [{"o": {"name": "ppo", "low": 0.2}}, {"o": None}]),
    ],
)
def test_a_grid_has_every_combination_the_first_values_first(edits: list[str], points: list[dict]) -> None:
    assert experiments.grid(edits) == points


@pytest.mark.parametrize("edits", [["a"], ["=1"], ["a="], ["a=1", "a=2"], ["a=[1"]])
def test_what_is_no_edit_is_refused(edits: list[str]) -> None:
    with pytest.raises(UserError, match="expected KEY=VALUE,VALUE,... with a key of params.yaml, each once"):
        experiments.grid(edits)


def test_the_state_of_a_copy_is_the_projects_by_what_its_params_say(tmp_path: Path) -> None:
    assert experiments.home(tmp_path) == tmp_path
    copies = [tmp_path / ".dvc/tmp/exps/standalone" / name for name in ("one", "two", "three")]
    for copy, text in zip(copies, ("seed: 1", "seed: 1", "seed: 2"), strict=True):
        copy.mkdir(parents=True)
        (copy / "params.yaml").write_text(text)
        experiments.adopt(copy)
        experiments.adopt(copy)
        assert experiments.home(copy) == tmp_path
    one, two, three = [(copy / paths.STATE).resolve() for copy in copies]
    assert one == two != three and one.parent == tmp_path / experiments.EXPERIMENTS
    experiments.adopt(tmp_path)
    assert not (tmp_path / paths.STATE).is_symlink()


def test_a_copy_has_the_virtual_environments_of_its_programs(tmp_path: Path) -> None:
    copy = tmp_path / ".dvc/tmp/exps/standalone/one"
    copy.mkdir(parents=True)
    (tmp_path / "envs/own/bin").mkdir(parents=True)
    named = {name: {"kind": "command", "environment": name} for name in ("envs/own", "envs/gone")}
    (copy / "params.yaml").write_text(yaml.safe_dump({"stages": {**named, "sft": {"kind": "sft"}}}))
    experiments.adopt(copy)
    assert (copy / "envs/own/bin").is_dir() and not (copy / "envs/gone").exists()
