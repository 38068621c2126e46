"""Manifests and the walk along them, on a chain of three real stages' worth of files."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from pipelines import paths
from pipelines.errors import UserError
from pipelines.lineage import external
from pipelines.lineage.digests import combine, tree_sha256
from pipelines.lineage.manifests import begin, read_manifests, resolved, write_manifest
from pipelines.lineage.walk import Lineage

SFT = paths.model("sft")
REPOSITORY = Path(__file__).parents[2]


def put(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.fixture
def root(tmp_path):
    """rows.jsonl -> sources -> curation -> base, sft -> two experts -> merged."""
    root = tmp_path / "project"
    put(tmp_path, "outside/rows.jsonl", "{}\n")
    put(root, "pipelines/stages/sources.py", "x = 1\n")
    put(root, "pipelines/stages/sft.py", "y = 1\n")
    source = {"train": {"mine": {"kind": "file", "path": "../outside/rows.jsonl", "revision": None}}}
    record(root, "sources", source, [paths.EXTERNAL / "sources"], {"data/sources/problems.parquet": "p"})
    record(root, "curation", {}, [paths.SOURCES], {"data/curation/base.parquet": "b", "data/curation/sft.parquet": "s"})
    record(root, "base", {"architecture": {}, "model": "org/name", "revision": None}, [paths.SPLITS["base"]], {"data/models/base/w": "0"})
    record(root, "sft", {}, [paths.SPLITS["sft"], paths.BASE], {"data/models/sft/w": "1", "data/models/sft/config.json": "{}"})
    for name in ("math", "code"):
        record(root, name, {"init": "sft"}, [SFT], {f"data/models/{name}/w": name, f"data/rollouts/{name}/0.parquet": "r"}, kind="rl")
    models = [SFT, paths.model("code"), paths.model("math")]
    record(root, "merged", {}, models, {"data/models/merged/w": "m"}, kind="merge")
    return root


def record(root, stage, settings, inputs, files, origins=None, kind=None):
    outputs = list(
        dict.fromkeys(next(p for p in (paths.ROLLOUTS, paths.MODELS, paths.SOURCES, paths.CURATION) if name.startswith(f"{p}/")) for name in files)
    )
    folders = [
        folder / name.split("/")[2] if folder in (paths.MODELS, paths.ROLLOUTS) else folder for folder, name in zip(outputs, files, strict=False)
    ]
    modules = [f"pipelines.stages.{kind or stage}"]
    beginning = begin(root, stage, {"seed": 7, "kind": kind or stage, "settings": settings}, inputs=inputs, modules=modules, source=root)
    for name, text in files.items():
        put(root, name, text)
    write_manifest(beginning, outputs=folders, origins=origins)


def test_the_chain_goes_back_to_the_source_file_and_holds(root):
    lineage = Lineage(root, root)
    stages = lineage.find(root / "data/models/merged")
    assert stages == ["merged"]
    chain = lineage.chain(stages)
    assert set(chain) == {"sources", "curation", "base", "sft", "math", "code", "merged"}
    assert (
        chain.index("sources") < chain.index("curation") < chain.index("base") < chain.index("sft") < chain.index("math") < chain.index("merged")
    )
    text = "\n".join(lineage.tree(stages))
    rows_digest = hashlib.sha256(b"{}\n").hexdigest()[:12]
    assert f"read {root.parent / 'outside/rows.jsonl'}  {rows_digest}" in text
    assert "read hub:org/name@unpinned" in text
    assert text.count("read data/models/math  ") == 1, "merged names the experts once"
    assert "sft (told above)" in text
    broken, checked, notes = lineage.verify(stages)
    assert (broken, notes) == (None, [])
    assert checked == sum(len(s["subject"]) for s in lineage.statements.values()) + 10


@pytest.mark.parametrize(
    ("file", "stage", "name"),
    [
        ("../outside/rows.jsonl", "sources", "outside/rows.jsonl"),
        ("data/sources/problems.parquet", "sources", "data/sources/problems.parquet"),
        ("data/curation/sft.parquet", "curation", "data/curation/sft.parquet"),
        ("data/models/base/w", "base", "data/models/base/w"),
        ("data/models/math/w", "math", "data/models/math/w"),
        ("data/models/merged/w", "merged", "data/models/merged/w"),
    ],
)
def test_one_changed_byte_is_found_where_it_is(root, file, stage, name):
    (root / file).write_bytes(b"\x00" + (root / file).read_bytes()[1:])
    broken, _, _ = Lineage(root, root).verify(["merged"])
    assert broken.stage == stage and broken.name.endswith(name)
    assert "is not what the stage" in str(broken)


def test_an_added_and_a_missing_file_break_the_chain(root):
    put(root, "data/models/sft/extra", "smuggled in")
    for asked in (["sft"], ["merged"]):
        assert str(Lineage(root, root).verify(asked)[0]) == "stage sft: data/models/sft/extra: was added: the stage did not write it"
    (root / "data/models/sft/extra").unlink()
    (root / "data/models/sft/w").unlink()
    assert str(Lineage(root, root).verify(["merged"])[0]) == "stage sft: data/models/sft/w: is missing"


def test_a_stage_that_ran_again_without_its_followers_is_told(root):
    record(root, "sft", {}, [paths.SPLITS["sft"], paths.BASE], {"data/models/sft/w": "another", "data/models/sft/config.json": "{}"})
    broken, _, _ = Lineage(root, root).verify(["merged"])
    assert (broken.stage, broken.name) == ("code", "data/models/sft")
    assert Lineage(root, root).verify(["sft"])[0] is None


def test_edited_code_is_a_note(root):
    put(root, "pipelines/stages/sft.py", "y = 2\n")
    broken, _, notes = Lineage(root, root).verify(["merged"])
    assert broken is None
    assert notes == ["stage sft: code has changed since: pipelines/stages/sft.py"]


def test_a_comment_in_the_code_is_no_change(root):
    put(root, "pipelines/stages/sft.py", "# the same\ny = 1\n")
    assert Lineage(root, root).verify(["merged"])[2] == []


def test_what_no_stage_made(root):
    put(root, "data/models/foreign/w", "?")
    for path, message in (("data/models/foreign", "no manifest"), ("data/models/none", "no such file")):
        with pytest.raises(UserError, match=message):
            Lineage(root, root).find(root / path)
    assert Lineage(root, root).find(root / "data/models/math/w") == ["math"]


def test_a_manifest_is_a_provenance_statement_and_the_same_run_leaves_the_same_bytes(root):
    file = root / paths.manifest("sft")
    first = file.read_bytes()
    record(root, "sft", {}, [paths.SPLITS["sft"], paths.BASE], {"data/models/sft/w": "1", "data/models/sft/config.json": "{}"})
    assert file.read_bytes() == first
    statement = json.loads(first)
    assert (statement["_type"], statement["predicateType"]) == ("https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1")
    assert statement["subject"][1] == {"name": "data/models/sft/w", "digest": {"sha256": hashlib.sha256(b"1").hexdigest()}}
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {"stage": "sft", "seed": 7, "kind": "sft", "settings": {}}
    assert [entry["name"] for entry in definition["resolvedDependencies"]] == ["data/curation/sft.parquet", "data/models/base"]


def test_the_git_commit_and_uncommitted_changes(root):
    state = read_manifests(root)["sft"]["predicate"]["buildDefinition"]["internalParameters"]["code"]
    assert (state["git_commit"], state["dirty"]) == (None, None)
    for command in ("init -q", "add pipelines", "-c user.name=n -c user.email=e@x commit -qm one"):
        subprocess.run(["git", *command.split()], cwd=root, check=True)
    expected = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True).stdout.strip()
    for dirty in (False, True):
        if dirty:
            put(root, "pipelines/new.py", "")
        record(root, "sft", {}, [paths.BASE], {"data/models/sft/w": "1"})
        state = read_manifests(root)["sft"]["predicate"]["buildDefinition"]["internalParameters"]["code"]
        assert (state["git_commit"], state["dirty"]) == (expected, dirty)


def test_a_folder_digest_covers_names_contents_and_nothing_else(tmp_path):
    put(tmp_path, "a/x", "1")
    put(tmp_path, "a/y/z", "2")
    one, two = hashlib.sha256(b"1").hexdigest(), hashlib.sha256(b"2").hexdigest()
    assert tree_sha256(tmp_path / "a") == combine({"x": one, "y/z": two}) == hashlib.sha256(f"{one}  x\n{two}  y/z\n".encode()).hexdigest()
    before = tree_sha256(tmp_path / "a")
    (tmp_path / "a/x").rename(tmp_path / "a/w")
    assert tree_sha256(tmp_path / "a") != before
    (tmp_path / "a/w").rename(tmp_path / "a/x")
    assert tree_sha256(tmp_path / "a") == before
    assert tree_sha256(tmp_path / "a/x") == one


def test_what_is_being_written_is_no_part_of_a_folder(root):
    """As in DVC's digest: what a killed process left breaks no chain, and neither does another's write in progress."""
    before = tree_sha256(root / "data/models/sft")
    put(root, "data/models/sft/.w.123.part", "torn")
    put(root, "data/models/.sft.part/w", "torn")
    put(root, "data/models/sft/.inner.part/w", "torn")
    assert tree_sha256(root / "data/models/sft") == before
    assert Lineage(root, root).verify(["merged"])[0] is None
    put(root, "data/models/sft/model.part", "a name that somebody chose")
    assert tree_sha256(root / "data/models/sft") != before
    assert [line for line in (REPOSITORY / ".dvcignore").read_text().splitlines() if not line.startswith("#")] == [paths.TORN, paths.STATE.as_posix(), "__pycache__"]


@pytest.mark.parametrize("edited", ["pipelines/stages/sft.py", "data/models/base", "data/curation/sft.parquet"])
def test_what_is_edited_while_a_stage_runs_is_not_recorded_as_having_made_it(root, edited):
    before = (root / paths.manifest("sft")).read_bytes()
    inputs = [paths.SPLITS["sft"], paths.BASE]
    beginning = begin(root, "sft", {"seed": 7, "kind": "sft", "settings": {}}, inputs=inputs, modules=["pipelines.stages.sft"], source=root)
    file = root / edited / "w" if edited == "data/models/base" else root / edited
    text = file.read_text()
    file.write_text("y = 2\n" if file.suffix == ".py" else "X")
    with pytest.raises(UserError, match=f"^sft: {edited} changed while the stage ran"):
        write_manifest(beginning, outputs=[SFT])
    assert (root / paths.manifest("sft")).read_bytes() == before
    file.write_text(text + ("# a comment\n" if file.suffix == ".py" else ""))
    write_manifest(beginning, outputs=[SFT])
    assert (root / paths.manifest("sft")).read_bytes() == before


def test_the_commit_of_a_hub_is_a_digest(root):
    commit = "0123456789abcdef0123456789abcdef01234567"
    settings = {"architecture": {}, "model": "org/name", "revision": None}
    record(root, "base", settings, [paths.SPLITS["base"]], {"data/models/base/w": "0"}, {"model": external.at_commit("org/name", commit)})
    (entry,) = [entry for entry in resolved(read_manifests(root)["base"]) if "uri" in entry]
    assert entry == {"uri": f"hub:org/name@{commit}", "digest": {"gitCommit": commit}, "annotations": {"setting": "model", "revision": None}}
    assert f"read hub:org/name@{commit}  {commit[:12]}" in "\n".join(Lineage(root, root).tree(["base"]))


def test_external_settings(tmp_path):
    put(tmp_path, "rows.jsonl", "")
    sources = {
        "train": {"a": {"kind": "arithmetic", "count": 3}, "b": {"kind": "file", "path": "rows.jsonl"}},
        "benchmarks": {"c": {"kind": "huggingface", "path": "org/set", "revision": "abc"}},
    }
    assert external.local(tmp_path, sources) == {"train.b": tmp_path / "rows.jsonl"}
    assert external.hub(tmp_path, sources) == {"benchmarks.c": {"path": "org/set", "revision": "abc"}}
    assert external.hub(tmp_path, {"architecture": {}, "model": None}) == {}
