"""How every command of this package ends: an error the user can mend is one sentence and exit code 2, Ctrl-C is 130."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from pipelines.errors import UserError
from pipelines.graph import Stage
from tasks import services, settings
from tasks.preloading import PRELOADED
from tasks.tracking import Tracker


def run(command: Callable[[], object]) -> int:
    """Run `command` and return the exit code; SIGTERM unwinds like Ctrl-C, so that child processes are stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = command()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the next run continues from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # nobody reads on, as behind `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code if isinstance(code, int) else 0


def start_servers(stage: Stage) -> None:
    """Have what the first stage needs come up while this process does something else: Prefect, unless an address is set, and what it imports."""
    services.TEMPORARY.start(settings.root())
    if stage.loads_model:
        PRELOADED.start(settings.root(), libraries=True)


def with_server(flow: Callable[[], object]) -> int:
    """Call `flow` once the Prefect server answers."""
    Tracker.open(settings.root())  # MLflow is imported, and makes its database, meanwhile
    services.TEMPORARY.wait()
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}):
        flow()
    return 0
