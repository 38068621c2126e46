"""A Prefect server for the length of one command: `python -m tasks.temporary_server PORT PARENT`.

Prefect would start one itself, but as a child that Ctrl-C stops together with the command, which then waits minutes for it, and
that outlives a kill -9. This one is in a session of its own and dies with the process that started it.
"""

from __future__ import annotations

import os
import sys

from pipelines.preloaded import die_with_parent
from tasks.settings import HOST


def main(port: int, parent: int) -> None:
    die_with_parent(parent)
    os.environ |= {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    import uvicorn

    uvicorn.run("prefect.server.api.server:create_app", factory=True, host=HOST, port=port, log_level="critical", lifespan="on")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
