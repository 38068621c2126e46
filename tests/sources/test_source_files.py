"""Files and datasets become problems through a mapping; what does not fit is named with line, field and reason."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config.sources import FileSource
from pipelines.errors import UserError
from pipelines.records import Problem, problem_id
from pipelines.sources import SOURCES, BadRow

DATA = Path(__file__).parents[3] / "shared" / "data" / "tasks"
FIELDS = {"prompt": "question", "answer": "answer"}


def read(root: Path, path: str, **settings: object) -> list[Problem | BadRow]:
    source = FileSource.model_validate({"kind": "file", "path": path, "fields": FIELDS} | settings)
    return list(SOURCES[source.kind](source, 0, "mine", root))


def write(path: Path, *rows: object) -> None:
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")


def test_row_becomes_problem_with_every_mapped_field(tmp_path: Path) -> None:
    row = {
        "question": "2+2?",
        "answer": 4.0,
        "how": "two and two",
        "id": 17,
        "level": 3,
        "subject": ["Algebra"],
        "tests": ["assert f(1) == 2"],
        "meta": {"grade": 0.25, "turns": [{"text": "x"}, {"text": "who"}]},
    }
    write(tmp_path / "a.jsonl", row)
    fields = FIELDS | {
        "solution": "how",
        "source_id": "id",
        "topics": "subject",
        "topics.level": "level",
        "difficulty": "meta.grade",
        "verifier_args.tests": "tests",
        "verifier_args.speaker": "meta.turns.1.text",
    }
    (problem,) = read(tmp_path, "a.jsonl", fields=fields, topics=("school",), licence="MIT", domain="math", answer_type="integer")
    assert problem == Problem(
        problem_id=problem_id("2+2?", "4"),
        domain="math",
        prompt="2+2?",
        answer="4",
        answer_type="integer",
        verifier="math",
        verifier_args='{"speaker": "who", "tests": ["assert f(1) == 2"]}',
        solution="two and two",
        source="mine",
        source_id="17",
        licence="MIT",
        topics=("school", "Algebra", "level 3"),
        difficulty=0.25,
    )


def test_the_hub_form_of_gsm8k_gives_its_last_line_as_the_answer(tmp_path: Path) -> None:
    working = "48/2 = <<48/2=24>>24\n48+24 = <<48+24=72>>72\n#### 72"
    write(tmp_path / "a.jsonl", {"question": "How many clips?", "answer": working}, {"question": "Say #### twice.", "answer": "#### ####"})
    first, second = read(tmp_path, "a.jsonl", fields=FIELDS | {"solution": "answer"})
    assert isinstance(first, Problem) and isinstance(second, Problem)
    assert (first.answer, first.solution) == ("72", working)
    assert second.answer == "#### ####"
    (program, _) = read(tmp_path, "a.jsonl", verifier="exact", domain="text")
    assert isinstance(program, Problem) and program.answer == working


def test_the_verifiers_settings_of_a_source_are_those_of_every_row(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"question": "x", "answer": "1", "p": "ignore"})
    (row,) = read(tmp_path, "a.jsonl", verifier_args={"percent": "value", "units": "strict"}, fields=FIELDS | {"verifier_args.percent": "p"})
    assert isinstance(row, Problem) and row.args == {"percent": "ignore", "units": "strict"}


def test_every_kind_of_malformed_row_says_line_field_and_reason(tmp_path: Path) -> None:
    write(
        tmp_path / "a.jsonl",
        {"question": "fine", "answer": "1"},
        {"question": "no answer"},
        b"",
        {"question": "  ", "answer": "1"},
        {"question": 5, "answer": "1"},
        {"question": "q", "answer": None},
        {"question": "q", "answer": ""},
        {"question": "q", "answer": [1]},
        {"question": "q", "answer": float("nan")},
        b'{"question": "q", "answer":',
        b'{"question": "\xff", "answer": "1"}',
        b"[1, 2]",
        {"question": "half \ud800", "answer": "1"},
        b'{"question": "q", "answer": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    )
    rows = read(tmp_path, "a.jsonl")
    bad = {row.line: (row.field, row.reason) for row in rows if isinstance(row, BadRow)}
    assert [row.prompt for row in rows if isinstance(row, Problem)] == ["fine"]
    assert bad == {
        2: ("answer", "missing field"),
        4: ("question", "empty"),
        5: ("question", "expected text, got a number"),
        6: ("answer", "expected text or a number, got null"),
        7: ("answer", "empty"),
        8: ("answer", "expected text or a number, got a list"),
        9: ("answer", "expected a number, got nan"),
        10: ("", "not JSON: Expecting value at column 28"),
        11: ("", "not UTF-8 at byte 14"),
        12: ("", "expected a JSON object, got list"),
        13: ("question", "half a surrogate pair, which is no text"),
        14: ("", "not JSON: nested too deeply or a number too long"),
        15: ("", "not JSON: nested too deeply or a number too long"),
    }
    assert all(len(row.raw) <= 2000 and row.file == "a.jsonl" for row in rows if isinstance(row, BadRow))


def test_parquet_reads_the_same_rows_as_jsonl(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": str(i), "info": {"tests": [i]}} for i in range(9000)]
    write(tmp_path / "a.jsonl", *rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    fields = FIELDS | {"verifier_args.tests": "info.tests"}
    assert read(tmp_path, "a.parquet", fields=fields) == read(tmp_path, "a.jsonl", fields=fields)


def test_hugging_face_folder_and_saved_dataset(tmp_path: Path) -> None:
    import datasets

    rows = [{"question": f"q{i}", "answer": str(i)} for i in range(5)]
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.jsonl", *rows)
    datasets.DatasetDict({"held": datasets.Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "saved"))
    write(tmp_path / "a.jsonl", *rows)
    expected = read(tmp_path, "a.jsonl")
    assert read(tmp_path, "folder", kind="huggingface") == expected
    assert read(tmp_path, "saved", kind="huggingface", split="held") == expected
    with pytest.raises(UserError, match="there is no split 'train'; it has held"):
        read(tmp_path, "saved", kind="huggingface")
    with pytest.raises(UserError, match="no such folder"):
        read(tmp_path, "./nowhere", kind="huggingface")


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *({"question": f"q{i}", "answer": "1"} for i in range(5)))
    assert [row.prompt for row in read(tmp_path, "a.jsonl", limit=2) if isinstance(row, Problem)] == ["q0", "q1"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"path": "none.jsonl"}, "none.jsonl: no such file"),
        ({"path": "a.csv"}, "expected a file that ends in"),
        ({"path": "a.parquet"}, "not a Parquet file"),
        ({"fields": {"prompt": "question"}}, "which field of a row is the answer"),
        ({"fields": FIELDS | {"solutoin": "x"}}, "unknown key 'solutoin'; did you mean 'solution'"),
        ({"fields": FIELDS | {"prompt.x": "x"}}, "unknown key 'prompt.x'"),
    ],
)
def test_impossible_settings_are_one_sentence(tmp_path: Path, settings: dict[str, object], says: str) -> None:
    write(tmp_path / "a.jsonl", {"question": "q", "answer": "1"})
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(UserError, match=says) as caught:
        read(tmp_path, str(settings.pop("path", "a.jsonl")), **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not DATA.exists(), reason="the shared real data is not here")
def test_real_files_by_mapping_alone() -> None:
    gsm8k = read(DATA, "gsm8k_train.jsonl", fields=FIELDS | {"solution": "solution", "source_id": "id"})
    assert len(gsm8k) == 7473 and all(isinstance(row, Problem) for row in gsm8k)
    dapo = read(DATA, "dapo_math_17k.jsonl", fields=FIELDS | {"source_id": "id"}, limit=500)
    assert len(dapo) == 500 and all(isinstance(row, Problem) for row in dapo)
    math = read(DATA, "math_train7500.jsonl")
    lines = (DATA / "math_train7500.jsonl").read_text().strip().split("\n")
    without = [i for i, line in enumerate(lines, 1) if json.loads(line)["answer"] in (None, "")]
    assert len(without) == 4
    assert [(row.line, row.field) for row in math if isinstance(row, BadRow)] == [(line, "answer") for line in without]
