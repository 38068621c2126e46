"""From rows of samples to figures, by hand; and the gate's rules."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.config import Params, check, read_yaml
from pipelines.config.evaluation import GateSettings
from pipelines.errors import InfrastructureError, UserError
from pipelines.evaluation.benchmarks import SAMPLE_SCHEMA
from pipelines.evaluation.gate import decide
from pipelines.evaluation.scores import comparisons, judge_together, score_benchmark


def table(outcomes: dict[str, str], answer_type: str = "integer", confidence: dict[str, float] | None = None) -> pa.Table:
    """One row per letter: + correct, x / y wrong with that answer, ? unparsable, ! not judged. confidence: what each letter states."""
    rows = []
    for problem, letters in outcomes.items():
        for i, letter in enumerate(letters):
            outcome = {"+": "correct", "?": "unparsable", "!": "infrastructure"}.get(letter, "wrong")
            row: dict[str, Any] = {"problem_id": problem, "topics": [f"level {problem}"], "prompt": "", "answer": "7", "answer_type": answer_type}
            row |= {"sample": i, "seed": i, "response": letter, "response_tokens": 10 + i, "finish_reason": "length" if letter == "?" else "stop"}
            row |= {"outcome": outcome, "score": float(letter == "+"), "extracted": None if letter in "?!" else letter, "detail": ""}
            row |= {"vote": None if letter in "?!" else letters.index(letter), "confidence": (confidence or {}).get(letter), "logp": -5.0}
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)


def score(tables: dict[str, pa.Table], ks: tuple[int, ...] = (1, 2), cluster_by: str | None = None) -> dict[str, Any]:
    return score_benchmark(tables, ks, comparisons(list(tables), "sft", "merged"), 300, 0, "sums", taus=(0.5,), cluster_by=cluster_by)


def test_figures_by_hand() -> None:
    result = score({"sft": table({"1": "++xx", "2": "x?yx"})})
    figures = result["models"]["sft"]
    assert figures["pass_at_k"]["1"]["mean"] == pytest.approx((0.5 + 0.0) / 2)
    assert figures["pass_at_k"]["2"]["mean"] == pytest.approx((5 / 6 + 0.0) / 2)
    # Pairs of 2 correct and 2 equal wrong: one of six is right alone, four tie.
    assert figures["maj_at_k"]["2"]["mean"] == pytest.approx((1 / 6 + 4 / 6 / 2 + 0.0) / 2)
    assert figures["outcomes"] == {"correct": 2, "wrong": 5, "unparsable": 1}
    assert [figures[name]["mean"] for name in ("format_validity", "truncated", "tokens")] == [7 / 8, 1 / 8, 11.5]
    assert figures["pass_hat_k"]["2"]["mean"] == figures["worst_at_k"]["2"]["mean"] == pytest.approx((1 / 6 + 0) / 2)
    assert figures["g_pass_at_k"]["0.5"]["mean"] == figures["pass_at_k"]["2"]["mean"], "one of two is half of them"
    assert figures["answer_entropy"]["mean"] == pytest.approx((math.log(2) + 1.5 * math.log(2)) / 2)
    assert figures["token_entropy"]["mean"] == pytest.approx(sum(5 / t for t in (10, 11, 12, 13)) / 4)
    assert {name: (f["mean"], f["count"]) for name, f in figures["topics"].items()} == {"level 1": (0.5, 1), "level 2": (0.0, 1)}
    assert result["problems"] == result["clusters"] == 2 and result["constant_answer"]["share"] == 1.0 and figures["calibration"] is None


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


LETTERS = {str(i): "+" * (i % 5) + "x" * (4 - i % 5) for i in range(40)}
WORSE = {problem: letters.replace("+", "x", 1) for problem, letters in LETTERS.items()}


def test_figures_do_not_depend_on_the_order_of_rows_and_problems() -> None:
    tables = {"sft": table(WORSE), "math": table(LETTERS)}
    shuffled = {model: rows.take(np.random.default_rng(0).permutation(len(rows))) for model, rows in tables.items()}
    assert score(tables, (1, 4)) == score(shuffled, (1, 4))


def test_better_is_said_after_holm_and_of_what_the_interval_says() -> None:
    result = score({"sft": table(WORSE), "math": table(LETTERS), "merged": table(WORSE)})
    found = {(d["model"], d["against"]): d for d in judge_together(result["differences"]) if d["k"] == 1}
    assert found["math", "sft"]["verdict"] == "better" and found["merged", "math"]["verdict"] == "worse"
    same = found["merged", "sft"]
    assert (same["mean"], same["low"], same["high"], same["p"], same["p_bootstrap"], same["verdict"]) == (0, 0, 0, 1, 1, "no difference shown")
    assert all(d["p_holm"] >= d["p"] for d in found.values()) and found["math", "sft"]["test"] == "sign flip"


def test_greedy_answers_get_mcnemars_exact_test() -> None:
    a = {str(i): "+" if i < 10 else "x" for i in range(30)}
    b = {str(i): "+" if 10 <= i < 12 else "x" for i in range(30)}
    (once,) = score({"sft": table(b), "math": table(a)}, (1,))["differences"]
    assert (once["test"], round(once["p"], 4)) == ("mcnemar", 0.0386)
    again = score({"sft": table({p: 3 * x for p, x in b.items()}), "math": table({p: 3 * x for p, x in a.items()})}, (1,))
    assert again["differences"][0]["p"] == once["p"], "the same answer three times is one answer"


def test_clusters_widen_what_they_hold_together() -> None:
    letters = {f"{cluster}.{i}": "++" if cluster < 6 else "xx" for cluster in range(12) for i in range(4)}
    rows = [row | {"topics": [f"passage {row['problem_id'].split('.')[0]}"]} for row in table(letters).to_pylist()]
    tables = {"sft": pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)}
    alone, together = score(tables), score(tables, cluster_by="passage")
    assert (alone["clusters"], together["clusters"]) == (48, 12)
    first, second = (result["models"]["sft"]["pass_at_k"]["1"] for result in (alone, together))
    assert first["mean"] == second["mean"] and second["se"] == pytest.approx(2 * first["se"], rel=0.05)
    assert second["high"] - second["low"] > 1.8 * (first["high"] - first["low"])
    with pytest.raises(UserError, match="evaluation.clusters: benchmark 'sums' has a problem without a topic 'page ...'"):
        score(tables, cluster_by="page")


def test_calibration_counts_stated_confidences_alone() -> None:
    found = score({"sft": table({"1": "++x?", "2": "+xxx"}, confidence={"+": 0.8, "x": 0.6})})["models"]["sft"]["calibration"]
    assert found["responses"] == 7, "the unparsable one states none"
    assert [(b["confidence"], b["accuracy"], b["responses"], b["problems"]) for b in found["bins"]] == [
        (pytest.approx(0.6), 0.0, 4, 2),
        (pytest.approx(0.8), 1.0, 3, 2),
    ]
    assert found["ece"]["mean"] == pytest.approx((4 * 0.6 + 3 * 0.2) / 7)
    assert found["brier"]["mean"] == pytest.approx((4 * 0.36 + 3 * 0.04) / 7)
    assert found["brier"]["low"] <= found["brier"]["mean"] <= found["brier"]["high"]


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


@pytest.mark.parametrize(("low", "passed"), [(-0.019, True), (-0.02, False), (-0.3, False)])
def test_what_must_be_retained_is_judged_by_the_end_of_the_interval(low: float, passed: bool) -> None:
    found = [difference("math", 0.2, 0.1, 0.3), difference("logic", -0.01, low, 0.1), difference("code", 0.0, -0.9, 0.9)]
    decision = decide(GateSettings(improve=("math",), retain={"logic": 0.02}), found)
    assert decision["passed"] is passed
    assert decision["decided_by"] == (["improve math", "retain logic", "tolerate code"] if passed else ["retain logic"])
    assert decision["worst"] == {"benchmark": "logic", "mean": -0.01, "low": low, "high": 0.1}
    assert f"{'lies' if passed else 'had to lie'} above minus the margin of 0.020" in decision["reasons"][1]


def test_rules_of_the_gate_are_checked_before_anything_runs() -> None:
    with pytest.raises(UserError, match="evaluation: retain: 'math' stands under improve too"):
        check(GateSettings, {"retain": {"math": 0.1}}, "evaluation")
    with pytest.raises(UserError, match="evaluation.gate.retain: there are no results on 'logic'"):
        decide(GateSettings(retain={"logic": 0.1}), [difference("math", 0.2, 0.1, 0.3)])
    params = read_yaml(Path(__file__).parents[2] / "params.yaml")
    params["evaluation"]["gate"]["retain"] = {"poetry": 0.1}
    with pytest.raises(UserError, match="evaluation.gate.retain: 'poetry' is no benchmark; there are code, logic, math"):
        check(Params, params, "params.yaml")
