"""Stage `curation`: normalised, audited, deduplicated, decontaminated, filtered and split rows."""

from __future__ import annotations

import sys

from prefect import flow

from flows import command
from tasks.execution import execute


@flow
def curation(pipeline_run: str | None = None) -> None:
    execute("curation", pipeline_run)


if __name__ == "__main__":
    sys.exit(command.run_stage("curation", curation))
