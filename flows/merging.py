"""Stage `merging`: the experts as one model."""

from __future__ import annotations

import sys

from prefect import flow

from flows import command
from tasks.execution import execute


@flow
def merging(pipeline_run: str | None = None) -> None:
    execute("merging", pipeline_run)


if __name__ == "__main__":
    sys.exit(command.run_stage("merging", merging))
