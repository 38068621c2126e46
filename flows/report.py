"""Stage `report`: one self-contained page."""

from __future__ import annotations

import sys

from prefect import flow

from flows import command
from tasks.execution import execute


@flow
def report(pipeline_run: str | None = None) -> None:
    execute("report", pipeline_run)


if __name__ == "__main__":
    sys.exit(command.run_stage("report", report))
