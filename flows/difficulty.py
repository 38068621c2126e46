"""Stage `difficulty`: pass rates by the SFT policy, and the band that RL sees."""

from __future__ import annotations

import sys

from prefect import flow

from flows import command
from tasks.execution import execute


@flow
def difficulty(pipeline_run: str | None = None) -> None:
    execute("difficulty", pipeline_run)


if __name__ == "__main__":
    sys.exit(command.run_stage("difficulty", difficulty))
