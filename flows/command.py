"""How every command of this package ends: an error the user can mend is one sentence and exit code 2, Ctrl-C is 130."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from pipelines.errors import UserError


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
    return code if isinstance(code, int) else 0
