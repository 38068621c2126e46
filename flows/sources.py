"""Stage `sources`: problems from generators, files and datasets."""

from __future__ import annotations

import sys

from prefect import flow

from flows import command
from tasks.execution import execute


@flow
def sources(pipeline_run: str | None = None) -> None:
    execute("sources", pipeline_run)


if __name__ == "__main__":
    sys.exit(command.run_stage("sources", sources))
