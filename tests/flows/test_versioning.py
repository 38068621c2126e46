"""What DVC is asked and told: sources and curation of a real project, run by their science and recorded, then changed."""

import json
import shutil

import mini_project
import pytest

from pipelines import graph
from pipelines.config import read_yaml
from pipelines.errors import UserError
from pipelines.lineage import code
from tasks import planning, processes, settings, versioning

STAGES = ("sources", "curation")
INSTALLED = code.installed


def graph_of(project):
    return graph.graph(settings.params(project))


def run(project, stage):
    processes.run_stage(project, stage, graph_of(project)[stage].given(settings.params(project).seed), lambda rows: None)
    versioning.record(project, stage)


def settle(project, stage, force=False):
    (answer,) = versioning.settle_all(project, [graph_of(project)[stage]], [stage] if force else [])
    return answer


def append(file, text):
    with file.open("a") as opened:
        opened.write(text)


def states(project):
    planning.make(project)
    return [settle(project, stage).state for stage in STAGES]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Both stages done."""
    project = mini_project.make(tmp_path_factory.mktemp("recorded"))
    planning.make(project)
    for stage in STAGES:
        assert settle(project, stage).reasons == ("it has not run yet",)
        run(project, stage)
    return project


@pytest.fixture
def project(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "copy", symlinks=True)


def test_what_has_run_is_current(project):
    assert states(project) == ["current", "current"]


def test_an_edited_file_of_code_makes_its_stages_stale_and_no_other(project):
    append(project / "pipelines/curation/filters.py", "LIMIT = 3\n")
    answer = settle(project, "curation")
    assert (answer.state, answer.reasons) == ("stale", ("pipelines/curation/filters.py",))
    assert settle(project, "sources").state == "current"


def test_a_comment_in_code_that_all_stages_use_makes_none_stale(project):
    lock = (project / "data/dvc.lock").read_bytes()
    for name in ("errors.py", "store.py", "curation/filters.py"):
        append(project / "pipelines" / name, "# edited\n")
    append(project / "pipelines/config/presets.yaml", "# edited\n")
    assert states(project) == ["current", "current"]
    assert (project / "data/dvc.lock").read_bytes() == lock


def test_code_of_other_stages_does_not_matter(project):
    for name in ("rl/train.py", "merging/methods.py", "__main__.py", "config/rl.py"):
        append(project / "pipelines" / name, "LIMIT = 3\n")
    assert states(project) == ["current", "current"]


def test_another_version_of_a_library_makes_stale_what_uses_it(project, monkeypatch):
    monkeypatch.setattr(code, "installed", lambda module: "99" if module == "rensa" else INSTALLED(module))
    assert settle(project, "sources").state == "current"
    answer = settle(project, "curation")
    assert (answer.state, answer.reasons) == ("stale", (f"rensa {INSTALLED('rensa')} -> 99",))


def test_a_stage_that_writes_the_same_bytes_stops_the_rerun(project):
    append(project / "pipelines/stages/sources.py", "LIMIT = 3\n")
    assert states(project)[0] == "stale"
    manifest = (project / "data/manifests/sources.json").read_bytes()
    run(project, "sources")
    assert (project / "data/manifests/sources.json").read_bytes() != manifest, "the manifest names the new code"
    assert states(project) == ["current", "current"]


def test_params_decide_and_going_back_takes_the_outputs_from_the_cache(project):
    problems = (project / "data/sources/problems.parquet").read_bytes()
    mini_project.write_params(project, mini_project.params_with(sources__train__stories__count=61))
    assert states(project)[0] == "stale"
    run(project, "sources")
    assert (project / "data/sources/problems.parquet").read_bytes() != problems
    mini_project.write_params(project, mini_project.PARAMS)
    assert states(project) == ["restored", "current"]
    assert (project / "data/sources/problems.parquet").read_bytes() == problems
    assert states(project) == ["current", "current"]


def test_a_lost_or_changed_output_comes_back_from_the_cache(project):
    kept = project / "data/curation/base.parquet"
    original = kept.read_bytes()
    kept.write_bytes(b"tampered")
    shutil.rmtree(project / "data/sources")
    assert states(project) == ["restored", "restored"]
    assert kept.read_bytes() == original


def test_without_the_cache_a_changed_output_makes_its_stage_run(project):
    shutil.rmtree(project / ".dvc/cache")
    (project / "data/curation/base.parquet").write_bytes(b"tampered")
    assert settle(project, "curation").state == "stale"
    assert (project / "data/curation/base.parquet").read_bytes() == b"tampered", "nothing is touched before the stage runs"


def test_force_makes_a_current_stage_run(project):
    assert settle(project, "sources", force=True).state == "stale"


@pytest.mark.parametrize("edited", ["pipelines/sources/arithmetic.py", "params.yaml"])
def test_an_edit_while_the_stage_runs_is_not_recorded(project, edited):
    stage = graph_of(project)["sources"]
    before = versioning.fingerprint(project, stage)
    append(project / "pipelines/sources/arithmetic.py", "# edited meanwhile\n")
    versioning.check_unchanged(project, stage, before)
    if edited == "params.yaml":
        mini_project.write_params(project, mini_project.params_with(seed=9))
    else:
        append(project / edited, "LIMIT = 3\n")
    with pytest.raises(UserError, match=rf"{edited} changed while the stage ran"):
        versioning.check_unchanged(project, stage, before)


def test_the_content_of_a_file_that_params_name_is_a_dependency(project, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"q": "What is one and one?", "a": "2"}\n')
    source = {"kind": "file", "path": str(rows), "fields": {"prompt": "q", "answer": "a"}}
    mini_project.write_params(project, mini_project.params_with(sources__train__mine=source))
    assert states(project)[0] == "stale"
    run(project, "sources")
    assert states(project)[0] == "current"
    with rows.open("a") as file:
        file.write('{"q": "What is two and two?", "a": "4"}\n')
    answer = settle(project, "sources")
    assert (answer.state, answer.reasons) == ("stale", ("data/external/sources modified",))
    mini_project.write_params(project, mini_project.PARAMS)
    planning.make(project)
    assert [entry.name for entry in (project / "data/external/sources").iterdir()] == [".gitkeep"]


LEFT = (
    "data/models/old/model.safetensors", "data/rollouts/old/0.parquet", "data/rows/old/problems.parquet", "data/seen/old.parquet",
    "data/metrics/old.json", "data/plots/old.csv", "data/manifests/old.json",
)  # fmt: skip
"""What stages of all kinds leave."""


def left_by(project, kind):
    """What a stage called `old` has left, and beside it a folder that somebody put there."""
    for path in (*LEFT, "data/models/mine/model.safetensors", "data/rows/mine/problems.parquet"):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text("x")
    statement = {"predicate": {"buildDefinition": {"externalParameters": {"kind": kind}}}}
    (project / "data/manifests/old.json").write_text(json.dumps(statement))


def named_old(project):
    return sorted(path.relative_to(project).as_posix() for path in (project / "data").rglob("*") if "old" in path.as_posix().partition("data/")[2] and path.is_file())


@pytest.mark.parametrize("kind", ["rl", "grade", "merge"])
def test_a_removed_stage_leaves_nothing_and_foreign_folders_stay(project, capsys, kind):
    left_by(project, kind)
    planning.make(project)
    assert named_old(project) == []
    assert "old is no longer in params.yaml: removed what it had left" in capsys.readouterr().out
    assert (project / "data/models/mine/model.safetensors").exists() and (project / "data/rows/mine/problems.parquet").exists()
    assert states(project) == ["current", "current"], "nothing else is touched"


def test_a_stage_of_another_kind_leaves_nothing_of_the_kind_it_was(project, capsys):
    """A model folder that no stage makes would be evaluated by nobody and shown in the report all the same."""
    left_by(project, "rl")
    params = mini_project.params_with(stages__old={"kind": "grade", "init": "sft", "data": "curation/rl"})
    mini_project.write_params(project, params)
    planning.make(project)
    stays = {"data/rows/old/problems.parquet", "data/seen/old.parquet", "data/metrics/old.json"}
    assert set(named_old(project)) == stays, "DVC takes away what the stage itself makes"
    assert "no longer in params.yaml" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("until", "stages"),
    [
        ("sources", ["sources"]),
        ("sft", ["sources", "curation", "base", "sft"]),
        ("math", ["sources", "curation", "base", "sft", "difficulty", "synthesis", "math"]),
        ("rl", ["sources", "curation", "base", "sft", "difficulty", "synthesis", "math", "code"]),
    ],
)
def test_until_takes_a_stage_with_all_it_needs(project, until, stages):
    assert list(planning.make(project, until).stages) == stages


def test_rl_stages_that_start_from_sft_do_not_need_each_other(project):
    mini_project.write_params(project, mini_project.params_with(stages__code__init="sft"))
    assert "math" not in planning.make(project, "code").stages
    wanted = ["sources", "curation", "base", "sft", "difficulty", "synthesis", "code", "math", "merged", "evaluation", "report"]
    assert list(planning.make(project).stages) == wanted


@pytest.mark.parametrize(
    ("until", "force", "message"),
    [
        ("stf", [], "there is no stage 'stf'"),
        (None, ["nothing"], "there is no stage 'nothing'"),
        ("sources", ["sft"], "--force sft: the run ends before it"),
    ],
)
def test_a_plan_for_stages_that_are_not_there(project, until, force, message):
    with pytest.raises(UserError, match=message):
        planning.make(project, until, force)


def test_a_section_that_dvc_needs_is_asked_for(project):
    params = read_yaml(project / "params.yaml")
    del params["report"]
    mini_project.write_params(project, params)
    with pytest.raises(UserError, match="section 'report' is missing"):
        planning.make(project)
