"""Experiments of DVC: what of them outlives the folder they run in, and sweeps over params.yaml."""

import re
import subprocess
from pathlib import Path

import mini_project
import pytest
import yaml
from mlflow import MlflowClient
from test_mapping import run, with_stand_ins

from pipelines import paths
from pipelines.errors import UserError
from tasks import experiments, stopping

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
LEARNS = """


import time
plain = run


def run(context):
    slow, before = context.settings.optimiser.lr < 1e-4, len(context.journal.rows())
    for step in range(before + 1, context.settings.steps + 1):
        wiggle = (7 * step % 5 - 2) / 100
        context.journal.record(step, {"pass_rate": (0.3 if slow else 0.8 - 0.4 / step) + wiggle}, {})
        if slow and step == 48 and not before:
            time.sleep(200)
    return plain(context)
"""
"""A stage with a learning curve: flat at a small learning rate, where it stops to be looked at the first time."""
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
    with (project / "pipelines/stages/rl.py").open("a") as file:
        file.write(LEARNS)
    (project / "params.yaml").write_text(LAID_OUT)
    run(project)
    for command in (["add", "-A"], ["commit", "-qm", "all stages"]):
        git(project, *command)
    return project


def git(project: Path, *command: str) -> str:
    return subprocess.run([*GIT, *command], cwd=project, capture_output=True, text=True, check=True).stdout


@pytest.mark.long
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


@pytest.mark.long
def test_a_hopeless_point_is_stopped_and_goes_on_when_it_is_asked_for(project: Path, served, ports) -> None:
    environment = {"PREFECT_API_URL": f"http://127.0.0.1:{ports['TOUCHSTONE_PREFECT_PORT']}/api", **ports}
    edits = ("sweep", "stages.math.optimiser.lr=0.001,0.00001", "--name", "early")
    done = mini_project.touchstone(project, *edits, "--stop-early", "math", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    *table, why, last = done.stdout.splitlines()
    assert table[-1].startswith("math       stages.math.optimiser.lr 0.001")
    assert re.fullmatch(
        r"stages.math.optimiser.lr 1e-05: stopped after step 48 of 80 of math, where its end was predicted at a pass rate of 0\.3\d\d "
        r"\[0\.0\d\d, 0\.5\d\d\], and the best before it reached 0\.79\d",
        why,
    )
    assert last == "what was stopped goes on from its checkpoint when the same sweep runs without --stop-early"
    assert experiments.named("early", {"stages.math.optimiser.lr": 1e-5}) not in git(project, "for-each-ref", "--format=%(refname)")
    assert not list((project / ".dvc/tmp/exps/standalone").glob("tmp*"))

    done = mini_project.touchstone(project, *edits, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("math       stages.math.optimiser.lr 1e-05")
    journals = [len(file.read_text().splitlines()) for file in (project / experiments.EXPERIMENTS).glob("*/work/math/journal.jsonl")]
    assert set(journals) == {80}, "what it had is kept, and no step was done twice"


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (["seed=1,2"], "do not mean the same (seed: 1 -> 2); run this sweep without it"),
        (["stages.difficulty.band=[0.1, 0.9],[0, 1]"], "(difficulty.band"),
        (["stages.sft.train.epochs=1,2"], "(sft.train.epochs: 1.0 -> 2.0)"),
        (["stages.math.where={domain: [math]},{domain: [code]}"], "(stages.math.where.domain"),
        (["stages.math.generation.temperature=1.0,0.7"], "(stages.math.generation.temperature: 1.0 -> 0.7)"),
        (["stages.math.recipe=grpo,scale_rl"], "(stages.math.recipe.tasks"),
        (["stages.math.recipe=grpo,reinforce_ada"], "(stages.math.recipe.explore"),
        (["stages.math.init.more=1,2"], "--stop-early: 'stages.math.init.more' names no key of params.yaml"),
    ],
)
def test_points_whose_pass_rates_mean_something_else_are_refused(tmp_path: Path, edits: list[str], message: str) -> None:
    mini_project.write_params(tmp_path, mini_project.PARAMS)
    with pytest.raises(UserError) as refused:
        stopping.watch(tmp_path, "math", experiments.grid(edits))
    assert message in str(refused.value)


def test_points_that_learn_otherwise_are_comparable(tmp_path: Path) -> None:
    """Another recipe, reward, learning rate or length leaves what a pass rate means; only a stage of kind rl has one."""
    mini_project.write_params(tmp_path, mini_project.PARAMS)
    overrides = "{},{combine: {name: weighted, weights: {correct: 1.0, format: 0.1}}}"
    points = experiments.grid(["stages.math.recipe=grpo,dr_grpo", "stages.math.steps=40,80", f"stages.math.overrides={overrides}", "stages.math.init=sft"])
    assert stopping.watch(tmp_path, "math", points).steps == [40, 40, 80, 80] * 2
    with pytest.raises(UserError, match="--stop-early sft: with stages.math.init sft it is no stage of kind rl, which journals pass rates; there are code, math"):
        stopping.watch(tmp_path, "sft", experiments.grid(["stages.math.init=sft"]))


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
