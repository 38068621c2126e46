"""data/examples: what its README says of the files is so."""

import json
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "data" / "examples"
TABLE = {file: int(rows) for file, rows in re.findall(r"^\| (\w+\.jsonl) \| (\d+) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)} | {
    f"{name}_{part}.jsonl": 100 if name == "gsm8k" else 200 for name in ("svamp", "mawps", "gsm8k") for part in ("dev", "test")
}


def rows(name):
    return [json.loads(line) for line in (EXAMPLES / name).read_text().splitlines()]


def words(row):
    return re.findall(r"\w+", row["question"].lower())


def test_every_file_has_as_many_rows_as_the_table_says():
    games = {"intersection.jsonl": 256}
    assert {file.name: len(rows(file.name)) for file in EXAMPLES.glob("*.jsonl")} == TABLE | games


@pytest.mark.parametrize("name", ["gsm8k_short.jsonl", "svamp_train.jsonl"])
def test_steps_are_sums_that_end_in_the_answer(name):
    solved = [row for row in rows(name) if "steps" in row]
    assert len(solved) > 0.99 * len(rows(name))
    for row in solved:
        assert all(re.fullmatch(r"[\d.,+*/ -]+ = -?[\d.,]+", line) for line in row["steps"].splitlines()), row
        assert float(row["steps"].rpartition(" = ")[2].replace(",", "")) == float(row["answer"].replace(",", "")), row
        assert "<<" not in row.get("solution", "")


def test_no_row_stands_in_two_files_but_for_problems_that_their_source_has_twice():
    seen = {}
    for name in TABLE:
        for row in rows(name):
            assert seen.setdefault(row["id"], name) == name
    tested = {tuple(words(row)) for name in TABLE if name.endswith(("_test.jsonl", "_dev.jsonl")) for row in rows(name)}
    again = [row for name in ("gsm8k_short.jsonl", "svamp_train.jsonl", "mawps_train.jsonl") for row in rows(name) if tuple(words(row)) in tested]
    assert len(again) == 67
