"""scores.json as tables for `dvc plots`; the Vega-Lite templates in .dvc/plots draw them. Columns with a point's interval are low and high."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Record = dict[str, Any]
ENTROPIES = {"answer_entropy": "answers", "token_entropy": "tokens"}


def tables(scores: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], list[Record]]]:
    """Name of the table -> (columns, rows)."""
    interval = ("mean", "low", "high")
    return {
        "pass_at_k": (("benchmark", "model", "k", *interval), list(_curves(scores))),
        "differences": (("benchmark", "comparison", "k", *interval, "p_holm", "verdict"), list(_differences(scores))),
        "reliability": (("benchmark", "model", "confidence", "accuracy", "low", "high", "responses"), list(_reliability(scores))),
        "entropy": (("benchmark", "model", "level", *interval), list(_entropy(scores))),
    }


def _figures(scores: Mapping[str, Any]) -> Iterator[tuple[Record, Mapping[str, Any]]]:
    """The figures of every benchmark and model, with the columns that name them."""
    for model, results in scores["models"].items():
        for name, figures in results.items():
            yield {"benchmark": name, "model": model}, figures


def _curves(scores: Mapping[str, Any]) -> Iterator[Record]:
    for named, figures in _figures(scores):
        for k, interval in figures["pass_at_k"].items():
            yield named | {"k": int(k), **_interval(interval)}


def _differences(scores: Mapping[str, Any]) -> Iterator[Record]:
    for d in scores["differences"]:
        named = {"benchmark": d["benchmark"], "comparison": f"{d['model']} - {d['against']}", "k": d["k"]}
        yield named | _interval(d) | {"p_holm": d["p_holm"], "verdict": d["verdict"]}


def _reliability(scores: Mapping[str, Any]) -> Iterator[Record]:
    for named, figures in _figures(scores):
        for one in (figures["calibration"] or {"bins": ()})["bins"]:
            yield named | {key: one[key] for key in ("confidence", "accuracy", "low", "high", "responses")}


def _entropy(scores: Mapping[str, Any]) -> Iterator[Record]:
    for named, figures in _figures(scores):
        for metric, level in ENTROPIES.items():
            if metric in figures:
                yield named | {"level": level, **_interval(figures[metric])}


def _interval(interval: Mapping[str, Any]) -> Record:
    return {key: interval[key] for key in ("mean", "low", "high")}
