"""One run per project at a time: two would write the same outputs. The kernel drops the lock when its holder dies."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines import paths
from pipelines.errors import UserError

_held: set[Path] = set()
"""Projects this process has locked, so that a flow inside a locked command does not wait for itself."""
TURN = threading.RLock()
"""Held while a stage is looked at or recorded: stages that run side by side take turns, for DVC works in one folder and one lock file."""


@contextmanager
def single_run(project: Path) -> Iterator[None]:
    """Hold the project's lock.

    Raises:
        UserError: another process holds it.
    """
    if project in _held:
        yield
        return
    file = project / paths.STATE / "run.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode().strip() or "unknown"
            raise UserError(f"{project}: another run is at work here (process {holder}); wait for it or stop it") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        _held.add(project)
        try:
            yield
        finally:
            _held.discard(project)
    finally:
        os.close(descriptor)
