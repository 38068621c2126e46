"""dvc.yaml says the same as pipelines/graph.py, pipelines/paths.py and the code."""

import ast
from pathlib import Path

import pytest
import yaml

from pipelines import graph, paths
from pipelines.config import load
from pipelines.stages import ENTRIES
from tasks.versioning import CODE

ROOT = Path(__file__).parents[1]
DOCUMENT = yaml.safe_load((ROOT / "dvc.yaml").read_text())
NAMES = list(ENTRIES)


def body(name):
    """The mapping of one stage, below `do` where it is a foreach."""
    stage = DOCUMENT["stages"][name]
    return stage.get("do", stage)


def address(name):
    """A stage in the words of dvc.yaml's foreach."""
    return "rl@${key}" if name == "rl" else name


def entries(stage, kind):
    """Paths in a list whose members are `path` or `{path: options}`, with the options."""
    return {
        next(iter(entry)) if isinstance(entry, dict) else entry: next(iter(entry.values())) if isinstance(entry, dict) else {}
        for entry in stage.get(kind, [])
    }


def test_the_stages_are_those_of_the_graph():
    assert list(DOCUMENT["stages"]) == [CODE, *NAMES]
    assert [*graph.HEAD, "rl", *graph.TAIL] == NAMES
    assert DOCUMENT["stages"]["rl"]["foreach"] == "${rl.stages}"


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_depends_on_its_data_and_on_the_identity_of_its_code(name):
    data = graph.inputs(address(name), "${item.init}", "${item.reference}")
    assert body(name)["deps"] == [path.as_posix() for path in (*data, paths.identity(name))]


def test_the_identities_are_written_whenever_dvc_runs():
    stage = DOCUMENT["stages"][CODE]
    assert stage["always_changed"] is True
    assert entries(stage, "outs") == {paths.IDENTITY.as_posix(): {"cache": False}}


@pytest.mark.parametrize("name", NAMES)
def test_outputs_metrics_and_plots(name):
    stage = body(name)
    outs = [path.as_posix() for path in graph.outputs(address(name))]
    manifest = paths.manifest(address(name)).as_posix()
    assert stage["outs"] == (outs if name == "report" else [*outs, manifest])
    records = {**entries(stage, "metrics"), **entries(stage, "plots")}
    assert list(records) == [path.as_posix() for path in graph.records(address(name))]
    assert all(options["cache"] is False for options in records.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_command_is_the_flow_of_that_name(name):
    assert body(name)["cmd"] == f"python -m flows.{name}" + (" ${key}" if name == "rl" else "")
    assert (ROOT / "flows" / f"{name}.py").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_depends_on_its_section_and_on_the_seed_if_it_uses_it(name):
    params = body(name)["params"]
    tree = ast.parse((ROOT / "pipelines/stages" / f"{name}.py").read_text())
    uses_seed = any(isinstance(node, ast.Attribute) and node.attr == "seed" for node in ast.walk(tree))
    assert ("seed" in params) == uses_seed
    assert ("rl.stages.${key}" if name == "rl" else name) in params


def test_paths_that_models_share_do_not_collide():
    stages = graph.stages(dict(load(ROOT / "params.yaml").rl.stages))
    written = [path for stage in stages for path in (*graph.outputs(stage), *graph.records(stage))]
    assert len(set(written)) == len(written)
    assert not any(a != b and a in b.parents for a in written for b in written)


def test_order_of_stages():
    rl = {"code": {"init": "math", "reference": "sft"}, "math": {"init": "sft", "reference": "more"}, "more": {"init": "sft", "reference": "sft"}}
    assert graph.stages(rl)[6:9] == ["rl@more", "rl@math", "rl@code"]
