"""Same params, same bytes: neither the order of keys nor the front door leaves a trace."""

import json
from pathlib import Path

import yaml

from pipelines import config, graph, paths
from pipelines.__main__ import main
from pipelines.lineage.digests import file_sha256, files_below
from tasks import dvc_graph

PARAMS = {
    "seed": 3,
    "sources": {
        "train": {
            "stories": {"kind": "arithmetic", "count": 120, "levels": {10: 1, 2: 1, 1: 2, 3: 0.5}},
            "functions": {"kind": "functions", "count": 60, "styles": {"statements": 1, "direct": 2}},
        },
        "benchmarks": {"math": {"kind": "arithmetic", "count": 10}, "code": {"kind": "functions", "count": 10}},
    },
    "curation": {"steps": ["exact_dedup", "mix"], "mix": {"shares": {"stories": 1, "functions": 1}}, "splits": {"sft": 1, "rl": 2, "base": 1}},
    "stages": {
        "sft": {"kind": "sft", "init": "base", "data": "curation/sft"},
        "difficulty": {"kind": "grade", "init": "sft", "data": "curation/rl"},
        "synthesis": {"kind": "synthesise", "data": "difficulty/graded"},
        "math": {"kind": "rl", "init": "sft", "data": {"synthesis": {"share": 1}, "difficulty": {"share": 2}}, "where": {"domain": ["math"]}},
        "code": {"kind": "rl", "init": "sft", "data": {"synthesis": {}, "difficulty": {}}, "where": {"domain": ["code"]}},
        "merged": {"kind": "merge", "init": "sft", "models": ["code", "math"]},
    },
    "evaluation": {"gate": {"improve": ["math"]}},
    **{section: {} for section in ("base", "report")},
}


def reversed_keys(value):
    return {key: reversed_keys(value[key]) for key in reversed(value)} if isinstance(value, dict) else value


def made(root: Path, params, through_flow: bool) -> dict[str, str]:
    """Digest of every file that sources and curation leave: started from params.yaml, or with the settings that a flow hands on."""
    root.mkdir()
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for stage in ("sources", "curation"):
        given = ["--params", str(root / "params.yaml")]
        if through_flow:
            loaded = config.load(root / "params.yaml")
            (root / "given.json").write_text(json.dumps(graph.graph(loaded)[stage].given(loaded.seed), sort_keys=True))
            given = ["--settings", str(root / "given.json")]
        assert main([stage, "--root", str(root), *given]) == 0
    return {file.relative_to(root).as_posix(): file_sha256(file) for file in files_below(root / "data")}


def test_order_of_keys_and_front_door_leave_no_trace(tmp_path):
    first = made(tmp_path / "a", PARAMS, through_flow=False)
    assert {paths.PROBLEMS.as_posix(), paths.manifest("curation").as_posix()} <= set(first)
    assert made(tmp_path / "b", reversed_keys(PARAMS), through_flow=False) == first
    assert made(tmp_path / "c", PARAMS, through_flow=True) == first
    assert made(tmp_path / "d", reversed_keys(PARAMS), through_flow=True) == first


def test_the_plan_does_not_depend_on_the_order_of_keys(tmp_path):
    found = []
    for params in (PARAMS, reversed_keys(PARAMS)):
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        loaded = config.load(tmp_path / "params.yaml")
        stages = graph.graph(loaded)
        found.append((dvc_graph.text(loaded, stages), {name: stage.given(loaded.seed) for name, stage in stages.items()}))
    assert found[0] == found[1]
    assert list(config.load(tmp_path / "params.yaml").sources.train["stories"].levels) == [1, 2, 3, 10]


def test_defaults_have_the_order_that_they_have_when_they_are_written(tmp_path):
    source = config.SourcesSettings.model_validate({"train": {"a": {"kind": "arithmetic", "count": 1}}, "benchmarks": {}})
    again = config.SourcesSettings.model_validate(json.loads(json.dumps(source.model_dump(mode="json"), sort_keys=True)))
    assert list(source.train["a"].styles) == list(again.train["a"].styles) == ["direct", "steps", "terse"]
