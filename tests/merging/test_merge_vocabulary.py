"""Models whose tokens differ: refused without a policy, and with one every embedding row found by its token."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.config.evaluation import TokenizerPolicy
from pipelines.errors import UserError
from pipelines.merging import MergeConfig, merge, tensors

BASE = ["a", "b", "<end>"]
ROWS = {
    "base": {"a": 1, "b": 2, "<end>": 3},
    "one": {"b": 20, "a": 10, "<end>": 30, "<tool>": 40},
    "two": {"a": 100, "b": 200, "c": 500, "<tool>": 400},
}
"""Model -> token -> what every entry of its row holds; tokens in the order of their ids."""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, rows in ROWS.items():
        folder = tmp_path / name
        folder.mkdir()
        config = {"model_type": "llama", "vocab_size": len(rows), "tie_word_embeddings": False, "hidden_size": 4, "num_hidden_layers": 1}
        (folder / "config.json").write_text(json.dumps(config))
        added = [{"id": i, "content": token, "special": True} for i, token in enumerate(rows) if token.startswith("<")]
        vocabulary = {token: i for i, token in enumerate(rows) if not token.startswith("<")}
        content = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": added}
        (folder / "tokenizer.json").write_text(json.dumps(content))
        table = torch.tensor(list(rows.values()), dtype=torch.float32)[:, None].repeat(1, 4)
        save_file({"model.embed_tokens.weight": table, "lm_head.weight": -table, "norm": torch.ones(4)}, folder / "model.safetensors")
    return tmp_path


def merged(root: Path, method: str, policy: dict[str, object] | None) -> tuple[dict[str, list[float]], Path]:
    """Token (or number of the row, for padding) -> row of the merged embedding, all of whose entries are equal."""
    settings = {"weight": [0.5, 0.5]} if method == "task_arithmetic" else {}
    config = MergeConfig(
        base=root / "base",
        models=(root / "one", root / "two"),
        method=method,
        settings=settings,
        tokenizer=policy and TokenizerPolicy.model_validate(policy),
    )
    merge(config, root / "out")
    content = json.loads((root / "out/tokenizer.json").read_text())
    ids = {**{i: token for token, i in content["model"]["vocab"].items()}, **{token["id"]: token["content"] for token in content["added_tokens"]}}
    found = load_file(root / "out/model.safetensors")
    table = found["model.embed_tokens.weight"]
    assert bool((table == table[:, :1]).all()) and torch.equal(found["lm_head.weight"], -table)
    assert json.loads((root / "out/config.json").read_text())["vocab_size"] == len(table)
    return {str(ids.get(i, i)): row[0] for i, row in enumerate(table.tolist())}, root / "out"


def test_union_takes_a_missing_row_from_the_base_or_from_those_who_have_it(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "CHUNK", 3)  # rows are cut by the walk
    found, out = merged(models, "linear", {"source": "union", "pad_to_multiple_of": 4})
    # <tool> 40 and 400; c is two's alone, so one takes its row too; <end> is missing in two, which takes the base's
    expected = {"a": 55, "b": 110, "<end>": (30 + 3) / 2, "<tool>": 220, "c": 500, "5": 0, "6": 0, "7": 0}
    assert found == pytest.approx(expected)
    added = {token["content"]: token for token in json.loads((out / "tokenizer.json").read_text())["added_tokens"]}
    assert [added[token]["id"] for token in ("<end>", "<tool>", "c")] == [2, 3, 4]
    assert added["<tool>"]["special"] and not added["c"]["special"]


def test_a_row_that_the_base_lacks_is_the_mean_of_those_who_have_it(models: Path) -> None:
    found, _ = merged(models, "task_arithmetic", {"source": "union"})
    # base row of <tool>: (40 + 400) / 2 = 220; deltas -180 and +180. c: everybody takes two's
    assert found == pytest.approx({"a": 55, "b": 110, "<end>": 16.5, "<tool>": 220, "c": 500})


def test_the_vocabulary_of_the_base_or_of_a_named_model(models: Path) -> None:
    found, _ = merged(models, "linear", {"source": "base"})
    assert list(found) == BASE and found["<end>"] == 16.5
    found, _ = merged(models, "linear", {"source": str(models / "two")})
    assert found == {"a": 55, "b": 110, "c": 500, "<tool>": 220}


@pytest.mark.parametrize(
    ("break_it", "policy", "sentence"),
    [
        (lambda root: None, None, "vocab_size is 4, expected 3"),
        (lambda root: (root / "one/tokenizer.json").unlink(), {}, "one/tokenizer.json: no such file; a tokenizer policy needs it"),
        (
            lambda root: (rewrite(root / "base/tokenizer.json", '"id": 2', '"id": 7'), rewrite(root / "base/config.json", ": 3,", ": 9,")),
            {},
            "have gaps",
        ),
        (
            lambda root: rewrite(root / "one/config.json", '"tie_word_embeddings": false', '"tie_word_embeddings": true'),
            {},
            "tie_word_embeddings is True",
        ),
        (lambda root: None, {"source": "nowhere"}, "nowhere/tokenizer.json: no such file"),
    ],
)
def test_what_no_policy_can_mend(models: Path, break_it, policy, sentence) -> None:
    break_it(models)
    with pytest.raises(UserError, match=sentence):
        merged(models, "linear", policy)
    assert not (models / "out").exists()


def rewrite(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
