"""Stage `synthesis`: new problems where the policy is weak."""

from __future__ import annotations

import sys

from prefect import flow

from flows import command
from tasks.execution import execute


@flow
def synthesis(pipeline_run: str | None = None) -> None:
    execute("synthesis", pipeline_run)


if __name__ == "__main__":
    sys.exit(command.run_stage("synthesis", synthesis))
