"""`touchstone configure`: an overlay merged into params.yaml, comments kept, nothing written when the result does not hold."""

import re
from pathlib import Path

import mini_project
import pytest
import yaml

from pipelines.config import load, read_yaml
from pipelines.errors import UserError
from tasks import overlays

TEXT = """\
# the whole pipeline
seed: 7 # any number
sources:
  train:
    stories: {kind: arithmetic, count: 60} # generated
  benchmarks:
    math: {kind: arithmetic, count: 10}
stages:
  sft: {kind: sft, init: base, data: curation/sft}
  difficulty: {kind: grade, init: sft, data: curation/rl} # who can
  math: {kind: rl, init: sft, data: difficulty, where: {domain: [math]}, steps: 5}
  merged: {kind: merge, init: sft, models: [math]}
curation: {}
base: {}
evaluation: {}
report: {}
"""


@pytest.fixture
def params(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(TEXT)
    return file


def apply(params, text):
    overlay = params.with_name("overlay.yaml")
    overlay.write_text(text)
    return overlays.apply(params, overlay)


def test_mappings_merge_and_comments_stay(params):
    changes = apply(params, "seed: 8\nstages: {math: {steps: 9}, code: {kind: rl, init: math, reference: sft, data: difficulty}}\n")
    assert [change[0] for change in changes] == ["seed", "stages.math.steps", "stages.code"]
    text = params.read_text()
    assert "# the whole pipeline" in text and "# any number" in text and "# generated" in text and "# who can" in text
    stages = load(params).stages
    assert (stages["math"].steps, stages["math"].init, stages["code"].init) == (9, "sft", "math")


def test_null_deletes_and_another_kind_replaces(params):
    apply(params, "sources: {train: {stories: null, new: {kind: arithmetic, count: 3}}, benchmarks: {math: {kind: functions, count: 5}}}\n")
    assert read_yaml(params)["sources"] == {
        "train": {"new": {"kind": "arithmetic", "count": 3}},
        "benchmarks": {"math": {"kind": "functions", "count": 5}},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede: 8\n", "unknown key 'sede'; did you mean 'seed'"),
        ("stages: {math: {init: nothing}}\n", "names no model"),
        ("- 1\n", "expected a mapping"),
        ("stages: {math: {recipe: grppo}}\n", "stages.math.recipe: there is no 'grppo'; did you mean 'grpo'"),
        ("base: {model: models/of/mine}\n", "base.model: models/of/mine: no such folder"),
        ("sources: {train: {stories: null, new: {kind: functions, count: 3}}}\n", "stages.math.where.domain: 'math' is the domain of no source"),
    ],
)
def test_a_bad_overlay_changes_nothing(params, text, message):
    with pytest.raises(UserError, match=message):
        apply(params, text)
    assert params.read_text() == TEXT
    assert [file.name for file in params.parent.iterdir() if file.name.startswith(".")] == []


PUBLISHED = sorted((mini_project.REPOSITORY / "overlays/published").glob("*.yaml"))


@pytest.mark.parametrize("overlay", PUBLISHED, ids=lambda file: file.stem)
def test_a_published_pipeline_adds_stages_to_the_default(overlay, tmp_path):
    """The paper's last stage is called as its overlay, is evaluated against the default's, and what the default had stays."""
    params = tmp_path / "params.yaml"
    params.write_text((mini_project.REPOSITORY / "params.yaml").read_text())
    before = load(params)
    changed = {name for name, _, _ in overlays.apply(params, overlay, mini_project.REPOSITORY)}
    after = load(params)
    assert {name: after.stages[name] for name in before.stages} == dict(before.stages)
    new = after.stages.keys() - before.stages.keys()
    assert overlay.stem in new and after.stages[overlay.stem].kind == "rl"
    assert not any(overlay.stem in after.stages[name].models_read for name in new), "it is the last one"
    assert {overlay.stem, "sft", "math", "code", "merged"} <= {*(after.evaluation.models or ())}
    assert (after.evaluation.gate.candidate, after.evaluation.gate.against) == (overlay.stem, "sft"), "the candidate is compared with each of them"
    apart = {name.partition(".")[0] for name in changed} - {"stages", "evaluation"}
    assert apart == ({"curation"} if overlay.stem == "big_math" else set()), "base and cold start are the default's, and so need not run again"


def test_brorl_starts_from_the_stage_of_prorl():
    one, other = (read_yaml(mini_project.REPOSITORY / f"overlays/published/{name}.yaml")["stages"]["prorl_8k"] for name in ("prorl", "brorl"))
    assert one == other


def test_the_page_lists_every_published_pipeline():
    page = (mini_project.REPOSITORY / "docs" / "PUBLISHED.md").read_text()
    assert sorted(re.findall(r"\(\.\./overlays/published/(\w+)\.yaml\)", page)) == [file.stem for file in PUBLISHED]


@pytest.mark.skipif(not (mini_project.REPOSITORY.parent / "shared/data/tasks").is_dir(), reason="the rows that overlays name are not there")
@pytest.mark.parametrize("overlay", sorted((mini_project.REPOSITORY / "overlays").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_overlays_that_come_with_the_project_fit(overlay, tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text((mini_project.REPOSITORY / "params.yaml").read_text())
    if ".venv-trl" in overlay.read_text() and not (mini_project.REPOSITORY / ".venv-trl").exists():
        with pytest.raises(UserError, match=rf"stages.{overlay.stem}.environment: .venv-trl: there is no virtual environment"):
            overlays.apply(params, overlay, mini_project.REPOSITORY)
        return
    assert overlays.apply(params, overlay, mini_project.REPOSITORY)
    assert overlays.apply(params, overlay, mini_project.REPOSITORY) == [], "twice is once"
    yaml.safe_load(params.read_text())


def test_the_overlay_of_a_real_model_holds_in_a_clone_alone(tmp_path):
    root = Path(overlays.__file__).parents[1]
    params = tmp_path / "params.yaml"
    params.write_text((root / "params.yaml").read_text())
    overlays.apply(params, root / "overlays" / "smollm2.yaml", root)
    held = load(params)
    assert held.base.model == "smollm2-135m-instruct" and [name for name, stage in held.stages.items() if stage.kind == "rl"] == ["math"]
    stages = held.stages
    prompts = {stages["sft"].prompt, held.evaluation.generation.prompt, *(stages[name].generation.prompt for name in ("difficulty", "math"))}
    assert len(prompts) == 1  # one policy, one prompt
    assert all(Path(source.path).parent == Path("data/examples") for source in (*held.sources.train.values(), *held.sources.benchmarks.values()))
    assert "_dev" not in params.read_text()
