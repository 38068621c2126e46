"""The early end of a sweep's points: which points may be compared as they run, and a look at one that runs.

What is compared is the pass rate by step of one RL stage, the journal's `pass_rate`: the share of answers that the problems' verifiers find right.
Another reward leaves its meaning, other problems, another prompt or another way of answering do not.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import graph, paths
from pipelines.config import MODELS, Params, check, read_yaml
from pipelines.config.rl import RlStage
from pipelines.errors import UserError
from pipelines.evaluation.outlook import Outlook, end, outlook
from pipelines.evaluation.statistics import Floats
from pipelines.interrupted import differences
from pipelines.progress import Journal

ANSWERING = ("tasks", "play", "guidance", "explore", "environment")
"""Slots of a recipe that decide which problems are answered, and how."""
FIGURE = "pass_rate"


@dataclass
class Watch:
    """A stage, as the points of a sweep reach it. steps: of each point, in their order. best: the highest end of those that are over."""

    stage: str
    steps: Sequence[int]
    best: float | None = None
    _seen: int = field(default=0, init=False)

    def over(self, curve: str) -> None:
        """A point has run; curve: its data/plots/STAGE.csv."""
        reached = end(np.array([float(row[FIGURE]) for row in csv.DictReader(curve.splitlines())]))
        self.best = max(reached, self.best or 0.0)

    def look(self, state: Path, point: int) -> Outlook | None:
        """What is predicted of a point that runs, if its journal has new rows; state: its `.touchstone`."""
        rates = _rates(state / "work" / self.stage)
        if len(rates) == self._seen:
            return None
        self._seen = len(rates)
        return outlook(rates, self.steps[point], self.best)


def _rates(work: Path) -> Floats:
    journal = work / "journal.jsonl"
    return np.array([row[FIGURE] for row in Journal(journal, work.name).rows()] if journal.exists() else [])


def watch(project: Path, stage: str, points: Sequence[Mapping[str, Any]]) -> Watch:
    """Have `stage` decide.

    Raises:
        UserError: it is no stage of kind rl, or pass rates of two points do not mean the same.
    """
    params = [_edited(project, point) for point in points]
    for point, edited in zip(points, params, strict=True):
        if not isinstance(edited.stages.get(stage), RlStage):
            found = ", ".join(name for name, each in edited.stages.items() if each.kind == "rl") or "none"
            raise UserError(f"--stop-early {stage}: with {_said(point)} it is no stage of kind rl, which journals pass rates; there are {found}")
    first = dict(_meaning(params[0], stage))
    for point, edited in zip(points, params, strict=True):
        if changed := differences(first, dict(_meaning(edited, stage))):
            what = f"the pass rates of {stage} with {_said(points[0])} and with {_said(point)} do not mean the same"
            raise UserError(f"--stop-early {stage}: {what} ({'; '.join(changed)}); run this sweep without it")
    return Watch(stage, [edited.stages[stage].steps for edited in params])


def _said(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in point.items())


def _edited(project: Path, point: Mapping[str, Any]) -> Params:
    """Params with the values of a point."""
    content = read_yaml(project / paths.PARAMS)
    for key, value in point.items():
        *above, last = key.split(".")
        section: Any = content
        for name in above:
            section = section.setdefault(name, {}) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            raise UserError(f"--stop-early: '{key}' names no key of {paths.PARAMS}")
        section[last] = value
    return check(Params, content, f"{paths.PARAMS} with {_said(point)}")


def _meaning(params: Params, stage: str) -> Iterator[tuple[str, Any]]:
    """All that decides what the pass rate of a stage is of: its problems, and how they are answered."""
    from pipelines.rl import recipe  # torch

    stages, settings = graph.graph(params), params.stages[stage]
    yield "seed", params.seed
    given = settings.model_dump(mode="json")
    yield f"stages.{stage}", {name: given[name] for name in ("data", "where")}
    yield f"stages.{stage}.generation", {name: given["generation"][name] for name in ("prompt", "temperature", "max_new_tokens")}
    yield f"stages.{stage}.recipe", {slot: recipe(settings.recipe, **settings.overrides).slots[slot] for slot in ANSWERING}
    rows = {name for name, other in stages.items() if other.kind not in MODELS and other.feeds(stages[stage])}
    yield from ((name, stages[name].settings.model_dump(mode="json")) for name in graph.upstream(stages, rows))
