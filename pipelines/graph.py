"""The graph of stages as data: what each reads and writes. dvc.yaml says the same for DVC; a test holds the two together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines import paths

HEAD = ("sources", "curation", "base", "sft", "difficulty", "synthesis")
TAIL = ("merging", "evaluation", "report")


def stages(rl: dict[str, Any]) -> list[str]:
    """Addresses of all stages in an order in which they can run; `rl` is params' rl.stages (name -> settings).

    RL stages run in the order of their names, except that a stage follows its `init` and its `reference`.
    """
    ordered: list[str] = []

    def visit(name: str) -> None:
        for role in ("init", "reference"):
            model = rl[name][role] if isinstance(rl[name], dict) else getattr(rl[name], role)
            if model in rl and model not in ordered:
                visit(model)
        if name not in ordered:
            ordered.append(name)

    for name in rl:
        visit(name)
    return [*HEAD, *(f"rl@{name}" for name in ordered), *TAIL]


LEARNING = ("base", "sft", "rl")
"""Stages that learn step by step: their journal becomes a plot."""


def with_model(stage: str) -> bool:
    """Whether a stage loads a model, and so torch and transformers."""
    return stage.partition("@")[0] in ("base", "sft", "difficulty", "rl", "merging", "evaluation")


def inputs(stage: str, *models: str) -> list[Path]:
    """Data that a stage reads; `models` are what an RL stage names as its `init` and `reference`.

    Merging names its experts by their manifests: data/models holds its own output too, and DVC would see a cycle.
    """
    if stage.startswith("rl@"):
        return [*map(paths.model, models), paths.SELECTED, paths.SYNTHESISED]
    return {
        "sources": [paths.EXTERNAL / "sources"],
        "curation": [paths.SOURCES],
        "base": [paths.SPLITS["base"], paths.EXTERNAL / "base"],
        "sft": [paths.SPLITS["sft"], paths.BASE],
        "difficulty": [paths.SPLITS["rl"], paths.SFT],
        "synthesis": [paths.GRADED, paths.CURATION, paths.BENCHMARKS],
        "merging": [paths.BASE, paths.SFT, paths.RL_MANIFESTS, paths.UNGRADED, paths.BENCHMARKS],
        "evaluation": [paths.BENCHMARKS, paths.MODELS, paths.ROLLOUTS],
        "report": [
            paths.SOURCES,
            paths.CURATION,
            paths.DIFFICULTY,
            paths.SYNTHESIS,
            paths.EVALUATION,
            paths.MODELS,
            paths.METRICS,
            paths.PLOTS,
            paths.MANIFESTS,
        ],
    }[stage]


def outputs(stage: str) -> list[Path]:
    """Folders that a stage writes."""
    if stage.startswith("rl@"):
        name = stage.removeprefix("rl@")
        return [paths.model(name), paths.ROLLOUTS / name]
    return {
        "sources": [paths.SOURCES],
        "curation": [paths.CURATION],
        "base": [paths.BASE],
        "sft": [paths.SFT],
        "difficulty": [paths.DIFFICULTY],
        "synthesis": [paths.SYNTHESIS],
        "merging": [paths.MERGED],
        "evaluation": [paths.EVALUATION],
        "report": [paths.REPORT],
    }[stage]


def records(stage: str) -> list[Path]:
    """Small files that tell of a stage's run: its metrics and, where it learns, its plot. The report reads them all, so it has none."""
    slug = paths.slug(stage)
    metrics = [] if stage == "report" else [paths.METRICS / f"{slug}.json"]
    plots = [paths.PLOTS / f"{slug}.csv"] if stage.partition("@")[0] in LEARNING else []
    return metrics + plots
