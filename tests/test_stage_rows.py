"""Which rows a stage reads of those that params name, and that it writes down which they were."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import paths
from pipelines.config.stage import Reading
from pipelines.errors import UserError
from pipelines.progress import Journal
from pipelines.records import Problem, problem_id
from pipelines.stages import Context, rows
from pipelines.store import write_problems


def row(number: int, **changes: object) -> Problem:
    prompt = f"What is {number} + 1?"
    made = Problem(problem_id(prompt, str(number + 1)), "math", prompt, str(number + 1), "integer", "math", source="sums", topics=(f"level {number % 3}",))
    return replace(made, **changes)


ROWS = [row(i, domain="code" if i >= 15 else "math", source="loops" if i % 5 == 0 else "sums") for i in range(20)]
GRADED = [replace(problem, pass_rate=i / 10, pass_n=10) for i, problem in enumerate(ROWS[:10])]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_problems(tmp_path / paths.rows("curation/rl"), ROWS)
    write_problems(tmp_path / paths.rows("difficulty"), GRADED[3:7])
    write_problems(tmp_path / paths.rows("difficulty/graded"), GRADED)
    write_problems(tmp_path / paths.rows("new"), [row(i) for i in range(5, 45)])
    return tmp_path


def context(root: Path, seed: int = 1) -> Context:
    return Context("math", root, seed, None, root, Journal(root / "journal.jsonl", "math"))


def read(root: Path, **given: object) -> list[str]:
    """Prompts' numbers."""
    return [problem.prompt.split()[2] for problem in rows.read(context(root), Reading.model_validate(given))]


def test_a_name_a_list_and_a_mapping_mean_the_same(root: Path) -> None:
    assert read(root, data="difficulty") == ["3", "4", "5", "6"] == read(root, data=["difficulty"]) == read(root, data={"difficulty": None})
    assert read(root, data="difficulty/graded") == [str(i) for i in range(10)] and len(read(root, data="curation/rl")) == 20


def test_conditions_hold_together(root: Path) -> None:
    assert read(root, data="curation/rl", where={"domain": ["code"]}) == ["15", "16", "17", "18", "19"]
    assert read(root, data="curation/rl", where={"domain": ["math"], "source": ["loops"]}) == ["0", "5", "10"]
    assert read(root, data="curation/rl", where={"topics": ["level 1", "level 7"]}) == ["1", "4", "7", "10", "13", "16", "19"]
    assert read(root, data="difficulty/graded", where={"pass_rate": [0.25, 0.5]}) == ["3", "4", "5"]
    assert read(root, data={"difficulty/graded": {"where": {"sql": "pass_n = 10 and answer::int > 8"}}}) == ["8", "9"]
    both = {"difficulty/graded": {"where": {"pass_rate": [0, 0.1]}}, "curation/rl": {"where": {"domain": ["code"]}}}
    assert sorted(read(root, data=both, where={"sql": "answer::int % 2 = 0"}), key=int) == ["1", "15", "17", "19"]


def test_a_problem_that_two_references_have_is_read_once(root: Path) -> None:
    assert sorted(read(root, data=["difficulty", "new"]), key=int) == [str(i) for i in range(3, 45)]
    seen = pq.read_table(root / paths.seen("math")).to_pylist()
    assert [entry["data"] for entry in seen] == ["difficulty"] * 4 + ["new"] * 38  # 5 and 6 stand in both
    assert {entry["problem_id"] for entry in seen} == {row(i).problem_id for i in range(3, 45)}


def test_shares_give_the_largest_mix_that_has_them_whatever_else_there_is(root: Path) -> None:
    given = {"difficulty": {"share": 1}, "new": {"share": 3}}
    mixed = read(root, data=given)
    assert len(mixed) == 16 and mixed[:4] == ["3", "4", "5", "6"]  # 4 of 4, and 12 of 38
    assert read(root, data={"difficulty": {"share": 0.25}, "new": {"share": 0.75}}) == mixed, "shares are relative"
    write_problems(root / paths.rows("new"), [row(i) for i in range(44, 4, -1)])
    assert sorted(read(root, data=given)) == sorted(mixed), "drawn by hash of their ids, not by their order"
    other = rows.read(context(root, seed=2), Reading.model_validate({"data": given}))
    assert len(other) == 16 and {problem.prompt.split()[2] for problem in other} != set(mixed)


def test_a_file_of_the_projects_own(root: Path) -> None:
    lines = [{"question": f"How much is {i} times 2?", "answer": 2 * i, "subject": ["doubles"]} for i in range(3)]
    (root / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert len(rows.read(context(root), Reading.model_validate({"data": ["difficulty", "mine.jsonl"]}))) == 7
    write_problems(root / "mine.parquet", [row(99, pass_rate=0.5)])
    assert read(root, data="mine.parquet", where={"pass_rate": [0.5, 0.5]}) == ["99"]
    (root / "mine.jsonl").write_text('{"question": "How much?", "answer": 1}\n{"question": "What?"}\n')
    with pytest.raises(UserError, match=r"mine.jsonl:2: answer: missing field; a file that a stage reads must be read whole"):
        read(root, data="mine.jsonl")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": "difficulty", "where": {"domain": ["logic"]}}, "math: no row is left of difficulty; there were 4 in difficulty, of domains math"),
        ({"data": "difficulty", "where": {"sql": "pas_rate > 0"}}, r"math: where.sql: .*pas_rate.*columns: problem_id, domain"),
        ({"data": {"difficulty": {"where": {"sql": "true; drop table x"}}}}, r"math: data.difficulty.where.sql: "),
        ({"data": "difficulty", "where": {"sql": "exists (select * from read_csv('/etc/passwd'))"}}, "math: where.sql: "),
        ({"data": "difficulty", "where": {"sql": "exists (select * from 'mine.parquet')"}}, "math: where.sql: "),
    ],
)
def test_one_sentence_for_what_cannot_be_read(root: Path, given: dict, said: str) -> None:
    write_problems(root / "mine.parquet", [row(99)])
    with pytest.raises(UserError, match=said):
        read(root, **given)


def test_a_condition_sees_no_variable_of_this_program(root: Path) -> None:
    secret = pq.read_table(root / paths.rows("new"))
    assert secret.num_rows
    with pytest.raises(UserError, match="where.sql"):
        read(root, data="difficulty", where={"sql": "exists (select * from secret)"})


def test_shares_of_some_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="data: new has no share, and the others have one; give all of them one, or none"):
        Reading.model_validate({"data": {"difficulty": {"share": 0.5}, "new": {}}})
    with pytest.raises(ValueError, match="at least 1"):
        Reading.model_validate({"data": []})


def test_rollouts_beside_rows_take_no_share_and_hide_no_message(root: Path) -> None:
    def selected(**given: object) -> dict[str, int]:
        found = rows.select(context(root), Reading.model_validate(given), {"math/rollouts"})
        return {name: table.num_rows for name, table in found.items()}

    assert sum(selected(data={"difficulty": {"share": 1}, "new": {"share": 3}, "math/rollouts": {}}).values()) == 16
    assert selected(data="math/rollouts") == {}
    with pytest.raises(UserError, match="no row is left of difficulty; there were 4 in difficulty, of domains math"):
        selected(data=["difficulty", "math/rollouts"], where={"domain": ["logic"]})
