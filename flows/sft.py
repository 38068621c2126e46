"""Stage `sft`: the cold start on worked solutions."""

from __future__ import annotations

import sys

from prefect import flow

from flows import command
from tasks.execution import execute


@flow
def sft(pipeline_run: str | None = None) -> None:
    execute("sft", pipeline_run)


if __name__ == "__main__":
    sys.exit(command.run_stage("sft", sft))
