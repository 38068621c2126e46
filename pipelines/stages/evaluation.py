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
from pipelines.evaluation import diagnostics, lm_eval, plots
from pipelines.evaluation.benchmarks import collect, parts_of
from pipelines.evaluation.gate import decide
from pipelines.evaluation.scores import comparisons, judge_together, score_benchmark
from pipelines.lineage.digests import tree_sha256
from pipelines.records import Problem
from pipelines.stages import Context
from pipelines.stages.judging import judge_of
from pipelines.store import read_problems, replacing_folder, write_json, write_table
from pipelines.verifiers import VerifierPool, require_sandbox_for

LM_EVAL = "lm_eval"
"""Folder in that of the evaluation, with the results in that layout."""


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
        name: score_benchmark(
            {model: samples[model, name] for model in settings.models},
            ks,
            pairs,
            settings.bootstrap,
            context.seed,
            name,
            taus=settings.taus,
            cluster_by=settings.clusters.get(name),
            gaps=settings.gaps,
        )
        for name in benchmarks
    }
    differences = judge_together([difference for result in scored.values() for difference in result.pop("differences")])
    scores = {
        "benchmarks": {name: {key: value for key, value in result.items() if key != "models"} for name, result in scored.items()},
        "models": {model: {name: result["models"][model] for name, result in scored.items()} for model in settings.models},
        "differences": differences,
        "gate": decide(settings.gate, differences),
        "settings": {"seed": context.seed, **settings.model_dump(mode="json")},
    }
    found = _diagnose(context, benchmarks, samples)
    with replacing_folder(context.root / paths.EVALUATION) as folder:
        for model, figures in scores["models"].items():
            tables = {name: samples[model, name] for name in benchmarks}
            for name, table in tables.items():
                write_table(folder / paths.SAMPLES.name / model / f"{name}.parquet", table)
            lm_eval.write(folder / LM_EVAL, model, tables, figures, settings.generation, settings.samples, context.seed)
        write_json(folder / paths.SCORES.name, scores)
        write_json(folder / paths.DIAGNOSTICS.name, found)
        for name, (columns, rows) in {**plots.tables(scores), **diagnostics.tables(found)}.items():
            with (folder / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)
    return headline(scores)


def headline(scores: Mapping[str, Any]) -> dict[str, float]:
    """Flat figures for `dvc metrics show` and MLflow, whose names may hold no '@'."""
    flat: dict[str, float] = {"gate_passed": float(scores["gate"]["passed"])}
    for model, results in scores["models"].items():
        for name, figures in results.items():
            flat |= {f"{model}_{name}_pass_at_{k}": interval["mean"] for k, interval in figures["pass_at_k"].items()}
            flat[f"{model}_{name}_mean_tokens"] = figures["tokens"]["mean"]
    for name, result in scores["benchmarks"].items():
        for gap in result["recovered"]:
            if gap["mean"] is not None:
                flat[f"{gap['model']}_{name}_gap_recovered"] = gap["mean"]
    return flat


def _pairs(context: Context) -> list[tuple[str, str]]:
    """Models to compare; the gate's two and those that params name are always among them."""
    models, gate = context.settings.models, context.settings.gate
    for key, name in (("candidate", gate.candidate), ("against", gate.against)):
        if name not in models:
            raise UserError(f"evaluation.gate.{key}: '{name}' is not evaluated; evaluation.models has {', '.join(models)}")
    return list(dict.fromkeys([*comparisons(models, gate.against, gate.candidate), (gate.candidate, gate.against), *context.settings.compare]))


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
    tables: dict[tuple[str, str], pa.Table] = {}
    used: set[Path] = set()
    judge = settings.judge
    judged = judge.model_dump_json() + tree_sha256(context.root / paths.model(judge.stage)) if judge else ""
    with VerifierPool(judge=judge_of(context, judge, context.device)) as pool:
        for model in settings.models:
            folder = context.root / paths.model(model)
            weights = tree_sha256(folder)
            generator = functools.cache(functools.partial(generation.create, settings.generation, folder, context.device))
            for name, problems in benchmarks.items():
                parts = parts_of(cache, weights, problems, settings.samples, settings.generation, context.seed, context.device, judged)
                used.add(parts)
                show = functools.partial(_show, context, model, name)
                tables[model, name] = collect(generator, problems, settings.samples, context.seed, pool, parts, show)
    for folder in cache.iterdir() if cache.is_dir() else ():
        if folder not in used:
            shutil.rmtree(folder)
    return tables


def _diagnose(context: Context, benchmarks: Mapping[str, list[Problem]], samples: Mapping[tuple[str, str], pa.Table]) -> dict[str, Any]:
    """Boundary, entropy, scaling and weights, from what is on the disk."""
    models = {model: context.root / paths.model(model) for model in context.settings.models}
    rollouts = {name: context.root / paths.ROLLOUTS / name for name in context.settings.rollouts}
    cache = context.work / "entropy"
    journal = context.journal
    return diagnostics.diagnose(
        models, benchmarks, samples, rollouts, context.settings, context.seed, context.device, cache, journal.say, journal.show
    )  # fmt: skip


def _show(context: Context, model: str, benchmark: str, done: int, total: int) -> None:
    context.journal.show(done, total, f"responses of {model} on {benchmark}")
