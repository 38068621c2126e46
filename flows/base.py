"""Stage `base`: the model that everything starts from."""

from __future__ import annotations

import sys

from prefect import flow

from flows import command
from tasks.execution import execute


@flow
def base(pipeline_run: str | None = None) -> None:
    execute("base", pipeline_run)


if __name__ == "__main__":
    sys.exit(command.run_stage("base", base))
