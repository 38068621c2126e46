"""From stored samples to scores.json: per checkpoint and benchmark, differences between checkpoints, baselines.

Every figure of a benchmark is a mean over the same problems: those that every checkpoint was judged on often enough. One
bootstrap per benchmark serves all of them, so curves, intervals and differences rest on the same resampled problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import seeding
from pipelines.errors import InfrastructureError
from pipelines.evaluation.metrics import maj_at_k, pass_at_k
from pipelines.evaluation.statistics import Floats, bootstrap_means, difference_of, interval_of, wilson
from pipelines.records import Outcome

UNJUDGED = Outcome.INFRASTRUCTURE.value


@dataclass(frozen=True)
class Row:
    """What scoring needs of one sample."""

    outcome: str
    extracted: str | None
    tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Item:
    """What scoring needs of one problem."""

    answer: str
    answer_type: str
    topics: tuple[str, ...]


def rows_by_problem(table: pa.Table) -> tuple[dict[str, list[Row]], dict[str, Item]]:
    """Samples and problem facts of a SAMPLE_SCHEMA table, by problem id."""
    rows: dict[str, list[Row]] = {}
    items: dict[str, Item] = {}
    for r in table.to_pylist():
        rows.setdefault(r["problem_id"], []).append(Row(r["outcome"], r["extracted"], r["response_tokens"], r["finish_reason"]))
        items[r["problem_id"]] = Item(r["answer"], r["answer_type"], tuple(r["topics"]))
    return rows, items


def score_benchmark(
    tables: Mapping[str, pa.Table], ks: Sequence[int], pairs: Sequence[tuple[str, str]], resamples: int, seed: int, name: str
) -> dict[str, Any]:
    """All figures of benchmark `name` from the samples of every model. pairs: models to compare, at the smallest and largest of `ks`.

    Returns {"problems", "left_out", "constant_answer", "models": {model: figures}, "differences": [...]}.

    Raises:
        InfrastructureError: no problem was judged often enough by every model.
    """
    rows: dict[str, dict[str, list[Row]]] = {}
    items: dict[str, Item] = {}
    for model, table in tables.items():
        rows[model], items = rows_by_problem(table)
    used = [p for p in items if all(_judged(rows[model][p]) >= max(ks) for model in rows)]
    if not used:
        raise InfrastructureError(f"benchmark '{name}': no problem has {max(ks)} judged responses from every model")
    columns = {(model, metric): values for model in rows for metric, values in _columns([rows[model][p] for p in used], items[used[0]], ks).items()}
    compared = [(a, b, k) for a, b in pairs for k in dict.fromkeys((min(ks), max(ks)))]
    deltas = [columns[a, f"pass@{k}"] - columns[b, f"pass@{k}"] for a, b, k in compared]
    everything = [*columns.values(), *deltas]
    means = bootstrap_means(np.stack(everything, 1), resamples, seeding.generator(seed, "evaluation", "bootstrap", name))
    intervals = {key: asdict(interval_of(values, means[:, i])) for i, (key, values) in enumerate(columns.items())}
    differences = [
        {"model": a, "against": b, "benchmark": name, "k": k, **asdict(difference_of(deltas[i], means[:, len(columns) + i]))}
        for i, (a, b, k) in enumerate(compared)
    ]
    return {
        "problems": len(used),
        "left_out": len(items) - len(used),
        "constant_answer": _constant_answer([items[p] for p in used]),
        "models": {m: _figures(m, {p: rows[m][p] for p in used}, items, intervals, columns[m, f"pass@{min(ks)}"]) for m in rows},
        "differences": differences,
    }


def experts(models: Sequence[str]) -> list[str]:
    """The models that RL made."""
    return [model for model in models if model not in ("base", "sft", "merged")]


def comparisons(models: Sequence[str]) -> list[tuple[str, str]]:
    """Which checkpoints are compared: each with sft, and merged with every expert."""
    pairs = [(model, "sft") for model in models if model != "sft"] if "sft" in models else []
    return pairs + [("merged", expert) for expert in experts(models) if "merged" in models]


def _judged(rows: Sequence[Row]) -> int:
    return sum(row.outcome != UNJUDGED for row in rows)


def _correct(rows: Sequence[Row]) -> int:
    return sum(row.outcome == Outcome.CORRECT for row in rows)


def _columns(problems: Sequence[Sequence[Row]], first: Item, ks: Sequence[int]) -> dict[str, Floats]:
    """Per-problem values of every metric; the vote needs answers that can be compared, which programs are not."""
    columns = {f"pass@{k}": np.array([pass_at_k(_judged(rows), _correct(rows), k) for rows in problems]) for k in ks}
    if first.answer_type != "program":
        columns[f"maj@{max(ks)}"] = np.array([_vote(rows, max(ks)) for rows in problems])
    return columns


def _vote(rows: Sequence[Row], k: int) -> float:
    """maj@k: correct answers are one class, by the verifier; wrong ones are told apart by their text."""
    judged = [row for row in rows if row.outcome != UNJUDGED]
    return maj_at_k([_answer_class(row) for row in judged], [row.outcome == Outcome.CORRECT for row in judged], k)


def _answer_class(row: Row) -> tuple[bool, str] | None:
    """None casts no vote: there is no answer."""
    if row.outcome == Outcome.CORRECT:
        return True, ""
    return None if row.extracted is None else (False, row.extracted)


def _figures(model: str, rows: Mapping[str, list[Row]], items: Mapping[str, Item], intervals: Mapping[Any, Any], first: Floats) -> dict[str, Any]:
    """One model on one benchmark."""
    flat = [row for group in rows.values() for row in group]
    judged = [row for row in flat if row.outcome != UNJUDGED]
    topics: dict[str, list[float]] = {}
    for problem, value in zip(rows, first.tolist(), strict=True):
        for topic in items[problem].topics:
            topics.setdefault(topic, []).append(value)
    figures: dict[str, dict[str, Any]] = {"pass": {}, "maj": {}}
    for (owner, metric), interval in intervals.items():
        kind, _, k = metric.partition("@")
        if owner == model:
            figures[kind][k] = interval
    return {
        "pass_at_k": figures["pass"],
        "maj_at_k": figures["maj"],
        "samples": len(flat),
        "outcomes": dict(Counter(row.outcome for row in flat)),
        "format_validity": sum(row.outcome != Outcome.UNPARSABLE for row in judged) / len(judged),
        "truncated": sum(row.finish_reason == "length" for row in flat) / len(flat),
        "mean_tokens": sum(row.tokens for row in flat) / len(flat),
        "topics": {topic: {"mean": float(np.mean(values)), "problems": len(values)} for topic, values in sorted(topics.items())},
    }


def _constant_answer(items: Sequence[Item]) -> dict[str, Any]:
    """What always giving the most common gold answer would score: a floor that no training is needed for."""
    answer, count = min(Counter(item.answer for item in items).items(), key=lambda pair: (-pair[1], pair[0]))
    low, high = wilson(count, len(items))
    return {"answer": answer, "share": count / len(items), "low": low, "high": high}
