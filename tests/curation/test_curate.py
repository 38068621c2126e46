"""Steps one by one and together: what goes, why, and that every row is accounted for."""

import json
import random
from dataclasses import replace

import pytest
from one_step import alone

from pipelines import verifiers
from pipelines.config.curation import CurationSettings, FilterSettings
from pipelines.curation import run as curation
from pipelines.curation.filters import objection
from pipelines.curation.run import curate
from pipelines.curation.steps import Batch, Passed
from pipelines.errors import InfrastructureError
from pipelines.records import Dropped, Problem, problem_id

sandboxed = pytest.mark.skipif(bool(verifiers.probe()), reason="no sandbox on this machine")


def row(prompt: str, answer: str = "1", **fields: object) -> Problem:
    given = {"domain": "math", "answer_type": "expression", "verifier": "math", "source": "s", "source_id": prompt[-6:]} | fields
    return Problem(problem_id=problem_id(prompt, answer), prompt=prompt, answer=answer, **given)


def program(number: int, body: str, expected: int = 3, **arguments: object) -> Problem:
    tests = [{"args": [1], "expected": expected}]
    given = json.dumps({"entry_point": "f", "tests": tests} | arguments)
    return row(f"Write f number {number}", f"def f(x):\n    {body}", answer_type="program", verifier="code", domain="code", verifier_args=given)


def reasons(dropped: list[Dropped]) -> dict[str, str]:
    return {item.problem.source_id: item.reason for item in dropped}


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (row("short"), ("prompt_too_short", "5 characters, at least 8")),
        (row("x" * 21), ("prompt_too_long", "21 characters, at most 20")),
        (row("x" * 20, "12345"), ("answer_too_long", "5 characters, at most 4")),
        (row("x" * 20, solution="12"), ("solution_too_short", "2 characters, at least 3")),
        (row("x" * 8, "1234", solution="123"), None),
        (row("x" * 8), None),
    ],
)
def test_filters_name_the_bound(problem: Problem, expected: tuple[str, str] | None) -> None:
    assert objection(problem, FilterSettings(prompt_chars=(8, 20), answer_chars=(1, 4), solution_chars=(3, 9))) == expected


def test_dedup_keeps_one_row_worked_solution_first() -> None:
    rows = [
        row("What is  two?", "2", source="a", source_id="1"),
        row("what is two?", "2", source="b", source_id="2", solution="two"),
        row("What is two?", "2", source="b", source_id="3", solution="2"),
        row("What is one?", source_id="4"),
    ]
    for order in (rows, rows[::-1]):
        kept, dropped = alone("exact_dedup", order)
        assert {problem.source_id for problem in kept} == {"2", "4"}
        assert reasons(dropped) == {"1": "duplicate", "3": "duplicate"} and dropped[0].detail == "same prompt as b 2"


def test_equal_answers_written_differently_are_no_conflict_and_unequal_ones_take_the_cluster() -> None:
    rows = [
        row("Half?", "1/2", source_id="1"),
        row("Half?", "\\frac{1}{2}", source_id="2"),
        row("Third?", "1/3", source_id="3"),
        row("Third?", "3", source_id="4"),
        row("Third?", "1/3", source_id="5"),
    ]
    kept, dropped = alone("exact_dedup", rows)
    assert [problem.source_id for problem in kept] == ["1"]
    assert reasons(dropped) == {"2": "duplicate", "3": "conflicting_answers", "4": "conflicting_answers", "5": "conflicting_answers"}
    assert all("s 3 says '1/3', s 4 says '3'" in item.detail for item in dropped if item.reason == "conflicting_answers")


def test_two_programs_for_one_prompt_are_no_conflict() -> None:
    one, other = program(1, "return x + 2"), program(1, "return 2 + x")
    kept, dropped = alone("exact_dedup", [one, other])
    assert len(kept) == 1 and [item.reason for item in dropped] == ["duplicate"]


def test_known_rows_are_not_repeated() -> None:
    old = row("Old problem?", "5", source="old", source_id="7")
    kept, dropped = alone("exact_dedup", [row("old  Problem?", "6"), row("New problem?")], known=(old,))
    assert [problem.prompt for problem in kept] == ["New problem?"]
    assert [(item.reason, item.detail) for item in dropped] == [("known", "same prompt as old 7")]


@sandboxed
def test_audit_finds_golds_that_cannot_win() -> None:
    good = [row("half of one", "\\frac{1}{2}"), row("an interval", "[0,\\infty)"), program(1, "return x + 2")]
    bad = [
        replace(row("open brace", "\\frac{2"), source_id="brace"),
        replace(program(2, "return x"), source_id="wrong"),
        replace(program(3, "return x +"), source_id="syntax"),
        replace(program(4, "return x", tests=[]), source_id="no tests"),
        replace(row("verifier", verifier="mth"), source_id="verifier"),
    ]
    kept, dropped = alone("audit", good + bad)
    assert kept == sorted(good, key=lambda problem: problem.problem_id)
    assert reasons(dropped) == {
        "brace": "gold_unparsable",
        "wrong": "gold_wrong",
        "syntax": "gold_crash",
        "no tests": "gold_unjudgeable",
        "verifier": "gold_unjudgeable",
    }
    assert "unknown verifier 'mth'" in next(item.detail for item in dropped if item.problem.source_id == "verifier")


def test_audit_without_a_sandbox_is_an_error_not_a_dropped_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.verifiers import sandbox

    monkeypatch.setenv("PATH", "/nonexistent")
    for function in (sandbox.probe, sandbox.require_sandbox):
        getattr(function, "cache_clear", lambda: None)()
    try:
        with pytest.raises(InfrastructureError, match="could not run: .*(bwrap|bubblewrap|sandbox)"):
            alone("audit", [program(1, "return x + 2")])
    finally:
        monkeypatch.undo()
        for function in (sandbox.probe, sandbox.require_sandbox):
            getattr(function, "cache_clear", lambda: None)()


MIXED = [
    row("What is two?", "$2$"),
    row("What is two?", "2", source_id="again"),
    row("tiny", source_id="tiny"),
    row("This row stands in the benchmark word for word.", source_id="leak"),
    row("This answer nobody can read.", "\\frac{", source_id="unread"),
    row("What is left at the end?", "4", solution="2+2=<<2+2=4>>4\n#### 4", source="t"),
]
HELD = {"held": [row("this row stands in the benchmark, word for word")]}


def test_ledger_adds_up_and_order_leaves_no_trace() -> None:
    first = curate(MIXED, HELD, CurationSettings())
    assert [(entry["step"], entry["input"], entry["kept"], entry["dropped"], entry["reasons"]) for entry in first.ledger] == [
        ("normalise", 6, 6, 0, {}),
        ("filters", 6, 5, 1, {"prompt_too_short": 1}),
        ("exact_dedup", 5, 4, 1, {"duplicate": 1}),
        ("decontaminate", 4, 3, 1, {"benchmark_exact": 1}),
        ("audit", 3, 2, 1, {"gold_unparsable": 1}),
    ]
    assert first.ledger[-1]["sources"] == {"s": 1, "t": 1}
    assert sorted((problem.prompt, problem.answer, problem.solution) for problem in first.kept) == [
        ("What is left at the end?", "4", "2+2=4"),
        ("What is two?", "2", None),
    ]
    for seed in range(5):
        shuffled = random.Random(seed).sample(MIXED, len(MIXED))
        assert curate(shuffled, HELD, CurationSettings()) == first


def test_steps_can_be_left_out_and_moved() -> None:
    only = curate(MIXED, HELD, CurationSettings(steps=("decontaminate",)))
    assert [entry["step"] for entry in only.ledger] == ["decontaminate"] and len(only.kept) == 5
    raw_first = curate(MIXED, HELD, CurationSettings(steps=("exact_dedup", "normalise")))
    assert raw_first.ledger[0]["reasons"] == {"duplicate": 1}  # $2$ and 2 are the same value even before they are normalised
    assert curate(MIXED, HELD, CurationSettings(steps=())).ledger == []


def test_a_step_that_loses_a_row_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(curation.STEPS, "filters", lambda rows, inputs: lambda batch: Passed({}, Batch.of(batch.problems[1:])))
    with pytest.raises(AssertionError, match="'filters': 6 rows went in, 5 came out"):
        curate(MIXED, HELD, CurationSettings())
