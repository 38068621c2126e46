"""From rows of samples to figures, by hand; and the gate's rules."""

from typing import Any

import pyarrow as pa
import pytest

from pipelines.config.evaluation import GateSettings
from pipelines.errors import InfrastructureError
from pipelines.evaluation.benchmarks import SAMPLE_SCHEMA
from pipelines.evaluation.gate import decide
from pipelines.evaluation.scores import comparisons, score_benchmark


def table(outcomes: dict[str, str], answer_type: str = "integer") -> pa.Table:
    """One row per letter: + correct, x / y wrong with that answer, ? unparsable, ! not judged."""
    rows = []
    for problem, letters in outcomes.items():
        for i, letter in enumerate(letters):
            outcome = {"+": "correct", "?": "unparsable", "!": "infrastructure"}.get(letter, "wrong")
            row: dict[str, Any] = {"problem_id": problem, "topics": [f"level {problem}"], "prompt": "", "answer": "7", "answer_type": answer_type}
            row |= {"sample": i, "seed": i, "response": letter, "response_tokens": 10 + i, "finish_reason": "length" if letter == "?" else "stop"}
            row |= {"outcome": outcome, "score": float(letter == "+"), "extracted": None if letter in "?!" else letter, "detail": ""}
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)


def score(tables: dict[str, pa.Table], ks: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    return score_benchmark(tables, ks, comparisons(list(tables)), 300, 0, "sums")


def test_figures_by_hand() -> None:
    result = score({"sft": table({"1": "++xx", "2": "x?yx"})})
    figures = result["models"]["sft"]
    assert figures["pass_at_k"]["1"]["mean"] == pytest.approx((0.5 + 0.0) / 2)
    assert figures["pass_at_k"]["2"]["mean"] == pytest.approx((5 / 6 + 0.0) / 2)
    # Pairs of 2 correct and 2 equal wrong: one of six is right alone, four tie.
    assert figures["maj_at_k"]["2"]["mean"] == pytest.approx((1 / 6 + 4 / 6 / 2 + 0.0) / 2)
    assert figures["outcomes"] == {"correct": 2, "wrong": 5, "unparsable": 1}
    assert figures["format_validity"] == 7 / 8 and figures["truncated"] == 1 / 8 and figures["mean_tokens"] == 11.5
    assert figures["topics"] == {"level 1": {"mean": 0.5, "problems": 1}, "level 2": {"mean": 0.0, "problems": 1}}
    assert result["problems"] == 2 and result["constant_answer"]["share"] == 1.0


def test_programs_have_no_vote() -> None:
    assert score({"sft": table({"1": "+x"}, "program")})["models"]["sft"]["maj_at_k"] == {}


def test_what_was_not_judged_counts_neither_way() -> None:
    result = score({"sft": table({"1": "+!x", "2": "!!+"}), "math": table({"1": "+++", "2": "+++"})})
    assert (result["problems"], result["left_out"]) == (1, 1), "problem 2 has one judged sample, pass@2 needs two"
    assert result["models"]["sft"]["pass_at_k"]["1"]["mean"] == 0.5
    assert result["models"]["math"]["pass_at_k"]["1"]["count"] == 1, "the same problems for every model"
    with pytest.raises(InfrastructureError, match="'sums': no problem has 2 judged responses"):
        score({"sft": table({"1": "!!+"})})


def test_differences_are_paired_by_problem() -> None:
    tables = {"sft": table({"1": "+xx", "2": "xxx"}), "math": table({"1": "+++", "2": "+xx"}), "merged": table({"1": "+++", "2": "+++"})}
    found = {(d["model"], d["against"], d["k"]): d["mean"] for d in score(tables)["differences"]}
    assert found.keys() == {(*pair, k) for pair in (("math", "sft"), ("merged", "sft"), ("merged", "math")) for k in (1, 2)}
    assert found["math", "sft", 1] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found["merged", "math", 1] == pytest.approx((0 + 2 / 3) / 2)


def difference(benchmark: str, mean: float, low: float, high: float) -> dict[str, Any]:
    return {"model": "merged", "against": "sft", "benchmark": benchmark, "k": 1, "mean": mean, "low": low, "high": high, "p": 0.5}


@pytest.mark.parametrize(
    ("math", "code", "passed", "reason"),
    [
        ((0.2, 0.1, 0.3), (0.0, -0.1, 0.1), True, "lies above zero"),
        ((0.2, 0.0, 0.4), (0.0, -0.1, 0.1), False, "had to lie above zero"),
        ((0.2, 0.1, 0.3), (-0.05, -0.1, 0.0), True, "no fall beyond the tolerated 0.050"),
        ((0.2, 0.1, 0.3), (-0.06, -0.1, 0.0), False, "fell by more than the tolerated 0.050"),
    ],
)
def test_gate(math: tuple[float, ...], code: tuple[float, ...], passed: bool, reason: str) -> None:
    decision = decide(GateSettings(improve=("math",), tolerate=0.05), [difference("math", *math), difference("code", *code)])
    assert decision["passed"] is passed
    assert len(decision["reasons"]) == 2 and any(reason in sentence for sentence in decision["reasons"])
