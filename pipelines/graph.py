"""The graph of stages as data: what each reads and makes, by what params.yaml says. DVC is told the same (`tasks.dvc_graph`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import paths
from pipelines.config import MODELS, ROWS, STANDING, Params, order, resolve
from pipelines.config.common import Section

LEARNING = ("base", "sft", "pretrain", "rl", "preference", "distil", "reward_model", "command")
"""Kinds that learn step by step: their journal becomes a plot."""
LOADING = (
    "base", "sft", "pretrain", "grade", "sample", "rl", "preference", "distil", "reward_model", "merge", "extrapolate", "command", "evaluation",
)  # fmt: skip
"""Kinds that load a model, and so torch and transformers."""
SEEDLESS = ("curation", "report")
"""Kinds that draw nothing at random."""
SELECTING = (
    "sft", "pretrain", "grade", "sample", "select", "critique", "target", "synthesise", "rl", "preference", "distil", "reward_model", "command",
)  # fmt: skip
"""Kinds that write down which rows they have read."""
CURATING = ("sources", "curation", "grade", "sample", "select", "critique", "target", "synthesise")
"""Kinds that keep and drop rows, with a ledger."""


@dataclass(frozen=True)
class Stage:
    """One stage. settings: resolved. reads: files and folders that it reads, makes: those that it makes; relative to the project root."""

    name: str
    kind: str
    settings: Section
    reads: tuple[Path, ...]
    makes: tuple[Path, ...]

    @property
    def records(self) -> tuple[Path, ...]:
        """Small files that tell of its run."""
        return records(self.name, self.kind)

    @property
    def loads_model(self) -> bool:
        return self.kind in LOADING

    @property
    def model(self) -> str | None:
        """Name of the model that it makes, if it makes one."""
        return self.name if paths.model(self.name) in self.makes else None

    def given(self, seed: int) -> dict[str, Any]:
        """What it gets to know, as plain data: {seed, kind, settings, reads, makes, records}."""
        paths_of = {part: [path.as_posix() for path in getattr(self, part)] for part in ("reads", "makes", "records")}
        return {"seed": seed, "kind": self.kind, "settings": self.settings.model_dump(mode="json"), **paths_of}

    def feeds(self, other: Stage) -> bool:
        """Does `other` read what this one writes?"""
        written = [*self.makes, *self.records, paths.manifest(self.name)]
        return self.name != other.name and any(out == read or out in read.parents or read in out.parents for read in other.reads for out in written)


Graph = Mapping[str, Stage]
"""Name -> stage, in an order in which they can run."""


def graph(params: Params) -> Graph:
    """All stages of params."""
    names = [*STANDING[:3], *order(params.stages), *STANDING[3:]]
    return {name: stage(name, params.stages[name].kind if name in params.stages else name, resolve(params, name)) for name in names}


def stage(name: str, kind: str, settings: Any) -> Stage:
    """One stage, by its resolved settings alone."""
    made = makes(name, kind, getattr(settings, "leaves_rollouts", False), bool(getattr(settings, "keep", None)))
    return Stage(name, kind, settings, tuple(_reads(kind, settings)), tuple(made))


def upstream(stages: Graph, names: set[str]) -> list[str]:
    """`names` and every stage they need, in the order of running."""
    needed = set(names)
    for name in reversed(list(stages)):
        if name in needed:
            needed |= {other for other, each in stages.items() if each.feeds(stages[name])}
    return [name for name in stages if name in needed]


def _reads(kind: str, settings: Any) -> list[Path]:
    if kind in ROWS or kind in MODELS:
        read = [*map(paths.model, (*settings.models_read, *settings.reward_models_read)), *map(paths.rows, settings.rows_read)]
        if kind == "extrapolate":
            read = [paths.KEPT / settings.init, paths.model(settings.start)]
            read += [paths.model(settings.init), *map(paths.rows, settings.rows_read)] if settings.search else []
        if kind == "rl" and settings.later:
            read.append(paths.KEPT / settings.later)
        if kind == "synthesise":
            read += [paths.CURATION, paths.BENCHMARKS]
        if kind in ("merge", "extrapolate") and settings.search:
            read.append(paths.BENCHMARKS)
        if kind == "command":
            read += [*map(Path, settings.code), *([paths.environment(settings.environment)] if settings.environment else [])]
        return list(dict.fromkeys(read))
    return {
        "sources": lambda: [paths.EXTERNAL / "sources"],
        "curation": lambda: [paths.SOURCES],
        "base": lambda: [paths.SPLITS["base"], paths.EXTERNAL / "base"],
        "evaluation": lambda: [
            paths.BENCHMARKS, *map(paths.model, settings.models), *(paths.ROLLOUTS / name for name in settings.rollouts),
            *([paths.model(settings.judge.stage)] if settings.judge else []),
        ],
        "report": lambda: [paths.SOURCES, paths.CURATION, paths.EVALUATION, paths.MODELS, paths.METRICS, paths.PLOTS, paths.MANIFESTS],
    }[kind]()


def makes(name: str, kind: str, rollouts: bool, keeps: bool) -> list[Path]:
    """Files and folders that a stage of a kind makes, with rollouts or without, with weights kept along its training or without."""
    if kind in (*MODELS, *ROWS):
        main = paths.model(name) if kind in MODELS else paths.ROWS / name
        beside = [*([paths.ROLLOUTS / name] if rollouts else []), *([paths.KEPT / name] if keeps else [])]
        return [main, *beside, *([paths.seen(name)] if kind in SELECTING else [])]
    return {
        "sources": [paths.SOURCES], "curation": [paths.CURATION], "base": [paths.BASE], "evaluation": [paths.EVALUATION], "report": [paths.REPORT],
    }[kind]  # fmt: skip


def made(given: Mapping[str, Any]) -> list[Path]:
    """What the stage made whose manifest has these parameters: {stage, kind, settings}."""
    kind, settings = given["kind"], given["settings"]
    sampled = kind in ("rl", "sample") or (kind == "command" and settings["rollouts"]) or (kind == "distil" and settings["stored"] is None)
    return makes(given["stage"], kind, bool(sampled), bool(settings.get("keep")))


def records(name: str, kind: str) -> tuple[Path, ...]:
    """Small files that tell of a stage's run: its metrics and, where it learns, its plot. The report reads them all, so it has none."""
    metrics = () if kind == "report" else (paths.METRICS / f"{name}.json",)
    return (*metrics, paths.PLOTS / f"{name}.csv") if kind in LEARNING else metrics
