"""Stage `evaluation`: every checkpoint on every benchmark, with intervals, differences and the gate's decision."""

from __future__ import annotations

import csv
import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import generation, paths
from pipelines.errors import UserError
from pipelines.evaluation.benchmarks import PART, collect
from pipelines.evaluation.gate import decide
from pipelines.evaluation.scores import comparisons, score_benchmark
from pipelines.lineage.code import code_sha256
from pipelines.lineage.digests import combine, tree_sha256
from pipelines.records import Problem
from pipelines.stages import Context
from pipelines.store import read_problems, replacing_folder, write_json, write_table
from pipelines.verifiers import VerifierPool, require_sandbox_for

CURVES = "pass_at_k.csv"


def run(context: Context) -> dict[str, float]:
    """Write data/evaluation: samples of every model on every benchmark, and scores.json. Returns the headline figures.

    Responses are kept per content of model, benchmark, settings and code, so what has not changed is not sampled again.
    """
    settings = context.settings
    benchmarks = _benchmarks(context)
    pairs = _pairs(context)
    samples = _all_samples(context, benchmarks)
    ks = sorted({1, *settings.ks})
    scored = {
        name: score_benchmark({model: samples[model, name] for model in settings.models}, ks, pairs, settings.bootstrap, context.seed, name)
        for name in benchmarks
    }
    differences = [difference for result in scored.values() for difference in result.pop("differences")]
    scores = {
        "benchmarks": {name: {key: value for key, value in result.items() if key != "models"} for name, result in scored.items()},
        "models": {model: {name: result["models"][model] for name, result in scored.items()} for model in settings.models},
        "differences": differences,
        "gate": decide(settings.gate, differences),
        "settings": {"seed": context.seed, **settings.model_dump(mode="json")},
    }
    with replacing_folder(context.root / paths.EVALUATION) as folder:
        for (model, name), table in samples.items():
            write_table(folder / paths.SAMPLES.name / model / f"{name}.parquet", table)
        write_json(folder / paths.SCORES.name, scores)
        _write_curves(folder / CURVES, scores)
    return headline(scores)


def headline(scores: Mapping[str, Any]) -> dict[str, float]:
    """Flat figures for `dvc metrics show` and MLflow, whose names may hold no '@'."""
    flat: dict[str, float] = {"gate_passed": float(scores["gate"]["passed"])}
    for model, results in scores["models"].items():
        for name, figures in results.items():
            flat |= {f"{model}_{name}_pass_at_{k}": interval["mean"] for k, interval in figures["pass_at_k"].items()}
            flat[f"{model}_{name}_mean_tokens"] = figures["mean_tokens"]
    return flat


def _pairs(context: Context) -> list[tuple[str, str]]:
    """Models to compare; the gate's two are always among them."""
    models, gate = context.settings.models, context.settings.gate
    for key, name in (("candidate", gate.candidate), ("against", gate.against)):
        if name not in models:
            raise UserError(f"evaluation.gate.{key}: '{name}' is not evaluated; evaluation.models has {', '.join(models)}")
    return list(dict.fromkeys([*comparisons(models), (gate.candidate, gate.against)]))


def _benchmarks(context: Context) -> dict[str, list[Problem]]:
    """Benchmark name -> its problems, the first `limit` of them."""
    found = {file.stem: read_problems(file)[: context.settings.limit] for file in sorted((context.root / paths.BENCHMARKS).glob("*.parquet"))}
    for name, problems in found.items():
        if not problems:
            raise UserError(f"{paths.BENCHMARKS / name}.parquet: the benchmark is empty")
    if not found:
        raise UserError(f"{paths.BENCHMARKS}: there is no benchmark; name one in sources.benchmarks")
    return found


def _all_samples(context: Context, benchmarks: Mapping[str, list[Problem]]) -> dict[tuple[str, str], pa.Table]:
    """Judged responses of every (model, benchmark), from earlier work where nothing they depend on has changed."""
    require_sandbox_for(problem for problems in benchmarks.values() for problem in problems)
    settings, cache = context.settings, context.work / "samples"
    code = code_sha256("pipelines.evaluation.benchmarks")
    sampling = settings.model_dump_json(include={"samples", "generation"}, exclude={"generation": {"batch_size"}})
    tables: dict[tuple[str, str], pa.Table] = {}
    used: set[Path] = set()
    with VerifierPool() as pool:
        for model in settings.models:
            folder = context.root / paths.model(model)
            weights = tree_sha256(folder)
            generator = functools.cache(functools.partial(generation.create, settings.generation, folder, context.device))
            for name, problems in benchmarks.items():
                ids = combine({f"{i:08d}": repr(problem) for i, problem in enumerate(problems)})
                run_key = f"{context.seed} {context.device} {PART}"
                parts = cache / combine({"code": code, "sampling": sampling, "model": weights, "problems": ids, "run": run_key})
                used.add(parts)
                show = functools.partial(_show, context, model, name)
                tables[model, name] = collect(generator, problems, settings.samples, context.seed, pool, parts, show)
    for folder in cache.iterdir() if cache.is_dir() else ():
        if folder not in used:
            shutil.rmtree(folder)
    return tables


def _show(context: Context, model: str, benchmark: str, done: int, total: int) -> None:
    context.journal.show(done, total, f"responses of {model} on {benchmark}")


def _write_curves(path: Path, scores: Mapping[str, Any]) -> None:
    """pass@k with its interval, one row per benchmark, model and k, for `dvc plots`."""
    rows = [
        {"benchmark": name, "model": model, "k": int(k), **{key: interval[key] for key in ("mean", "low", "high")}}
        for model, results in scores["models"].items()
        for name, figures in results.items()
        for k, interval in figures["pass_at_k"].items()
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
