"""All of params.yaml against the tables, the disk and this machine, before anything runs: `load(file, root)`.

Every front door comes through here: `touchstone run`, `check` and `configure`, the stages of `dvc repro` and of deployments, and
`python -m pipelines STAGE --params`. All that is wrong is told at once, each with its key and the nearest name that is right.

names.py           names and combinations that can be judged by themselves
outside.py         models, files, packages, devices
pipelines.tables   recipes, merge methods and puzzles, whose tables are read in a process of their own
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines import paths, tables
from pipelines.checks import names, outside
from pipelines.config import Params, read_yaml
from pipelines.config.checking import examine
from pipelines.config.distil import DistilStage
from pipelines.config.learning import LearningStage
from pipelines.config.preference import PreferenceStage
from pipelines.config.rl import SamplingStage
from pipelines.errors import UserError
from pipelines.lineage.code import code_sha256
from pipelines.lineage.digests import combine
from pipelines.store import read_json, write_json

EARLIER = ("sft", "difficulty", "synthesis", "rl", "merging")
"""Sections that are entries of `stages` now."""
REMEMBERED = 50
"""So many answers of the tables are kept in `.touchstone`: they are asked again when params, a table or the code that checks has changed."""
_ANSWERED: dict[str, list[tuple[str, str]]] = {}
"""What this process knows of them, by a digest of the questions and the code."""


def load(file: Path, root: Path, where: str = "") -> Params:
    """The params of `file`, all of whose names and settings hold. root: where relative paths in it start. where: how messages call the file.

    Raises:
        UserError: one sentence a line for all that is wrong.
    """
    content = read_yaml(file)
    refuse_earlier(content, where or str(file))
    params, told = examine(Params, content)
    told += [f"section '{name}' is missing; write '{name}: {{}}' for all defaults" for name in missing(content)]
    if params is not None:
        told += [f"{key}: {sentence}" for key, sentence in faults(params, root)]
    if params is None or told:
        raise UserError("\n".join(f"{where or file}: {sentence}" for sentence in dict.fromkeys(told)))
    return params


def refuse_earlier(content: Iterable[str], where: str) -> None:
    """
    Raises:
        UserError: the file has sections of the earlier form, so that nothing else of it can be judged.
    """
    if found := [name for name in EARLIER if name in content]:
        raise UserError(f"{where}: what {', '.join(found)} said stands in the mapping `stages` now; `touchstone migrate {where}` rewrites the file")


def missing(content: Iterable[str]) -> list[str]:
    """Sections with defaults that a params file leaves out; DVC needs each, for the stages depend on them."""
    return [name for name, field in Params.model_fields.items() if name not in content and not field.is_required()]


def faults(params: Params, root: Path) -> list[tuple[str, str]]:
    """(key, sentence) of everything in params that would fail later."""
    asked = json.dumps(questions(params))
    key = combine({"asked": asked, "code": code_sha256(tables.__name__)})
    if key not in _ANSWERED:
        _ANSWERED.update(_remembered(root))
    process = None if key in _ANSWERED else tables.Process(asked)  # at work while the rest is looked at
    found = [*names.faults(params), *names.endpoints(params), *outside.faults(params, root, os.environ.get("TOUCHSTONE_DEVICE", "cpu"))]
    if process:
        _ANSWERED[key] = process.faults()
        if (root / paths.STATE).is_dir():
            write_json(root / paths.CHECKED, dict(list(_ANSWERED.items())[-REMEMBERED:]))
    return found + [(name, sentence) for name, sentence in _ANSWERED[key]]


def _remembered(root: Path) -> dict[str, list[tuple[str, str]]]:
    """What the tables have said to earlier processes."""
    try:
        return dict(read_json(root / paths.CHECKED))
    except (OSError, ValueError, TypeError):
        return {}


def questions(params: Params) -> list[tables.Question]:
    """Every recipe, merge and puzzle that params name."""
    asked: list[tables.Question] = []
    generators = dict[str, Any]()
    for name, stage in params.stages.items():
        key = f"stages.{name}"
        if isinstance(stage, LearningStage):
            more: dict[str, Any] = {"kl_control": stage.kl_control is not None, "taught": ""}
            if isinstance(stage, SamplingStage):
                more["kl_reset"] = stage.reset is not None and stage.reset.kl is not None
            if isinstance(stage, PreferenceStage):
                more |= {"taught": "critic", "lacking": names.lacking(stage)}
            if isinstance(stage, DistilStage):
                more |= {"taught": "teachers"} if stage.leaves_rollouts else {"taught": "stored", "lacking": []}
            asked.append({"key": key, "about": "recipe", "name": stage.recipe, "overrides": stage.overrides, **more})
        elif stage.kind == "merge":
            merges = {key: (stage.method, stage.settings, dict[str, Any]())}
            for number, entry in enumerate(stage.search.candidates if stage.search else ()):
                merges[f"{key}.search.candidates.{number}"] = entry.method, entry.settings, entry.grid
            for at, (method, settings, grid) in merges.items():
                asked.append(
                    {"key": at, "about": "merge", "method": method, "settings": settings, "grid": grid, "experts": len(stage.models)}
                )  # fmt: skip
        elif stage.kind == "extrapolate":
            given = {**stage.settings, "target": stage.target}
            grids = {key: dict[str, Any]()} | ({f"{key}.search.grid": stage.search.grid} if stage.search else {})
            for at, values in grids.items():
                asked.append({"key": at, "about": "merge", "method": stage.method, "settings": given, "grid": values, "experts": 2})
        elif stage.kind == "synthesise":
            generators |= {f"{key}.generators.{source}": given for source, given in (stage.generators or {}).items()}
    for key, source in {**names.sources(params), **generators}.items():
        if source.kind == "reasoning_gym":
            asked.append({"key": key, "about": "puzzle", "task": source.task, "count": source.count, "settings": source.settings})
    return asked
