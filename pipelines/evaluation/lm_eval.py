"""Results in the layout of lm-evaluation-harness, for the viewers and scripts that read it.

    <folder>/<model>/results_<date>.json             figures of every benchmark, "<metric>,none" beside "<metric>_stderr,none"
    <folder>/<model>/samples_<benchmark>_<date>.jsonl   a problem a line: doc, target, arguments, resps, filtered_resps, hashes

It holds nothing that the Parquet samples and scores.json do not. Equal evaluations give equal bytes, so the date is a fixed one, and
what the clock and the commit say is left to the stage's manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.config.common import GenerationSettings
from pipelines.evaluation.metrics import pass_at_k
from pipelines.records import Outcome
from pipelines.store import replacing, write_json

DATE = "1970-01-01T00-00-00.000000"
"""Readers sort by it; it has their form."""
FILTER = "none"
UNSAFE = re.compile(r'["<>:/|\\?*\[\]]+')


def write(
    folder: Path, model: str, tables: Mapping[str, pa.Table], scored: Mapping[str, Any], generation: GenerationSettings, samples: int, seed: int
) -> None:
    """Files of one model. tables, scored: benchmark -> its samples, and what `score_benchmark` says of this model there."""
    until = {"until": list(generation.stop), "max_gen_toks": generation.max_new_tokens, "do_sample": generation.temperature > 0}
    arguments = {**until, "temperature": generation.temperature, "top_p": generation.top_p, "top_k": generation.top_k}
    home = folder / UNSAFE.sub("__", model)
    hashes, metrics = {}, {}
    for name, table in tables.items():
        ks = [int(k) for k in scored[name]["pass_at_k"]]
        rows = [_document(i, group, ks, arguments) for i, group in enumerate(_groups(table))]
        with replacing(home / f"samples_{name}_{DATE}.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        hashes[name] = _sha256("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows))
        metrics[name] = {f"{kind}@{k}": value for kind in ("pass", "maj") for k, value in scored[name][f"{kind}_at_k"].items()}
    content = {
        "results": {name: {"alias": name, **_results(values)} for name, values in metrics.items()},
        "group_subtasks": {name: [] for name in tables},
        "configs": {name: _config(name, list(metrics[name]), samples, arguments) for name in tables},
        "versions": dict.fromkeys(tables, 1.0),
        "n-shot": dict.fromkeys(tables, 0),
        "higher_is_better": {name: dict.fromkeys(values, True) for name, values in metrics.items()},
        "n-samples": {
            name: {"original": _problems(table), "effective": next(iter(metrics[name].values()))["count"]} for name, table in tables.items()
        },
        "config": {"model": "touchstone", "model_args": f"pretrained={model}", "gen_kwargs": arguments, "random_seed": seed, "limit": None},
        "git_hash": None,
        "date": 0.0,
        "task_hashes": hashes,
        "model_source": "touchstone",
        "model_name": model,
        "model_name_sanitized": home.name,
    }
    write_json(home / f"results_{DATE}.json", content)


def _results(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {f"{metric},{FILTER}": interval["mean"] for metric, interval in values.items()}
    return found | {f"{metric}_stderr,{FILTER}": "N/A" if interval["se"] is None else interval["se"] for metric, interval in values.items()}


def _config(name: str, metrics: list[str], samples: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    listed = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics]
    given = {"output_type": "generate_until", "repeats": samples, "num_fewshot": 0, "should_decontaminate": False}
    return {"task": name, **given, "generation_kwargs": dict(arguments), "metric_list": listed, "metadata": {"version": 1.0}}


def _groups(table: pa.Table) -> list[list[dict[str, Any]]]:
    """Rows of each problem."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        groups.setdefault(row["problem_id"], []).append(row)
    return list(groups.values())


def _problems(table: pa.Table) -> int:
    return len(set(table["problem_id"].to_pylist()))


def _document(number: int, rows: list[dict[str, Any]], ks: list[int], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """One problem with all its responses. A metric that too few judged responses allow is null."""
    first = rows[0]
    doc = {key: first[key] for key in ("problem_id", "prompt", "answer", "answer_type", "topics")}
    judged = [row["outcome"] for row in rows if row["outcome"] != Outcome.INFRASTRUCTURE]
    n, c = len(judged), judged.count(Outcome.CORRECT)
    return {
        "doc_id": number,
        "doc": doc,
        "target": first["answer"],
        "arguments": {"gen_args_0": {"arg_0": first["prompt"], "arg_1": dict(arguments)}},
        "resps": [[row["response"] for row in rows]],
        "filtered_resps": [[row["extracted"] for row in rows]],
        "filter": FILTER,
        "metrics": [f"pass@{k}" for k in ks],
        "doc_hash": _sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _sha256(first["prompt"]),
        "target_hash": _sha256(first["answer"]),
        "outcomes": [row["outcome"] for row in rows],
        **{f"pass@{k}": pass_at_k(n, c, k) if k <= n else None for k in ks},
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
