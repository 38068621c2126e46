"""Work in parts: parts of any size continue each other, and whoever leaves a shared folder last clears it."""

import threading
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.parts import in_parts, shared
from pipelines.records import Problem


def row(number: int) -> Problem:
    return Problem(str(number), "math", "p", "1", "text", "exact", source="s", source_id=str(number))


def test_parts_of_another_size_go_on_where_the_first_ended(tmp_path: Path) -> None:
    problems = [row(n) for n in range(10)]
    judged: list[tuple[int, int]] = []

    def judge(start: int, batch) -> pa.Table:
        if len(judged) == 2:
            raise KeyboardInterrupt
        judged.append((start, len(batch)))
        return pa.table({"id": [problem.problem_id for problem in batch], "outcome": ["correct"] * len(batch)})

    with pytest.raises(KeyboardInterrupt):
        list(in_parts(problems, 3, tmp_path, judge))
    assert judged == [(0, 3), (3, 3)]
    judged.clear()
    tables = list(in_parts(problems, 2, tmp_path, judge))
    assert judged == [(6, 2), (8, 2)]
    assert pa.concat_tables(tables)["id"].to_pylist() == [str(n) for n in range(10)]


def test_the_last_one_out_clears_a_shared_folder(tmp_path: Path) -> None:
    folder, inside, leave = tmp_path / "deep" / "work", threading.Event(), threading.Event()

    def other() -> None:
        with shared(folder):
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(20)
    with shared(folder):
        (folder / "part").write_text("x")
    assert (folder / "part").exists(), "the other one is still at work"
    leave.set()
    thread.join()
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), shared(folder):
        (folder / "part").write_text("x")
        raise KeyboardInterrupt
    assert (folder / "part").exists(), "what is interrupted is kept"
