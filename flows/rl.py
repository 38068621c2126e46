"""Stages `rl@NAME`: reinforcement learning with verifiable rewards, `python -m flows.rl NAME`."""

from __future__ import annotations

import sys

from prefect import flow

from flows import command
from tasks.execution import execute


@flow(flow_run_name="rl@{name}")
def rl(name: str, pipeline_run: str | None = None) -> None:
    execute(f"rl@{name}", pipeline_run)


if __name__ == "__main__":
    sys.exit(command.run(lambda: rl(sys.argv[1])))
