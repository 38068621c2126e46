"""Continued pre-training: documents of files, cut so that every token is predicted once, and a stage on them and on problems."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_supervised import PROBLEMS, TINY, TOKENIZER

from pipelines import paths
from pipelines.config import Params
from pipelines.config.training import PretrainStage
from pipelines.errors import UserError
from pipelines.models.loading import load_policy, save_policy
from pipelines.models.tiny import tiny_model
from pipelines.progress import Journal
from pipelines.sft import documents
from pipelines.sft.examples import corpus_examples
from pipelines.sft.train import mean_loss
from pipelines.stages import Context, pretrain
from pipelines.store import write_problems

NOTE = "2 + 3 is 5.\n" * 12


@pytest.fixture
def project(tmp_path: Path) -> Path:
    save_policy(tmp_path / paths.BASE, tiny_model(TINY, TOKENIZER, 1), TOKENIZER)
    write_problems(tmp_path / paths.rows("curation/base"), PROBLEMS[:4])
    (tmp_path / "note.txt").write_text(NOTE)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in ("one", "two", "one", " ")))
    pq.write_table(pa.table({"text": ["three"]}), tmp_path / "rows.parquet")
    (tmp_path / "problems.jsonl").write_text(json.dumps({"text": "What is 1 + 1?", "answer": "2", "solution": "1 + 1 = 2"}) + "\n")
    return tmp_path


def run(root: Path, *data: str, name: str = "more", **settings: object) -> dict[str, float]:
    train = {"epochs": 4, "batch_size": 4, "max_tokens": 64, "optimiser": {"lr": 1e-2, "warmup": 0}}
    given = PretrainStage.model_validate({"init": "base", "data": list(data), "train": train} | settings)
    return pretrain.run(Context(name, root, 1, given, root / name, Journal(root / name / "j.jsonl", name, io.StringIO())))


def test_pieces_predict_every_token_of_a_document_once() -> None:
    ids = TOKENIZER(NOTE)["input_ids"]
    pieces = documents.examples(TOKENIZER, {"note": NOTE}, 20)
    predicted = [token for piece in pieces for token in piece.ids[1:]]
    assert predicted == [*ids[1:], TOKENIZER.eos_token_id] and pieces[0].ids[0] == ids[0]
    assert all(len(piece.ids) <= 20 and piece.spans == ((1, len(piece.ids), 1.0),) and piece.of == "note" for piece in pieces)
    assert [before.ids[-1] for before in pieces[:-1]] == [after.ids[0] for after in pieces[1:]]
    (whole,) = documents.examples(TOKENIZER, {"note": "one"}, 20)
    assert whole.ids == [*TOKENIZER("one")["input_ids"], TOKENIZER.eos_token_id]


def test_which_files_hold_documents(project: Path) -> None:
    assert [documents.holds(project / name) for name in ("note.txt", "rows.jsonl", "rows.parquet", "problems.jsonl", "none.jsonl")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert list(documents.read(project / "rows.jsonl").values()) == ["one", "two"], "each once, and none that is empty"
    for row, said in (('{"text": 3}', "text: expected a string, got int"), ('{"content": "b"}', "key 'text' is missing"), ("{", "not JSON")):
        (project / "bad.jsonl").write_text(f'{{"text": "a"}}\n{row}\n')
        with pytest.raises(UserError, match=f"bad.jsonl:2: {said}"):
            documents.read(project / "bad.jsonl")
    with pytest.raises(UserError, match=r"none\.txt: no such file"):
        documents.read(project / "none.txt")


def test_a_model_goes_on_with_text_and_with_problems(project: Path) -> None:
    summary = run(project, "curation/base", "note.txt", "rows.jsonl", "rows.parquet", "problems.jsonl")
    pieces = len(documents.examples(TOKENIZER, {"note": NOTE}, 64))
    assert summary["examples"] == 4 + pieces + 2 + 1 + 1 and summary["too_long"] == 0
    seen = pq.read_table(project / paths.seen("more")).to_pylist()
    assert {row["data"] for row in seen} == {"curation/base", "note.txt", "rows.jsonl", "rows.parquet", "problems.jsonl"}
    assert {row["problem_id"] for row in seen if row["data"] == "note.txt"} == set(documents.read(project / "note.txt"))
    given = PretrainStage.model_validate({"init": "base", "data": "note.txt"}).train
    examples = documents.examples(TOKENIZER, {"note": NOTE}, 64)
    before, after = (mean_loss(load_policy(project / paths.model(name))[0], examples, given) for name in ("base", "more"))
    assert after < before - 1


def test_text_alone_and_solutions_alone(project: Path) -> None:
    assert run(project, "rows.jsonl", name="text")["examples"] == 2
    run(project, "curation/base", name="solutions", loss="solution")
    solved, _ = corpus_examples(TOKENIZER, PROBLEMS[:4], 64, "solution")
    scored = json.loads((project / "solutions" / "j.jsonl").read_text().splitlines()[0])["scored_tokens"]
    assert scored == sum(example.scored for example in solved)
    weights = [load_policy(project / paths.model(name))[0].state_dict() for name in ("text", "solutions")]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_base_model_without_a_chat_template_goes_on_too(project: Path) -> None:
    (project / paths.BASE / "chat_template.jinja").unlink()
    assert run(project, "note.txt")["steps"] > 0


def test_what_is_wrong_is_one_sentence(project: Path) -> None:
    with pytest.raises(UserError, match=r"more: data: note\.txt holds documents, which take neither where nor share"):
        run(project, data={"note.txt": {"where": {"domain": ["math"]}}})
    content = {
        "seed": 1,
        "sources": {"train": {"a": {"kind": "arithmetic", "count": 9}}, "benchmarks": {"b": {"kind": "arithmetic", "count": 2}}},
        "stages": {"more": {"kind": "pretrain", "init": "base", "data": "notes.md"}},
        "evaluation": {"gate": {"candidate": "more", "against": "base", "improve": ["b"]}},
    }
    with pytest.raises(ValueError, match=r"data: 'notes.md' names no rows; choose one of .*, or a file \*\.jsonl or \*\.parquet or \*\.txt"):
        Params.model_validate(content)
    content["stages"]["more"] = {"kind": "sft", "init": "base", "data": "note.txt"}
    with pytest.raises(ValueError, match="data: 'note.txt' names no rows"):
        Params.model_validate(content)
