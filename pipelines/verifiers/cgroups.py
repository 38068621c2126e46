"""A cgroup for each sandbox, where version 2 is mounted and a place for groups is ours: then the kernel bounds the memory of the whole tree.

The place is this process's own group, or the one above it, if it passes on the memory controller and lets us make groups and move processes:
so it is for root on most machines, and in sessions of systemd, which delegates to users. Containers mostly have none; see memory.py.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
ENTER = ("/bin/sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"')
"""Command prefix, to be followed by the group's folder: the shell joins it, and becomes the program."""
LEAVE_SECONDS = 2.0


@functools.cache
def home() -> Path | None:
    """The folder in which groups can be made; None where there is none. A group is made and removed to find out."""
    for folder in candidates(MOUNT, Path("/proc/self/cgroup").read_text()):
        try:
            with group(folder, 1 << 30, 64):
                return folder
        except OSError:
            continue
    return None


def candidates(mount: Path, membership: str) -> list[Path]:
    """Folders of version 2 that pass on the memory controller: the group of this process and the one above. membership: /proc/self/cgroup."""
    own = re.search(r"^0::(/.*)$", membership, re.MULTILINE)
    if own is None or not (mount / "cgroup.controllers").is_file():
        return []
    folder = mount / own[1].lstrip("/")
    above = [folder.parent] if folder != mount else []
    return [place for place in (folder, *above) if "memory" in _passed_on(place) and os.access(place / "cgroup.procs", os.W_OK)]


def _passed_on(folder: Path) -> list[str]:
    file = folder / "cgroup.subtree_control"
    return file.read_text().split() if file.is_file() else []


@contextmanager
def group(folder: Path, memory: int, processes: int) -> Iterator[Path]:
    """A new group below `folder` with bounds on memory (no swap beside it) and processes; what is left in it is killed at the end.

    Raises:
        OSError: it cannot be made.
    """
    made = folder / f"touchstone-{os.getpid()}-{secrets.token_hex(4)}"
    made.mkdir()
    try:
        (made / "memory.max").write_text(str(memory))
        for name, value in (("memory.swap.max", 0), ("memory.oom.group", 1), ("pids.max", processes)):
            if (made / name).exists():
                (made / name).write_text(str(value))
        yield made
    finally:
        _remove(made)


def killed_for_memory(made: Path) -> bool:
    """Whether the kernel has killed in the group because of its bound."""
    return re.search(r"^oom_kill [1-9]", (made / "memory.events").read_text(), re.MULTILINE) is not None


def _remove(made: Path) -> None:
    if (made / "cgroup.kill").exists():
        (made / "cgroup.kill").write_text("1")
    end = time.monotonic() + LEAVE_SECONDS
    while True:
        try:
            return made.rmdir()
        except OSError:  # its processes are still on their way out
            if time.monotonic() > end:
                return None
            time.sleep(0.002)
