"""Which model is the champion: the evaluated candidate becomes it only if evaluation's gate passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import paths
from pipelines.store import read_json
from tasks import experiments
from tasks.tracking import CHAMPION, StageRun, registered


@dataclass(frozen=True)
class Decision:
    """What became of a candidate, which rules of the gate decided it, and why."""

    model: str
    promoted: bool
    decided_by: tuple[str, ...]
    reasons: tuple[str, ...]


def promote(run: StageRun, models: Mapping[str, str], files: Callable[[str], Mapping[str, Path]]) -> Decision:
    """Read the gate from scores.json. On a pass the candidate gets the alias `champion`; else the old champion stays.

    models: model -> DVC's digest of its folder as it was evaluated. The version of exactly these weights is promoted; one is
    registered where there is none, as when the weights came from DVC's cache. files: model -> its files, as `StageRun.register` takes them.
    """
    gate: dict[str, Any] = read_json(run.tracker.project / paths.SCORES)["gate"]
    model = gate["candidate"]
    if experiments.is_copy(run.tracker.project):
        applied = f"an experiment moves no alias: `dvc exp apply`, then `touchstone run --force evaluation`, makes {model} the champion"
        return Decision(model, False, tuple(gate["decided_by"]), (*gate["reasons"], *([applied] if gate["passed"] else [])))
    if gate["passed"]:
        version = run.tracker.version(model, models[model]) or run.register(model, models[model], files(model))
        run.tracker.client.set_registered_model_alias(registered(model), CHAMPION, version.version)
    return Decision(model, bool(gate["passed"]), tuple(gate["decided_by"]), tuple(gate["reasons"]))
