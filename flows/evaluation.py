"""Stage `evaluation`: every model on every benchmark, and the gate."""

from __future__ import annotations

import sys

from prefect import flow

from flows import command
from tasks.execution import execute


@flow
def evaluation(pipeline_run: str | None = None) -> None:
    execute("evaluation", pipeline_run)


if __name__ == "__main__":
    sys.exit(command.run_stage("evaluation", evaluation))
