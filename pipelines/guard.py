"""Ends what an engine or an outside program started when it is closed and when this process is gone, however it went.

vLLM's processes, and those of trainers, outlive a parent that gets SIGKILL. They all inherit one environment variable, whose value is theirs
alone; a small process of its own waits until its pipe to this one closes, which the kernel sees to, and ends every process that has it. Where there
is no /proc (any system but Linux) it finds none. They are asked to end first, so that they remove their shared memory.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

VARIABLE = "TOUCHSTONE_GUARDED"
PATIENCE = 3.0
"""Seconds between the request to end and the kill."""
QUIET = 3
"""Searches in a row that must find nothing: a process that is just being made is in none of them for a moment."""


class Guard:
    """Watches over the processes that are started with `environment`."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(16)
        self.environment: Mapping[str, str] = {VARIABLE: self.mark}
        command = [sys.executable, "-I", __file__, self.mark]  # by its path: it needs nothing of the package
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)

    def close(self) -> None:
        """Returns when they are gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def marked(mark: str) -> list[int]:
    """Processes whose environment holds the mark."""
    wanted, found = f"{VARIABLE}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it has ended, or is another user's
            pass
    return found


def end(mark: str) -> None:
    """End every process that has the mark; returns when they are gone."""
    _signal(marked(mark), signal.SIGTERM)
    deadline, quiet = time.monotonic() + PATIENCE, 0
    while quiet < QUIET:
        left = marked(mark)
        quiet = 0 if left else quiet + 1
        if time.monotonic() > deadline:
            _signal(left, signal.SIGKILL)
        time.sleep(0.05)


def main(mark: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    end(mark)


def _signal(processes: Sequence[int], number: signal.Signals) -> None:
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            pass


if __name__ == "__main__":
    main(sys.argv[1])
