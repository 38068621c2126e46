"""The stage `sources`: everything or nothing on disk, every bad row accounted for."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import paths
from pipelines.config.sources import SourcesSettings
from pipelines.errors import UserError
from pipelines.progress import Journal
from pipelines.stages import Context
from pipelines.stages.sources import run
from pipelines.store import read_json, read_problems

FILE = {"kind": "file", "fields": {"prompt": "q", "answer": "a"}}
GENERATED = {"kind": "arithmetic", "count": 30}


def stage(root: Path, settings: dict[str, object], seed: int = 1) -> dict[str, float]:
    checked = SourcesSettings.model_validate(settings)
    work = root / "work"
    return run(Context("sources", root, seed, checked, work, Journal(work / "journal.jsonl", "sources", io.StringIO())))


def rows(path: Path, *items: object) -> None:
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items))


def test_writes_problems_benchmarks_bad_rows_and_ledger(tmp_path: Path) -> None:
    rows(tmp_path / "train.jsonl", *({"q": f"q{i}", "a": i} for i in range(199)), {"q": "lost"})
    rows(tmp_path / "test.jsonl", {"q": "What  is it?", "a": 1}, {"q": "what is it?", "a": 2}, {"q": "and this?", "a": 3})
    summary = stage(
        tmp_path, {"train": {"gen": GENERATED, "mine": FILE | {"path": "train.jsonl"}}, "benchmarks": {"held": FILE | {"path": "test.jsonl"}}}
    )
    problems = read_problems(tmp_path / paths.PROBLEMS)
    assert [problem.source for problem in problems] == ["gen"] * 30 + ["mine"] * 199
    assert [problem.prompt for problem in problems[30:]] == [f"q{i}" for i in range(199)]
    assert [problem.answer for problem in read_problems(tmp_path / paths.BENCHMARKS / "held.parquet")] == ["1", "3"]
    assert pq.read_table(tmp_path / paths.SOURCES / "malformed.parquet").to_pylist() == [
        {"source": "mine", "file": "train.jsonl", "line": 200, "field": "a", "reason": "missing field", "raw": '{"q": "lost"}'}
    ]
    assert pq.read_table(tmp_path / paths.SOURCES / paths.DROPPED)["reason"].to_pylist() == ["repeated_prompt"]
    assert read_json(tmp_path / paths.SOURCES / paths.LEDGER) == {
        "train": {
            "gen": {"role": "train", "problems": 30, "malformed": 0, "reasons": {}},
            "mine": {"role": "train", "problems": 199, "malformed": 1, "reasons": {"a: missing field": 1}},
        },
        "benchmarks": {"held": {"role": "benchmark", "problems": 3, "malformed": 0, "reasons": {}, "repeated_prompt": 1}},
    }
    assert summary["problems"] == 229 and summary["malformed"] == 1 and summary["benchmark_problems"] == 2


def test_too_many_bad_rows_stop_the_stage_and_leave_nothing(tmp_path: Path) -> None:
    rows(tmp_path / "train.jsonl", {"q": "q", "a": 1}, "{not json", {"q": "r"})
    settings = {"train": {"gen": GENERATED, "mine": FILE | {"path": "train.jsonl"}}, "benchmarks": {}}
    with pytest.raises(UserError) as caught:
        stage(tmp_path, settings | {"max_bad_rows": 0.5})
    assert "'mine': 2 of 3 rows (66.7%) are malformed" in str(caught.value) and "train.jsonl line 2: not JSON" in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []
    stage(tmp_path, settings | {"max_bad_rows": 0.7})
    assert (tmp_path / paths.PROBLEMS).exists()


def test_failure_keeps_the_earlier_output(tmp_path: Path) -> None:
    stage(tmp_path, {"train": {"gen": GENERATED}, "benchmarks": {}})
    before = (tmp_path / paths.PROBLEMS).read_bytes()
    with pytest.raises(UserError, match="no such file"):
        stage(tmp_path, {"train": {"gen": GENERATED, "mine": FILE | {"path": "none.jsonl"}}, "benchmarks": {}})
    assert (tmp_path / paths.PROBLEMS).read_bytes() == before


@pytest.mark.parametrize("settings", [{"train": {}, "benchmarks": {}}, {"train": {"mine": FILE | {"path": "empty.jsonl"}}, "benchmarks": {}}])
def test_no_rows_is_an_error(tmp_path: Path, settings: dict[str, object]) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no rows|no training problem"):
        stage(tmp_path, settings)


def test_train_and_benchmark_of_one_name_draw_differently_and_seeds_repeat(tmp_path: Path) -> None:
    settings = {"train": {"math": GENERATED}, "benchmarks": {"math": GENERATED}}
    stage(tmp_path, settings)
    train, held = (path.read_bytes() for path in (tmp_path / paths.PROBLEMS, tmp_path / paths.BENCHMARKS / "math.parquet"))
    assert {p.prompt for p in read_problems(tmp_path / paths.PROBLEMS)} != {
        p.prompt for p in read_problems(tmp_path / paths.BENCHMARKS / "math.parquet")
    }
    stage(tmp_path, settings)
    assert (tmp_path / paths.PROBLEMS).read_bytes() == train and (tmp_path / paths.BENCHMARKS / "math.parquet").read_bytes() == held
    stage(tmp_path, settings, seed=2)
    assert (tmp_path / paths.PROBLEMS).read_bytes() != train
