"""What a sandbox does to the machine, measured from the machine while it works. Nothing here asks the code under test."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PERIOD = 0.02


@dataclass
class Effects:
    """The most that any one sandbox had at a time, and what stayed.

    memory: anonymous bytes of its processes, shared ones once. files: bytes on all mounts that it can write. mounts: those that are not read-only.
    shared: growth of the machine's shared memory (tmpfs, memfd, System V, shared anonymous), whoever holds it. kernel: growth of unreclaimable slab.
    """

    memory: int = 0
    files: int = 0
    processes: int = 0
    namespaces: int = 0
    capabilities: set[str] = field(default_factory=set)
    mounts: set[str] = field(default_factory=set)
    shared: int = 0
    kernel: int = 0
    left: list[str] = field(default_factory=list)


@contextmanager
def measured() -> Iterator[Effects]:
    """Measures the sandboxes that are started in the block; the figures are whole after it."""
    effects, over = Effects(), threading.Event()
    old = {child.pid for child in psutil.Process().children()}
    start = _machine()
    watcher = threading.Thread(target=_watch, args=(effects, old, start, over), daemon=True)
    watcher.start()
    try:
        yield effects
    finally:
        over.set()
        watcher.join()
        deadline = time.monotonic() + 1.0
        while (left := _left(old)) and time.monotonic() < deadline:
            time.sleep(0.01)
        effects.left = left


def _watch(effects: Effects, old: set[int], start: dict[str, int], over: threading.Event) -> None:
    while not over.wait(PERIOD):
        now = _machine()
        effects.shared = max(effects.shared, now["Shmem"] - start["Shmem"])
        effects.kernel = max(effects.kernel, now["SUnreclaim"] - start["SUnreclaim"])
        for child in psutil.Process().children():
            if child.pid not in old:
                _look(effects, child)


def _look(effects: Effects, top: psutil.Process) -> None:
    """One sandbox at this moment."""
    try:
        inside = [process.pid for process in top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    memory = sum(_kilobytes(pid, "smaps_rollup", "Pss_Anon|SwapPss") for pid in inside)
    effects.memory = max(effects.memory, memory)
    effects.processes = max(effects.processes, len(inside))
    effects.namespaces = max(effects.namespaces, len({link for pid in inside if (link := _namespace(pid))}))
    programs = inside[1:]  # the first is bubblewrap's own
    effects.capabilities |= {found[1] for pid in programs if (found := re.search(r"^CapEff:\s+(\w+)", _text(pid, "status"), re.MULTILINE))}
    if programs and _namespace(programs[0]) != _namespace(os.getpid()) and "python3" in _text(programs[0], "cmdline"):
        places = _writable(programs[0])
        effects.mounts |= set(places)
        effects.files = max(effects.files, sum(places.values()))


def _writable(pid: int) -> dict[str, int]:
    """Mount that is not read-only, as the program sees it -> bytes on it; kernel interfaces and single devices aside."""
    used: dict[str, int] = {}
    for line in _text(pid, "mountinfo").splitlines():
        place, options = line.split()[4:6]
        kind = line.partition(" - ")[2].split()[0]
        if "rw" in options.split(",") and kind not in ("proc", "devtmpfs", "devpts"):
            try:
                state = os.statvfs(f"/proc/{pid}/root{place}")
            except OSError:
                continue
            used[place] = (state.f_blocks - state.f_bfree) * state.f_frsize
    return used


def _namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/user")
    except OSError:
        return None


def _left(old: set[int]) -> list[str]:
    """New children of this process, and processes of a sandbox's uid that have got out from under bubblewrap."""
    found = []
    for process in psutil.process_iter(["pid", "uids", "name", "ppid", "status"]):
        info = process.info
        escaped = info["uids"] and 61000 <= info["uids"].real < 65000 and not _confined(process)
        if escaped or (info["ppid"] == os.getpid() and info["pid"] not in old):
            found.append(f"{info['pid']} {info['name']} {info['status']}")
    return found


def _confined(process: psutil.Process) -> bool:
    try:
        return any(each.name() in ("bwrap", "setpriv", "sh") for each in (process, *process.parents()))
    except psutil.NoSuchProcess:
        return True


def _machine() -> dict[str, int]:
    return {name: 1024 * int(kilobytes) for name, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)}


def _kilobytes(pid: int, file: str, names: str) -> int:
    return 1024 * sum(map(int, re.findall(rf"^(?:{names}):\s+(\d+) kB", _text(pid, file), re.MULTILINE)))


def _text(pid: int, file: str) -> str:
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return ""
