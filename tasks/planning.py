"""Which stages a run is about, and which of them have to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines import graph
from pipelines.errors import UserError
from pipelines.graph import Graph
from tasks import owed, settings, versioning

REASONS = 3
"""So many reasons are told of a stage that has to run."""


@dataclass(frozen=True)
class Plan:
    """Stages in the order of running, those to run though they are current, and the graph with all that do not run."""

    stages: Graph
    force: tuple[str, ...]
    everything: Graph


def make(project: Path, until: str | None = None, force: Sequence[str] = ()) -> Plan:
    """Check params.yaml and bring the work tree in line with it: the graph that DVC reads, links to outside files, nothing left of stages
    that are gone.

    What is to be forced is written down until it is recorded, so a run that is stopped leaves it to the next.

    Raises:
        UserError: params.yaml does not hold, or `until` or `force` names no stage of the run.
    """
    loaded = settings.params(project)
    everything = graph.graph(loaded)
    stages = graph.upstream(everything, settings.matching(everything, until)) if until else list(everything)
    forced = [stage for name in force for stage in sorted(settings.matching(everything, name))]
    for stage in forced:
        if stage not in stages:
            raise UserError(f"--force {stage}: the run ends before it, at {until}")
    versioning.align(project, loaded, everything)
    for name in versioning.prune(project, everything):
        print(f"{name} is no longer in params.yaml: removed what it had left (DVC's cache keeps it)")
    owed.settle(project, everything)
    for stage in forced:
        owed.force(project, stage)
    wanted = owed.forced(project)
    return Plan({name: everything[name] for name in stages}, tuple(stage for stage in stages if stage in wanted), everything)


def stale(project: Path, plan: Plan, stage: str) -> bool:
    """Must `stage` run? Says why, in one line; what the cache holds is checked out instead."""
    answer = versioning.settle_all(project, [plan.stages[stage]], plan.force)[0]
    if answer.state == "current":
        return False
    print(f"{stage}: {'taken from the cache' if answer.state == 'restored' else 'runs'} ({told(answer.reasons)})", flush=True)
    return answer.state == "stale"


def told(reasons: Sequence[str]) -> str:
    """The first reasons, and how many more there are."""
    return ", ".join(reasons[:REASONS]) + (f" and {len(reasons) - REASONS} more" if len(reasons) > REASONS else "")


def first_to_run(project: Path, plan: Plan) -> str | None:
    """The first stage that must run or of which something is left to tell; None where all is current. Asks without a word."""
    if untold := [stage for stage in plan.stages if owed.untold(project, stage)]:
        return untold[0]
    answer = versioning.settle_all(project, list(plan.stages.values()), plan.force)[-1]
    return answer.stage if answer.state == "stale" else None
