"""One flow per kind of stage, so that Prefect's pages tell them apart."""

from __future__ import annotations

from collections.abc import Callable

from prefect import flow

from pipelines.stages import ENTRIES
from tasks.execution import execute


def _flow(kind: str) -> Callable[..., None]:
    @flow(name=kind, flow_run_name="{stage}")
    def run(stage: str, pipeline_run: str | None = None, parts: int = 1) -> None:
        execute(stage, pipeline_run, parts)

    return run


FLOWS = {kind: _flow(kind) for kind in ENTRIES}
"""Kind -> its flow: (name of the stage, MLflow's id of the parent run, between how many stages the machine is divided)."""
