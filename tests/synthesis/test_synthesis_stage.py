"""The stage `synthesis`: new rows at the weak level, with parents, not known before and not in a benchmark."""

import io
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from chat_endpoint import Answer, serve

from pipelines import paths
from pipelines.config.curation import CurationSettings, SynthesiseStage
from pipelines.config.sources import ArithmeticSource, FunctionsSource, ReasoningGymSource
from pipelines.errors import UserError
from pipelines.progress import Journal
from pipelines.records import Problem, problem_id
from pipelines.sources import SOURCES
from pipelines.stages import Context
from pipelines.stages.synthesise import run
from pipelines.store import discard, read_json, read_problems, write_problems

MATH = ArithmeticSource(kind="arithmetic", count=60, levels={1: 1.0, 2: 1.0, 3: 1.0})
CURATION = CurationSettings(decontamination={"n": 8, "rule": "containment"})  # type: ignore[arg-type]


def prepare(root: Path, rates: dict[str, float]) -> list[Problem]:
    """Graded rows of the source `sums`, whose pass rate is that of their level; one of the benchmark's rows."""
    rows = [row for row in SOURCES["arithmetic"](MATH, 5, "sums", root) if isinstance(row, Problem)]
    found = [replace(row, pass_rate=rates[row.topics[1]], pass_n=8) for row in rows]
    write_problems(root / paths.rows("difficulty/graded"), found)
    for path in paths.SPLITS.values():
        write_problems(root / path, rows if path == paths.SPLITS["rl"] else [])
    write_problems(root / paths.BENCHMARKS / "held.parquet", rows[:1])
    return found


def stage(root: Path, seed: int = 1, **settings: object) -> dict[str, float]:
    given = SynthesiseStage.model_validate({"data": "difficulty/graded", "generators": {"sums": MATH}, "curation": CURATION, "budget": 40} | settings)
    work = root / "work"
    return run(Context("synthesis", root, seed, given, work, Journal(work / "j.jsonl", "synthesis", io.StringIO())))


def test_weak_levels_get_new_problems_in_proportion_to_failure(tmp_path: Path) -> None:
    graded = prepare(tmp_path, {"level 1": 0.9, "level 2": 0.4, "level 3": 0.2})
    summary = stage(tmp_path)
    ledger = read_json(tmp_path / paths.ROWS / "synthesis" / paths.LEDGER)
    assert {topic["topics"][1]: (topic["weak"], topic["proposed"]) for topic in ledger["topics"]} == {
        "level 3": (True, 23),  # 40 x .8 / 1.4 = 22.86
        "level 2": (True, 17),  # 40 x .6 / 1.4 = 17.14
        "level 1": (False, 0),
    }
    new = read_problems(tmp_path / paths.rows("synthesis"))
    assert len(new) == summary["kept"] > 30 and summary["proposed"] == 40
    by_id = {problem.problem_id: problem for problem in graded}
    for problem in new:
        (parent,) = problem.parents
        assert by_id[parent].topics == problem.topics and (by_id[parent].pass_rate or 0) < 0.6
        assert problem.source == "synthesis/sums" and problem.problem_id == problem_id(problem.prompt, problem.answer)
        assert problem.problem_id not in by_id
    uses = [sum(parent.problem_id in problem.parents for problem in new) for parent in graded if parent.topics[1] == "level 3"]
    assert max(uses) <= 2  # every weak problem has its turn before one has its second
    low, high = ledger["topics"][0]["low"], ledger["topics"][0]["high"]
    assert low < 0.2 < high
    assert [step["step"] for step in ledger["steps"]] == ["procedural", *CURATION.steps]


def test_same_seed_same_bytes_other_seed_other_rows(tmp_path: Path) -> None:
    prepare(tmp_path, {"level 1": 0.0, "level 2": 1.0, "level 3": 1.0})
    stage(tmp_path)
    before = (tmp_path / paths.rows("synthesis")).read_bytes()
    stage(tmp_path)
    assert (tmp_path / paths.rows("synthesis")).read_bytes() == before
    stage(tmp_path, seed=2)
    assert (tmp_path / paths.rows("synthesis")).read_bytes() != before


def test_known_rows_and_benchmark_rows_are_dropped_with_reason(tmp_path: Path) -> None:
    prepare(tmp_path, {"level 1": 0.0, "level 2": 1.0, "level 3": 1.0})
    stage(tmp_path)
    first = read_problems(tmp_path / paths.rows("synthesis"))
    write_problems(tmp_path / paths.SPLITS["sft"], first[:10])
    write_problems(tmp_path / paths.BENCHMARKS / "more.parquet", first[10:13])
    stage(tmp_path)
    dropped = pq.read_table(tmp_path / paths.ROWS / "synthesis" / paths.DROPPED).to_pylist()
    assert {item["problem_id"] for item in dropped if item["reason"] == "known"} >= {problem.problem_id for problem in first[:10]}
    assert {item["problem_id"] for item in dropped if item["step"] == "decontaminate"} >= {problem.problem_id for problem in first[10:13]}


@pytest.mark.parametrize(
    ("rates", "settings", "weak"),
    [
        ({"level 1": 0.9, "level 2": 0.9, "level 3": 0.9}, {}, 0),
        ({"level 1": 0.1, "level 2": 0.9, "level 3": 0.9}, {"method": "none"}, 0),
        ({"level 1": 0.1, "level 2": 0.9, "level 3": 0.9}, {"budget": 0}, 1),
        ({"level 1": 0.1, "level 2": 0.9, "level 3": 0.9}, {"generators": {}}, 1),
    ],
)
def test_nothing_to_do_writes_empty_files(tmp_path: Path, rates: dict[str, float], settings: dict[str, object], weak: int) -> None:
    prepare(tmp_path, rates)
    assert stage(tmp_path, **settings) == {"weak_topics": weak, "proposed": 0, "kept": 0, "dropped": 0}
    assert read_problems(tmp_path / paths.rows("synthesis")) == []
    notes = ["math word problem, level 1: no generator makes such problems"] if "generators" in settings else []
    assert read_json(tmp_path / paths.ROWS / "synthesis" / paths.LEDGER)["notes"] == notes


def test_a_generator_that_runs_dry_gives_what_it_has(tmp_path: Path) -> None:
    prepare(tmp_path, {"level 1": 1.0, "level 2": 1.0, "level 3": 1.0})
    functions = FunctionsSource(kind="functions", count=5, levels={1: 1.0})
    rows = [row for row in SOURCES["functions"](functions, 5, "code", tmp_path) if isinstance(row, Problem)]
    write_problems(tmp_path / paths.rows("difficulty/graded"), [replace(row, pass_rate=0.0, pass_n=8) for row in rows])
    summary = stage(tmp_path, generators={"code": functions}, budget=3000, curation=CurationSettings(steps=("normalise",)))
    assert 1000 < summary["proposed"] == summary["kept"] < 3000
    assert "distinct problems of 3000" in read_json(tmp_path / paths.ROWS / "synthesis" / paths.LEDGER)["notes"][0]


def test_puzzles_without_levels_are_drawn_again(tmp_path: Path) -> None:
    puzzles = ReasoningGymSource(kind="reasoning_gym", task="chain_sum", count=5, topics=("sums",))
    prepare(tmp_path, {"level 1": 1.0, "level 2": 1.0, "level 3": 1.0})
    rows = [row for row in SOURCES["reasoning_gym"](puzzles, 5, "chains", tmp_path) if isinstance(row, Problem)]
    write_problems(tmp_path / paths.rows("difficulty/graded"), [replace(row, pass_rate=0.0, pass_n=8) for row in rows])
    summary = stage(tmp_path, generators={"chains": puzzles}, budget=7, curation=CurationSettings(steps=("normalise", "exact_dedup")))
    assert summary["proposed"] == summary["kept"] == 7


def test_teacher_through_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, {"level 1": 0.0, "level 2": 1.0, "level 3": 1.0})
    monkeypatch.delenv("TOUCHSTONE_TEACHER_URL", raising=False)
    with pytest.raises(UserError, match="TOUCHSTONE_TEACHER_URL"):
        stage(tmp_path, method="teacher", budget=3)

    def answer(prompt: str, number: int) -> Answer:
        return Answer(f"<problem>What is {number} plus three hundred?</problem>") if "<problem>" in prompt else Answer("\\boxed{5}")

    with serve(answer) as endpoint:
        monkeypatch.setenv("TOUCHSTONE_TEACHER_URL", endpoint.url)
        monkeypatch.setenv("TOUCHSTONE_TEACHER_KEY", "secret-key")
        summary = stage(tmp_path, method="teacher", budget=3)
    assert summary == {"weak_topics": 1, "proposed": 3, "kept": 3, "dropped": 0} and set(endpoint.keys) == {"Bearer secret-key"}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"secret-key" not in written and "secret-key" not in "".join(capsys.readouterr())


def test_an_interrupted_teacher_is_not_asked_again_and_a_forced_or_changed_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, {"level 1": 0.0, "level 2": 1.0, "level 3": 1.0})
    replies: list[str] = []

    def answer(prompt: str, number: int) -> Answer:
        replies.append(f"<problem>What is {number} plus three hundred?</problem>" if "<problem>" in prompt else "\\boxed{5}")
        return Answer(replies[-1])

    with serve(answer) as endpoint:
        monkeypatch.setenv("TOUCHSTONE_TEACHER_URL", endpoint.url)
        stage(tmp_path, method="teacher", budget=3)
        asked, first = len(replies), (tmp_path / paths.rows("synthesis")).read_bytes()
        stage(tmp_path, method="teacher", budget=3)
        assert len(replies) == asked, "nobody has recorded the stage, so this run continues the first"
        assert (tmp_path / paths.rows("synthesis")).read_bytes() == first
        stage(tmp_path, method="teacher", budget=3, weak_below=0.7)
        assert len(replies) == 2 * asked, "another run of the stage asks anew"
        discard(tmp_path / "work" / paths.RESUME)  # as whoever records the stage does
        stage(tmp_path, method="teacher", budget=3, weak_below=0.7)
        assert len(replies) == 3 * asked, "a forced one gets new answers"
        assert (tmp_path / paths.rows("synthesis")).read_bytes() != first
