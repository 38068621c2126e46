"""data/dvc.yaml is what params.yaml says: every stage of the mapping with what it reads, makes and depends on."""

import ast
import copy
from pathlib import Path

import pytest
import yaml

from pipelines import graph, paths
from pipelines.config import STANDING, Params, load
from pipelines.stages import ENTRIES
from tasks import dvc_graph

ROOT = Path(__file__).parents[1]
DEFAULT = load(ROOT / "params.yaml")
SMALL = yaml.safe_load((ROOT / "params.yaml").read_text())
STAGES = {
    "first": {"kind": "sft", "init": "base", "data": "curation/sft"},
    "who": {"kind": "grade", "init": "first", "data": ["curation/rl", "rows/mine.jsonl"], "limit": {"math": 10}},
    "more": {"kind": "synthesise", "data": "who/graded"},
    "own": {"kind": "synthesise", "data": "who/graded", "curation": {}, "generators": {"a": {"kind": "arithmetic", "count": 5}}},
    "code": {"kind": "rl", "init": "first", "data": {"who": {"share": 3}, "more": {"share": 1}}},
    "said": {"kind": "sample", "init": "code", "data": "curation/rl"},
    "lively": {"kind": "select", "data": ["who", "code/rollouts"], "score": "variance", "most": 1},
    "asked": {"kind": "critique", "data": ["who", "code/rollouts", "said/rollouts"]},
    "aimed": {"kind": "target", "data": "curation/sft", "weak": "said", "answers": "said/rollouts", "skills": {}},
    "both": {"kind": "grade", "init": "first", "data": "said", "strong": {"model": "code"}},
    "late": {"kind": "rl", "init": "code", "reference": "first", "data": "own", "keep": {"every": 10}},
    "liked": {"kind": "preference", "init": "late", "reference": "first", "data": ["code/rollouts", "who", "rows/pairs.jsonl"]},
    "scorer": {"kind": "reward_model", "init": "first", "data": ["code/rollouts", "rows/pairs.jsonl"]},
    "pleasing": {
        "kind": "rl", "init": "first", "data": "who", "judge": {"stage": "scorer"},
        "overrides": {"parts": [{"name": "verdict"}, {"name": "reward_model", "stage": "scorer"}]},
    },
    "taught": {"kind": "distil", "init": "first", "data": "who", "teachers": {"code": "code", "*": "late"}},
    "later": {"kind": "extrapolate", "init": "late", "target": 100},
    "wide": {"kind": "pretrain", "init": "base", "data": ["curation/base", "notes/all.txt"], "keep": {"every": 10}},
    "plain": {"kind": "merge", "init": "first", "models": ["late", "code"]},
    "sought": {"kind": "merge", "init": "first", "models": ["late", "code"], "search": {"data": "who/ungraded"}},
    "theirs": {
        "kind": "command", "init": "first", "data": "who", "command": ["python", "mine.py"], "code": ["mine.py", "lib"], "environment": ".venv-trl",
        "rollouts": True, "plot": "reward",
    },
    "plainly": {"kind": "command", "init": "theirs", "data": "curation/sft", "command": ["mine"], "code": ["mine.py"]},
}
"""A stage of every kind, and of those that read more by their settings one of each sort."""


def params(**changes):
    content = copy.deepcopy(SMALL) | {"stages": STAGES} | changes
    content["evaluation"] = {"gate": {"candidate": "plain", "against": "first"}} | changes.get("evaluation", {})
    return Params.model_validate(content)


def document(given):
    return yaml.safe_load(dvc_graph.text(given, graph.graph(given)))["stages"]


def entries(stage, part):
    """Paths in a list whose members are `path` or `{path: options}`, with the options."""
    return {
        next(iter(entry)) if isinstance(entry, dict) else entry: next(iter(entry.values())) if isinstance(entry, dict) else {}
        for entry in stage.get(part, [])
    }


GIVEN = params()
GRAPH = graph.graph(GIVEN)
DOCUMENT = document(GIVEN)
NAMES = list(GRAPH)


def test_dvc_yaml_has_one_stage_which_runs_the_others():
    (stage,) = (found := yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]).values()
    assert list(found) == ["pipeline"]
    assert stage["cmd"] == "python -m flows.cli run" and stage["always_changed"] is True
    assert not {"deps", "outs", "params", "metrics", "plots"} & set(stage), "what it depends on is asked of each stage"


def test_the_file_that_comes_with_the_project_is_that_of_its_params():
    assert (ROOT / paths.GRAPH).read_text() == dvc_graph.text(DEFAULT, graph.graph(DEFAULT))


def test_the_stages_are_those_of_params_and_dvcs_own():
    assert list(DOCUMENT) == [dvc_graph.CODE, *NAMES]
    assert [*STANDING[:3], "first", "who", "more", "code", "said", "aimed", "asked", "both", "own", "late", "later", "liked", "lively", "plain", "theirs", "plainly", "scorer", "pleasing", "sought", "taught", "wide", *STANDING[3:]] == NAMES
    assert {stage.kind for stage in GRAPH.values()} == set(ENTRIES)


def test_a_stage_called_code_is_none_of_dvcs_own():
    assert dvc_graph.CODE not in NAMES and DOCUMENT["code"]["cmd"] == "python -m flows.stage code"
    with pytest.raises(ValueError, match="match pattern"):
        params(stages=STAGES | {dvc_graph.CODE: STAGES["first"]})


DEPS = {
    "sources": ["data/external/sources"],
    "curation": ["data/sources"],
    "base": ["data/curation/base.parquet", "data/external/base"],
    "first": ["data/models/base", "data/curation/sft.parquet"],
    "who": ["data/models/first", "data/curation/rl.parquet", "rows/mine.jsonl"],
    "more": ["data/rows/who/graded.parquet", "data/curation", "data/sources/benchmarks"],
    "own": ["data/rows/who/graded.parquet", "data/curation", "data/sources/benchmarks"],
    "code": ["data/models/first", "data/rows/more/problems.parquet", "data/rows/who/problems.parquet"],
    "said": ["data/models/code", "data/curation/rl.parquet"],
    "lively": ["data/rollouts/code", "data/rows/who/problems.parquet"],
    "aimed": ["data/curation/sft.parquet", "data/rows/said/problems.parquet", "data/rollouts/said"],
    "asked": ["data/rollouts/code", "data/rollouts/said", "data/rows/who/problems.parquet"],
    "both": ["data/models/first", "data/models/code", "data/rows/said/problems.parquet"],
    "late": ["data/models/code", "data/models/first", "data/rows/own/problems.parquet"],
    "later": ["data/kept/late", "data/models/code"],
    "wide": ["data/models/base", "data/curation/base.parquet", "notes/all.txt"],
    "liked": ["data/models/late", "data/models/first", "data/rollouts/code", "rows/pairs.jsonl", "data/rows/who/problems.parquet"],
    "scorer": ["data/models/first", "data/rollouts/code", "rows/pairs.jsonl"],
    "pleasing": ["data/models/first", "data/models/scorer", "data/rows/who/problems.parquet"],
    "taught": ["data/models/first", "data/models/late", "data/models/code", "data/rows/who/problems.parquet"],
    "plain": ["data/models/first", "data/models/late", "data/models/code"],
    "sought": ["data/models/first", "data/models/late", "data/models/code", "data/rows/who/ungraded.parquet", "data/sources/benchmarks"],
    "theirs": ["data/models/first", "data/rows/who/problems.parquet", "mine.py", "lib", "data/identity/environments/_venv-trl.json"],
    "plainly": ["data/models/theirs", "data/curation/sft.parquet", "mine.py"],
    "evaluation": [
        "data/sources/benchmarks", *(f"data/models/{name}" for name in ("base", "first", "code", "late", "later", "liked", "plain", "theirs", "plainly", "pleasing", "sought", "taught", "wide")),
        "data/rollouts/code", "data/rollouts/late", "data/rollouts/theirs", "data/rollouts/pleasing", "data/rollouts/taught",
    ],
    "report": [f"data/{name}" for name in ("sources", "curation", "evaluation", "models", "metrics", "plots", "manifests")],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_depends_on_its_data_and_on_the_identity_of_its_kind(name):
    assert DOCUMENT[name]["deps"] == [*DEPS[name], f"data/identity/{GRAPH[name].kind}.json"]


def test_what_is_read_is_made_by_a_stage_before_or_lies_outside():
    made = [Path("data/external"), Path("rows"), Path("notes"), Path("mine.py"), Path("lib"), paths.IDENTITY]
    for name, stage in GRAPH.items():
        for path in stage.reads:
            assert name == "report" or any(out == path or out in path.parents for out in made), (name, path)
        made += [*stage.makes, *stage.records]


def test_the_identities_are_written_whenever_dvc_runs():
    stage = DOCUMENT[dvc_graph.CODE]
    assert stage["always_changed"] is True and stage["cmd"] == "python -m tasks.identity"
    assert entries(stage, "outs") == {paths.IDENTITY.as_posix(): {"cache": False}}


OUTS = {
    "sources": ["data/sources"],
    "curation": ["data/curation"],
    "base": ["data/models/base"],
    "first": ["data/models/first", "data/seen/first.parquet"],
    "who": ["data/rows/who", "data/seen/who.parquet"],
    "more": ["data/rows/more", "data/seen/more.parquet"],
    "code": ["data/models/code", "data/rollouts/code", "data/seen/code.parquet"],
    "said": ["data/rows/said", "data/rollouts/said", "data/seen/said.parquet"],
    "lively": ["data/rows/lively", "data/seen/lively.parquet"],
    "asked": ["data/rows/asked", "data/seen/asked.parquet"],
    "aimed": ["data/rows/aimed", "data/seen/aimed.parquet"],
    "late": ["data/models/late", "data/rollouts/late", "data/kept/late", "data/seen/late.parquet"],
    "later": ["data/models/later"],
    "wide": ["data/models/wide", "data/kept/wide", "data/seen/wide.parquet"],
    "plain": ["data/models/plain"],
    "scorer": ["data/models/scorer", "data/seen/scorer.parquet"],
    "theirs": ["data/models/theirs", "data/rollouts/theirs", "data/seen/theirs.parquet"],
    "plainly": ["data/models/plainly", "data/seen/plainly.parquet"],
    "evaluation": ["data/evaluation"],
    "report": ["data/report"],
}


@pytest.mark.parametrize("name", OUTS)
def test_outputs_metrics_and_plots(name):
    stage, kind = DOCUMENT[name], GRAPH[name].kind
    assert stage["outs"] == OUTS[name] + ([] if name == "report" else [f"data/manifests/{name}.json"])
    assert list(entries(stage, "metrics")) == ([] if name == "report" else [f"data/metrics/{name}.json"])
    assert list(entries(stage, "plots")) == ([f"data/plots/{name}.csv"] if kind in ("base", "sft", "pretrain", "rl", "reward_model", "command") else [])
    records = {**entries(stage, "metrics"), **entries(stage, "plots")}
    assert [Path(record) for record in records] == list(GRAPH[name].records)
    assert all(options["cache"] is False for options in records.values())
    for options in entries(stage, "plots").values():
        assert options["x"] == "step" and options["y"] == ("reward" if kind == "rl" or name == "theirs" else "loss") and name in options["title"]


@pytest.mark.parametrize("name", NAMES)
def test_the_command_is_the_flow_of_the_stage_from_the_root_of_the_project(name):
    models = " base first code late later liked plain theirs plainly pleasing sought taught wide" if name == "evaluation" else ""
    assert (DOCUMENT[name]["cmd"], DOCUMENT[name]["wdir"]) == (f"python -m flows.stage {name}{models}", "..")
    assert DOCUMENT[name]["desc"]


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_depends_on_its_settings_and_on_the_seed_if_its_module_uses_it(name):
    module = ENTRIES[GRAPH[name].kind][0]
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    uses_seed = any((isinstance(node, ast.Attribute) and node.attr == "seed") or getattr(node, "id", "") == "paired" for node in ast.walk(tree))
    selects = any(isinstance(node, ast.Attribute) and node.attr in ("read", "select") and getattr(node.value, "id", "") == "rows" for node in ast.walk(tree))
    own = name if name in STANDING else f"stages.{name}"
    more = ["curation", "sources.train"] if name == "more" else []
    assert DOCUMENT[name]["params"] == [*(["seed"] if uses_seed or selects else []), own, *more]


def test_paths_that_stages_write_do_not_collide():
    written = [path for stage in GRAPH.values() for path in (*stage.makes, *stage.records, paths.manifest(stage.name))]
    assert len(set(written)) == len(written)
    folders = {paths.REPORT}  # its manifest lies in it
    assert not any(a != b and a in b.parents for a in written for b in written if a not in folders)
    assert not any(path == paths.GRAPH or paths.GRAPH in path.parents or paths.IDENTITY in (path, *path.parents) for path in written)


def test_order_of_stages():
    assert [name for name in NAMES if name in STAGES] == ["first", "who", "more", "code", "said", "aimed", "asked", "both", "own", "late", "later", "liked", "lively", "plain", "theirs", "plainly", "scorer", "pleasing", "sought", "taught", "wide"]
    other = {"a": {"kind": "rl", "init": "b", "reference": "c", "data": "z"}, "b": {"kind": "sft", "init": "base", "data": "curation/sft"}}
    other |= {"c": {"kind": "merge", "init": "b", "models": ["b"]}, "z": {"kind": "grade", "init": "c", "data": "curation/rl"}}
    found = graph.graph(params(stages=other, evaluation={"gate": {"candidate": "a", "against": "b"}}))
    assert [name for name in found if name in other] == ["b", "c", "z", "a"]


def test_without_any_stage_the_base_model_is_evaluated():
    found = graph.graph(params(stages={}, evaluation={"gate": {"candidate": "base", "against": "base"}}))
    assert list(found) == list(STANDING)
    assert paths.BASE in found["evaluation"].reads


def test_what_is_evaluated_decides_what_the_evaluation_waits_for():
    found = graph.graph(params(evaluation={"models": ["base", "first"], "gate": {"candidate": "first", "against": "base"}}))
    assert list(found["evaluation"].reads) == [paths.BENCHMARKS, paths.BASE, paths.model("first")]
    assert graph.upstream(found, {"evaluation"}) == ["sources", "curation", "base", "first", "evaluation"]


def test_the_report_follows_every_stage():
    assert graph.upstream(GRAPH, {"report"}) == NAMES
    assert [name for name, stage in GRAPH.items() if stage.feeds(GRAPH["report"])] == NAMES[:-1]
