"""From stored samples to scores.json: per checkpoint and benchmark, differences between checkpoints, baselines.

Every figure of a benchmark is a mean over the same problems, in the order of their ids: those that every checkpoint was judged on often
enough. One bootstrap per benchmark serves all of them, so curves, intervals and differences rest on the same resampled problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import seeding
from pipelines.errors import InfrastructureError, UserError
from pipelines.evaluation.calibration import BINS, bin_sums, brier, expected_calibration_error
from pipelines.evaluation.metrics import answer_entropy, g_pass_at_k, maj_at_k, mg_pass_at_k, pass_at_k, pass_hat_k, worst_at_k
from pipelines.evaluation.statistics import (
    Clusters,
    Floats,
    bootstrap_means,
    difference_of,
    holm,
    interval_of,
    mcnemar,
    percentiles,
    recovered,
    share_interval,
    sign_flip,
    verdict,
    wilson,
)
from pipelines.records import Outcome

UNJUDGED = Outcome.INFRASTRUCTURE.value
PROGRAM = "program"
NO_SHARES = ("tokens", "token_entropy", "answer_entropy")
"""Metrics that do not lie in [0, 1]: tokens, and nats."""
STATED = 3 * BINS + 1
"""Columns of `_stated`."""


@dataclass(frozen=True)
class Row:
    """What scoring needs of one sample."""

    outcome: str
    score: float
    vote: int | None
    confidence: float | None
    logp: float | None
    tokens: int
    finish_reason: str
    response: str


@dataclass(frozen=True)
class Item:
    """What scoring needs of one problem."""

    answer: str
    answer_type: str
    topics: tuple[str, ...]


Rows = Mapping[str, Sequence[Row]]
"""Problem id -> its samples."""


def rows_by_problem(table: pa.Table) -> tuple[dict[str, list[Row]], dict[str, Item]]:
    """Samples and problem facts of a SAMPLE_SCHEMA table, by problem id."""
    rows: dict[str, list[Row]] = {}
    items: dict[str, Item] = {}
    for r in table.sort_by([("problem_id", "ascending"), ("sample", "ascending")]).to_pylist():
        kept = {name: r[name] for name in ("outcome", "score", "vote", "confidence", "logp", "finish_reason", "response")}
        rows.setdefault(r["problem_id"], []).append(Row(**kept, tokens=r["response_tokens"]))
        items[r["problem_id"]] = Item(r["answer"], r["answer_type"], tuple(r["topics"]))
    return rows, items


def score_benchmark(
    tables: Mapping[str, pa.Table],
    ks: Sequence[int],
    pairs: Sequence[tuple[str, str]],
    resamples: int,
    seed: int,
    name: str,
    *,
    taus: Sequence[float] = (),
    cluster_by: str | None = None,
    gaps: Sequence[tuple[str, str, str]] = (),
) -> dict[str, Any]:
    """All figures of benchmark `name` from the samples of every model.

    pairs: models to compare, at the smallest and largest of `ks`. taus: thresholds of G-pass@k at the largest k. cluster_by: label of
    the topics (`passage` for `passage 12`) whose value says which problems belong together. gaps: (model, weak, ceiling), of which is asked how much
    of the gap between the last two the first recovers.

    Returns {"problems", "left_out", "clusters", "constant_answer", "models": {model: figures}, "differences": [...], "recovered": [...]}. The
    differences lack what depends on all comparisons: `judge_together` adds it.

    Raises:
        InfrastructureError: no problem was judged often enough by every model.
        UserError: a problem has no topic with the label `cluster_by`.
    """
    rows: dict[str, Rows] = {}
    items: dict[str, Item] = {}
    for model, table in tables.items():
        rows[model], known = rows_by_problem(table)
        items |= known
    most = max(ks)
    used = sorted(p for p in items if all(_judged(rows[model].get(p, ())) >= most for model in rows))
    if not used:
        raise InfrastructureError(f"benchmark '{name}': no problem has {most} judged responses from every model")
    clusters = _clusters([items[p] for p in used], cluster_by, name)
    votes = all(items[p].answer_type != PROGRAM for p in used)
    groups = {model: [[row for row in found[p] if row.outcome != UNJUDGED] for p in used] for model, found in rows.items()}
    columns = {(model, metric): values for model in rows for metric, values in _columns(groups[model], ks, taus, votes).items()}
    stated = {model: _stated(groups[model]) for model in rows if any(row.confidence is not None for group in groups[model] for row in group)}
    compared = [(a, b, k) for a, b in pairs for k in dict.fromkeys((min(ks), most))]
    deltas_PM = np.array([columns[a, f"pass@{k}"] - columns[b, f"pass@{k}"] for a, b, k in compared]).reshape(-1, len(used)).T
    everything = np.column_stack([*columns.values(), deltas_PM, *stated.values()])
    means = bootstrap_means(everything, resamples, seeding.generator(seed, "evaluation", "bootstrap", name), clusters)
    column_means, delta_means, *stated_means = np.split(means, np.cumsum([len(columns), len(compared), *[STATED] * (len(stated) - 1)]), axis=1)
    intervals: dict[str, dict[str, Any]] = {model: {} for model in rows}
    for i, ((model, metric), values) in enumerate(columns.items()):
        intervals[model][metric] = asdict(interval_of(values, column_means[:, i], clusters, share=metric not in NO_SHARES))
    calibrated = {m: _calibration(block, resampled, clusters) for (m, block), resampled in zip(stated.items(), stated_means, strict=False)}
    flips = sign_flip(deltas_PM, resamples, seeding.generator(seed, "evaluation", "sign flip", name), clusters)
    single = {model for model in rows if clusters is None and all(len({row.response for row in group}) == 1 for group in groups[model])}
    topics = [items[p].topics for p in used]
    independent = len(used) if clusters is None else int(clusters.max()) + 1
    return {
        "problems": len(used),
        "left_out": len(items) - len(used),
        "clusters": independent,
        "constant_answer": _constant_answer([items[p] for p in used]),
        "models": {
            m: _figures([row for p in used for row in rows[m][p]], intervals[m], calibrated.get(m))
            | {"topics": _topics(topics, columns[m, f"pass@{min(ks)}"], clusters)}
            for m in rows
        },
        "differences": [
            {"model": a, "against": b, "benchmark": name, "k": k, **_difference(delta_P, delta_means[:, i], clusters, flips[i], {a, b} <= single)}
            for i, ((a, b, k), delta_P) in enumerate(zip(compared, deltas_PM.T, strict=True))
        ],
        "recovered": [_recovered(gap, min(ks), columns, column_means, independent) for gap in gaps],
    }


def _recovered(
    gap: tuple[str, str, str], k: int, columns: Mapping[tuple[str, str], Floats], column_means: Floats, independent: int
) -> dict[str, Any]:
    """How much of the gap in pass@k a model recovers. gap: (model, weak, ceiling). column_means (R, columns): of resampled problems."""
    names = [(model, f"pass@{k}") for model in gap]
    places = [list(columns).index(name) for name in names]
    share = recovered(np.array([columns[name].mean() for name in names]), column_means[:, places], independent)
    return dict(zip(("model", "weak", "ceiling"), gap, strict=True)) | {"k": k} | asdict(share)


def _difference(delta_P: Floats, means_R: Floats, clusters_P: Clusters, flipped: float, single: bool) -> dict[str, Any]:
    """One paired comparison. flipped: its p-value by sign flips. single: both models gave every problem one answer only."""
    found = asdict(difference_of(delta_P, means_R, clusters_P))
    exact = {"test": "mcnemar", "p": mcnemar(int((delta_P > 0).sum()), int((delta_P < 0).sum()))}
    return {**found, "p_bootstrap": found["p"], **(exact if single else {"test": "sign flip", "p": flipped})}


def judge_together(differences: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The comparisons of one evaluation as one family: each with its Holm-adjusted p-value and its verdict."""
    adjusted = holm([d["p"] for d in differences])
    return [{**d, "p_holm": p, "verdict": verdict(d["low"], d["high"], p)} for d, p in zip(differences, adjusted, strict=True)]


def others(models: Sequence[str], against: str, candidate: str) -> list[str]:
    """The models between what the gate compares with and what it judges, such as the experts of a merge."""
    return [model for model in models if model not in ("base", against, candidate)]


def comparisons(models: Sequence[str], against: str, candidate: str) -> list[tuple[str, str]]:
    """Which models are compared: each with what the gate compares with, and its candidate with all others."""
    pairs = [(model, against) for model in models if model != against] if against in models else []
    return pairs + [(candidate, other) for other in others(models, against, candidate) if candidate in models]


def _judged(rows: Sequence[Row]) -> int:
    return sum(row.outcome != UNJUDGED for row in rows)


def _clusters(items: Sequence[Item], label: str | None, name: str) -> Clusters:
    """Number of the cluster of each problem, by the value of its topic with this label."""
    if label is None:
        return None
    keys = [next((topic for topic in item.topics if topic.startswith(f"{label} ")), "") for item in items]
    if not all(keys):
        raise UserError(f"evaluation.clusters: benchmark '{name}' has a problem without a topic '{label} ...'")
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _columns(problems: Sequence[Sequence[Row]], ks: Sequence[int], taus: Sequence[float], votes: bool) -> dict[str, Floats]:
    """Per-problem values of every metric from judged samples; the vote needs answers that can be compared, which programs are not."""
    most = max(ks)
    counts = [(len(rows), sum(row.outcome == Outcome.CORRECT for row in rows)) for rows in problems]

    def each(metric: Callable[[Sequence[Row]], float]) -> Floats:
        return np.array([metric(rows) for rows in problems], dtype=np.float64)

    columns = {f"pass@{k}": np.array([pass_at_k(n, c, k) for n, c in counts]) for k in ks}
    columns |= {f"pass_hat@{k}": np.array([pass_hat_k(n, c, k) for n, c in counts]) for k in ks}
    columns |= {f"g_pass@{tau:g}": np.array([g_pass_at_k(n, c, most, tau) for n, c in counts]) for tau in taus}
    if most % 2 == 0:  # for an odd k its largest value is below 1
        columns[f"mg_pass@{most}"] = np.array([mg_pass_at_k(n, c, most) for n, c in counts])
    columns[f"worst@{most}"] = each(lambda rows: worst_at_k([row.score for row in rows], most))
    columns["format_validity"] = each(lambda rows: _mean(row.outcome != Outcome.UNPARSABLE for row in rows))
    columns["truncated"] = each(lambda rows: _mean(row.finish_reason == "length" for row in rows))
    columns["tokens"] = each(lambda rows: _mean(row.tokens for row in rows))
    if votes:
        columns[f"maj@{most}"] = each(lambda rows: maj_at_k([row.vote for row in rows], [row.outcome == Outcome.CORRECT for row in rows], most))
        columns["answer_entropy"] = each(lambda rows: answer_entropy([row.vote for row in rows]))
    if all(row.logp is not None for rows in problems for row in rows):
        columns["token_entropy"] = each(lambda rows: _mean(-(row.logp or 0.0) / max(row.tokens, 1) for row in rows))
    return columns


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _stated(problems: Sequence[Sequence[Row]]) -> Floats:
    """(P, STATED) per problem: the three sums of each bin of confidence, and the sum of squared errors."""
    found = []
    for rows in problems:
        stated = [row for row in rows if row.confidence is not None]
        confidence = np.array([row.confidence for row in stated], dtype=np.float64)
        correct = np.array([row.outcome == Outcome.CORRECT for row in stated], dtype=np.float64)
        found.append([*bin_sums(confidence, correct).ravel(), brier(confidence, correct).sum()])
    return np.array(found)


def _calibration(block_P: Floats, means_R: Floats, clusters_P: Clusters) -> dict[str, Any]:
    """Calibration of the responses that state a confidence, with bootstrap intervals over problems.

    A bin's interval is Wilson's with the problems in it for count, for responses to one problem are not independent.
    """
    sums = block_P[:, :-1].reshape(-1, BINS, 3)
    whole, resampled = sums.sum(0), means_R[:, :-1].reshape(-1, BINS, 3)
    drawn = resampled[..., 0].sum(-1) > 0
    count = len(block_P) if clusters_P is None else int(clusters_P.max()) + 1
    squares = means_R[drawn, -1] / resampled[drawn, :, 0].sum(-1)
    bins = []
    for i, (responses, confidence, correct) in enumerate(whole.tolist()):
        if responses:
            problems = int((sums[:, i, 0] > 0).sum())
            low, high = wilson(correct / responses * problems, problems)
            edges = {"from": i / BINS, "to": (i + 1) / BINS, "responses": int(responses), "problems": problems}
            bins.append({**edges, "confidence": confidence / responses, "accuracy": correct / responses, "low": low, "high": high})
    return {
        "responses": int(whole[:, 0].sum()),
        "ece": _figure(float(expected_calibration_error(whole)), expected_calibration_error(resampled[drawn]), count),
        "brier": _figure(float(block_P[:, -1].sum() / whole[:, 0].sum()), squares, count),
        "bins": bins,
    }


def _figure(mean: float, resampled: Floats, clusters: int) -> dict[str, float]:
    low, high = percentiles(resampled, clusters)
    return {"mean": mean, "low": low, "high": high}


def _figures(rows: Sequence[Row], intervals: Mapping[str, Any], calibration: dict[str, Any] | None) -> dict[str, Any]:
    """One model on one benchmark: intervals by metric and k, and what its responses are."""
    figures: dict[str, Any] = {name: {} for name in ("pass_at_k", "pass_hat_k", "maj_at_k", "worst_at_k", "g_pass_at_k", "mg_pass_at_k")}
    for metric, interval in intervals.items():
        kind, at, k = metric.partition("@")
        if at:
            figures[f"{kind}_k" if kind == "pass_hat" else f"{kind}_at_k"][k] = interval
        else:
            figures[metric] = interval
    return figures | {"samples": len(rows), "outcomes": dict(Counter(row.outcome for row in rows)), "calibration": calibration}


def _topics(topics: Sequence[Sequence[str]], first_P: Floats, clusters_P: Clusters) -> dict[str, Any]:
    """pass@1 by topic."""
    places: dict[str, list[int]] = {}
    for place, names in enumerate(topics):
        for name in names:
            places.setdefault(name, []).append(place)
    inside = {name: None if clusters_P is None else np.unique(clusters_P[found], return_inverse=True)[1] for name, found in places.items()}
    return {name: asdict(share_interval(first_P[found], inside[name])) for name, found in sorted(places.items())}


def _constant_answer(items: Sequence[Item]) -> dict[str, Any]:
    """What always giving the most common gold answer would score: a floor that no training is needed for."""
    answer, count = min(Counter(item.answer for item in items).items(), key=lambda pair: (-pair[1], pair[0]))
    low, high = wilson(count, len(items))
    return {"answer": answer, "share": count / len(items), "low": low, "high": high}
