"""Stages `rl@NAME`: reinforcement learning with verifiable rewards, `python -m flows.rl NAME`."""

from __future__ import annotations

import sys

from prefect import flow

from flows import command
from pipelines.errors import UserError
from tasks.execution import execute


@flow(flow_run_name="rl@{name}")
def rl(name: str, pipeline_run: str | None = None) -> None:
    execute(f"rl@{name}", pipeline_run)


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("usage: python -m flows.rl NAME, a key of params.yaml: rl.stages")
    rl(sys.argv[1])


if __name__ == "__main__":
    sys.exit(command.run_stage("rl", main))
