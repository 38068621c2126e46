"""The stage `curation`: splits by content, files and ledger agree, an empty split is one clear sentence."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import paths
from pipelines.config.curation import CurationSettings
from pipelines.errors import UserError
from pipelines.progress import Journal
from pipelines.records import Problem, problem_id
from pipelines.stages import Context
from pipelines.stages.curation import run, split_of
from pipelines.store import read_json, read_problems, write_problems

DATA = Path(__file__).parents[3] / "shared" / "data" / "tasks"


def row(number: int, solution: str | None = "worked", prompt: str = "How much is the number {}?") -> Problem:
    text = prompt.format(number)
    return Problem(
        problem_id(text, str(number)),
        "math",
        text,
        str(number),
        "integer",
        "math",
        solution=solution,
        source="s",
        source_id=f"s/{number}",
        licence="MIT",
    )


def stage(root: Path, rows: list[Problem], held: list[Problem], **settings: object) -> dict[str, float]:
    write_problems(root / paths.PROBLEMS, rows)
    write_problems(root / paths.BENCHMARKS / "held.parquet", held)
    work = root / "work"
    return run(Context("curation", root, 1, CurationSettings.model_validate(settings), work, Journal(work / "j.jsonl", "curation", io.StringIO())))


def split(rows: list[Problem], settings: CurationSettings) -> dict[str, list[Problem]]:
    return {name: [row for row in rows if split_of(row.problem_id, row.solution, settings) == name] for name in paths.SPLITS}


def test_splits_follow_the_shares_and_the_rows_alone() -> None:
    rows = [row(i) for i in range(4000)] + [row(i, None) for i in range(4000, 4100)]
    settings = CurationSettings(splits={"base": 6, "sft": 3, "rl": 1})
    splits = split(rows, settings)
    assert len(splits["base"]) == pytest.approx(2400, abs=150) and len(splits["sft"]) == pytest.approx(1200, abs=130)
    assert all(problem in splits["rl"] for problem in rows[4000:])
    fewer = split(rows[:500], settings)
    assert all(set(fewer[name]) <= set(splits[name]) for name in splits)  # a row's split does not depend on other rows
    assert not split(rows[:4000], CurationSettings(splits={"sft": 1}))["rl"]


def test_answered_without_working_counts_as_worked() -> None:
    assert len(split([row(i, "") for i in range(50)], CurationSettings(splits={"sft": 1}))["sft"]) == 50


def test_files_ledger_and_summary_agree_and_repeat(tmp_path: Path) -> None:
    rows = [row(i) for i in range(300)] + [row(i, prompt="How much   is the number {}?") for i in range(20)]
    summary = stage(tmp_path, rows, [row(7)])
    kept = [problem for path in paths.SPLITS.values() for problem in read_problems(tmp_path / path)]
    ledger = read_json(tmp_path / paths.CURATION / paths.LEDGER)
    dropped = pq.read_table(tmp_path / paths.CURATION / paths.DROPPED).to_pylist()
    assert len(kept) == summary["kept"] == 299 and len(dropped) == summary["dropped"] == 21
    assert ledger["input"] == 320 and ledger["steps"][-1]["kept"] == 299 and ledger["sources"] == {"s": 320}
    assert sum(part["rows"] for part in ledger["splits"].values()) == 299
    assert {item["reason"] for item in dropped} == {"duplicate", "benchmark_exact"} and all(item["detail"] for item in dropped)
    files = sorted((tmp_path / paths.CURATION).iterdir())
    before = {path.name: path.read_bytes() for path in files}
    stage(tmp_path, rows[::-1], [row(7)])
    assert {path.name: path.read_bytes() for path in files} == before


def test_nothing_left_says_which_step_took_how_many(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        stage(tmp_path, [row(i) for i in range(5)], [row(0)], filters={"prompt_chars": [200, 300]})
    assert str(caught.value) == "curation: no row is left: 5 rows; filters -5 (prompt_too_short 5); 0 kept"
    assert not (tmp_path / paths.CURATION).exists()


def test_empty_split_with_a_share_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"split 'sft' is empty: 3 rows; 3 kept, 3 of them without a worked solution"):
        stage(tmp_path, [row(i, None) for i in range(3)], [], splits={"sft": 1, "rl": 1})
    stage(tmp_path, [row(i, None) for i in range(3)], [], splits={"sft": 0, "rl": 1})
    assert read_problems(tmp_path / paths.SPLITS["sft"]) == [] and len(read_problems(tmp_path / paths.SPLITS["rl"])) == 3


@pytest.mark.skipif(not DATA.exists(), reason="the shared real data is not here")
def test_gsm8k_train_against_its_test_set(tmp_path: Path) -> None:
    def load(name: str) -> list[Problem]:
        items = [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().strip().split("\n")]
        return [
            Problem(
                problem_id(item["question"], item["answer"]),
                "math",
                item["question"],
                item["answer"],
                "integer",
                "math",
                solution=item["solution"],
                source=name,
                source_id=item["id"],
            )
            for item in items
        ]

    train, test = load("gsm8k_train"), load("gsm8k_test")
    leaked = [replace(item, source_id=f"leak/{i}") for i, item in enumerate(test[:25])]
    stage(tmp_path, train + leaked, test)
    dropped = pq.read_table(tmp_path / paths.CURATION / paths.DROPPED).to_pylist()
    by_leak = [item for item in dropped if item["source_id"].startswith("leak/")]
    assert len(by_leak) == 25 and all(item["reason"] == "benchmark_exact" for item in by_leak)
    assert len(dropped) - 25 < 20  # the real training set is nearly clean
    rows = [problem for path in paths.SPLITS.values() for problem in read_problems(tmp_path / path)]
    assert not any("<<" in (problem.solution or "") or "####" in (problem.solution or "") for problem in rows)
