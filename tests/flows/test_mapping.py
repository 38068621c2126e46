"""Edits of the mapping `stages` rerun what they affect and nothing else, whoever runs it, and what a removed stage has left goes.

The stages are stand-ins: what they write is a digest of their settings and of all that they read. Planning, recording and DVC are real.
"""

import copy
import shutil
import subprocess
import sys

import mini_project
import pytest

from pipelines import graph, paths
from pipelines.config import read_yaml
from tasks import describing, planning, processes, settings, versioning

STAND_IN = """
import hashlib
from pipelines import graph, paths
from pipelines.lineage.digests import files_below
from pipelines.store import write_json

FILES = {
    "sources": ["benchmarks/math.parquet", "problems.parquet"], "curation": ["base.parquet", "sft.parquet", "rl.parquet"],
    "grade": ["graded.parquet", "problems.parquet", "ungraded.parquet"], "synthesise": ["problems.parquet"], "report": ["index.html"],
}
INTERVAL = {"mean": 0.5, "low": 0.4, "high": 0.6}
SCORES = {
    "benchmarks": {"math": {}}, "models": {"merged": {"math": {"pass_at_k": {"1": INTERVAL}}}},
    "gate": {"passed": False, "candidate": "merged", "decided_by": [], "reasons": []},
}


def run(context):
    stage = graph.stage(context.stage, getattr(context.settings, "kind", context.stage), context.settings)
    digest = hashlib.sha256(context.settings.model_dump_json().encode())
    for path in stage.reads:
        for file in files_below(context.root / path):
            digest.update(f"{file.relative_to(context.root)} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    for made in stage.makes:
        for name in FILES.get(stage.kind, ["model.safetensors"]):
            file = context.root / made if made.suffix else context.root / made / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            file.write_text(digest.hexdigest())
    if stage.kind == "evaluation":
        write_json(context.root / paths.SCORES, SCORES)
    return {"figure": 1.0}
"""
SFT = {"kind": "sft", "init": "base", "data": "curation/sft"}
EXTRA = {"kind": "rl", "init": "sft", "data": "difficulty"}
THEIRS = {"kind": "command", "init": "sft", "data": "difficulty", "command": ["python", "mine.py"], "code": ["mine.py"], "rollouts": True}
REST = ["merged", "evaluation", "report"]


def with_stand_ins(folder):
    project = mini_project.make(folder)
    for file in (project / "pipelines/stages").glob("*.py"):
        if file.stem not in ("__init__", "identity", "rows"):
            file.write_text(STAND_IN)
    (project / "mine.py").write_text("print('ours')\n")
    preloaded = project / "pipelines/preloaded.py"
    preloaded.write_text(preloaded.read_text().replace('\nif __name__ == "__main__":', '\nLIBRARIES = ()  # stand-ins need none\nif __name__ == "__main__":'))
    return project


def run(project):
    """What `touchstone run` does, without servers: names of the stages that ran."""
    plan, ran = planning.make(project), []
    seed = settings.params(project).seed
    for name, stage in plan.stages.items():
        if planning.stale(project, plan, name):
            processes.run_stage(project, name, stage.given(seed), lambda rows: None)
            versioning.record(project, name)
            ran.append(name)
    return ran


def planned(project):
    """Stage -> what `touchstone check` says of it."""
    found = (line.partition(": ") for line in describing.plan(project))
    return {name: said for name, _, said in found if said and not name.startswith((" ", "params"))}


def edited(project, **changes):
    """Write params whose mapping has these entries; None takes one out."""
    params = mini_project.params_with()
    params["stages"] = {name: entry for name, entry in (params["stages"] | changes).items() if entry is not None}
    mini_project.write_params(project, params)
    return params


def entry(name, **changes):
    return copy.deepcopy(mini_project.PARAMS["stages"][name]) | changes


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """All stages done."""
    project = with_stand_ins(tmp_path_factory.mktemp("mapping") / "project")
    assert run(project) == list(graph.graph(settings.params(project)))
    return project


@pytest.fixture
def project(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "copy", symlinks=True)


def left_of(project, name):
    return sorted(path.relative_to(project / "data").as_posix() for path in (project / "data").rglob(f"{name}*") if path.parent.name != "identity")


EDITS = {
    "rename": ({"code": None, "coder": entry("code"), "merged": entry("merged", models=["coder", "math"])}, ["coder", *REST]),
    "add": ({"extra": EXTRA}, ["extra", "evaluation", "report"]),
    "add rows that nobody reads": ({"extra": {"kind": "grade", "init": "sft", "data": "curation/rl"}}, ["extra", "report"]),
    "put one between": (
        {"again": {"kind": "grade", "init": "math", "data": "curation/rl"}, "code": entry("code", data="again")}, ["again", "code", *REST],
    ),
    "remove": ({"code": None, "merged": entry("merged", models=["math"])}, REST),
    "another kind": ({"code": SFT}, ["code", *REST]),
    "a program in its place": ({"code": THEIRS}, ["code", *REST]),
    "another kind of rows": ({"synthesis": {"kind": "grade", "init": "sft", "data": "curation/rl"}}, ["synthesis", "math", "code", *REST]),
    "other rows": ({"math": entry("math", data="difficulty")}, ["math", "code", *REST]),
    "another start": ({"code": entry("code", init="sft")}, ["code", *REST]),
    "an extrapolation in place of the merge": (
        {"math": entry("math", keep={"every": 5}), "merged": {"kind": "extrapolate", "init": "math", "target": 90}}, ["math", "code", *REST],
    ),
    "a condition": ({"code": entry("code", where={"pass_rate": [0.2, 0.8]})}, ["code", *REST]),
    "nothing": ({}, []),
}  # fmt: skip


@pytest.fixture(scope="module")
def any_edit(recorded, tmp_path_factory):
    """A project whose params may be edited and in which nothing may run."""
    return shutil.copytree(recorded, tmp_path_factory.mktemp("edited") / "copy", symlinks=True)


@pytest.mark.parametrize("edit", EDITS)
def test_check_says_what_an_edit_affects(any_edit, edit):
    changes, expected = EDITS[edit]
    edited(any_edit, **changes)
    said = planned(any_edit)
    certain = [name for name, text in said.items() if text.startswith("runs")]
    possible = [name for name, text in said.items() if text != "current"]
    assert set(certain) <= set(expected) <= set(possible)


RUN = {"rename", "add rows that nobody reads", "put one between", "nothing"}
"""Tests below run others."""


@pytest.mark.parametrize("edit", [pytest.param(edit, marks=() if edit in RUN else pytest.mark.long) for edit in EDITS])
def test_an_edit_reruns_what_it_affects(project, edit):
    changes, expected = EDITS[edit]
    edited(project, **changes)
    assert run(project) == expected
    assert set(planned(project).values()) == {"current"}


def test_what_a_removed_stage_left_goes_and_comes_back_from_the_cache(project, capsys):
    weights = (project / "data/models/code/model.safetensors").read_bytes()
    assert left_of(project, "code") == ["manifests/code.json", "metrics/code.json", "models/code", "plots/code.csv", "rollouts/code", "seen/code.parquet"]
    edited(project, code=None, merged=entry("merged", models=["math"]))
    assert run(project) == REST
    assert left_of(project, "code") == []
    assert "code is no longer in params.yaml: removed what it had left (DVC's cache keeps it)" in capsys.readouterr().out
    assert "code" not in read_yaml(project / paths.GRAPH)["stages"]
    edited(project)
    assert run(project) == [], "all of it was made before"
    assert (project / "data/models/code/model.safetensors").read_bytes() == weights


def test_a_stage_that_nobody_names_can_be_removed_again(project):
    """Its model was evaluated: the evaluation must not stand as it is, though all that it still reads is the same."""
    before = (project / paths.SCORES).read_bytes(), (project / "data/evaluation/model.safetensors").read_bytes()
    edited(project, extra=EXTRA)
    assert run(project) == ["extra", "evaluation", "report"]
    assert (project / "data/evaluation/model.safetensors").read_bytes() != before[1]
    edited(project)
    said = planned(project)
    assert said["evaluation"].startswith(("runs", "taken from the cache"))
    assert "(its models modified" in said["evaluation"]
    run(project)
    assert ((project / paths.SCORES).read_bytes(), (project / "data/evaluation/model.safetensors").read_bytes()) == before
    assert left_of(project, "extra") == []


def test_a_stage_of_another_kind_keeps_nothing_of_the_kind_that_it_was(project):
    edited(project, code=SFT)
    assert run(project) == ["code", *REST]
    assert left_of(project, "code") == ["manifests/code.json", "metrics/code.json", "models/code", "plots/code.csv", "seen/code.parquet"]


@pytest.mark.long
def test_an_edit_of_a_program_or_of_its_packages_reruns_its_stage(project):
    installed = project / ".venv-own/lib/python3.11/site-packages/trl-1.0.dist-info"
    (project / ".venv-own/bin").mkdir(parents=True)
    (project / ".venv-own/bin/python").write_text("")
    (project / ".venv-own/bin/python").chmod(0o755)
    installed.mkdir(parents=True)
    edited(project, code=THEIRS | {"environment": ".venv-own"})
    assert run(project) == ["code", *REST] and run(project) == []
    (project / "mine.py").write_text("print('another')\n")
    assert planned(project)["code"] == "runs (mine.py modified)"
    assert run(project) == ["code", *REST]
    installed.rename(installed.with_name("trl-1.1.dist-info"))
    assert run(project) == ["code", *REST] and run(project) == []
    edited(project)
    assert run(project) == [] and not (project / "data/identity/environments/_venv-own.json").exists()


def test_a_stage_that_keeps_no_weights_any_more_leaves_none(project):
    kept = project / paths.KEPT / "math/step-000005"
    kept.mkdir(parents=True)
    versioning.prune(project, graph.graph(settings.params(project)))
    assert not kept.parent.exists()


def test_the_order_of_the_mapping_decides_nothing(project):
    file = project / paths.GRAPH
    before = file.read_text()
    params = mini_project.params_with()
    params["stages"] = dict(reversed(params["stages"].items()))
    mini_project.write_params(project, dict(reversed(params.items())))
    assert set(planned(project).values()) == {"current"}
    assert run(project) == [] and file.read_text() == before


def test_the_order_of_rows_and_how_they_are_named_decides_nothing_of_what_a_stage_gets(project):
    found = []
    for data in (["difficulty", "synthesis"], ["synthesis", "difficulty"], {"synthesis": {}, "difficulty": None}):
        edited(project, math=entry("math", data=data))
        found.append(graph.graph(settings.params(project))["math"].given(7))
    assert found[0] == found[1] == found[2]


@pytest.fixture
def dvc(served, ports):
    """`dvc` in a project, against the server that is up."""

    def run(project, *arguments, check=True):
        command = [sys.executable, "-m", "dvc", *arguments]
        environment = mini_project.environment(PREFECT_API_URL=f"http://127.0.0.1:{ports['TOUCHSTONE_PREFECT_PORT']}/api", **ports)
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=240, check=check)

    return run


def ran(done):
    return [line.partition(": runs (")[0] for line in done.stdout.splitlines() if ": runs (" in line]


def test_dvc_repro_is_touchstone_run(project, recorded, dvc, ports, tmp_path):
    """After the same edits the lock files have the same bytes; nothing is left of what is gone; `status` and `repro` of single stages agree."""
    other = shutil.copytree(recorded, tmp_path / "other", symlinks=True)
    for folder in (project, other):
        edited(folder, code=None, coder=entry("code", steps=3), merged=entry("merged", models=["coder", "math"]))
    done = dvc(project, "repro")
    assert ran(done) == ["coder", *REST]
    assert ran(mini_project.touchstone(other, "run", **ports)) == ["coder", *REST]
    assert (project / "data/dvc.lock").read_bytes() == (other / "data/dvc.lock").read_bytes()
    assert left_of(project, "code") == left_of(project, "coder") == left_of(other, "code") != []
    assert ran(dvc(project, "repro")) == []
    assert dvc(project, "status", "data/dvc.yaml").stdout == "data/dvc.yaml:code-identity:\n\talways changed\n"
    assert "Running stage" not in dvc(project, "repro", "data/dvc.yaml:merged").stdout.replace("Running stage 'data/dvc.yaml:code-identity'", "")


def test_dvc_refuses_a_graph_that_is_no_longer_that_of_params(project, dvc):
    edited(project, extra=EXTRA, math=entry("math", steps=3))
    done = dvc(project, "repro", "data/dvc.yaml:math", check=False)
    assert done.returncode != 0
    assert "data/dvc.yaml is not what params.yaml says; `dvc repro` or `touchstone run` brings it in line" in done.stdout + done.stderr
