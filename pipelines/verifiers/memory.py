"""What a sandbox holds in memory, seen from outside: the processes below it and its tmpfs.

RLIMIT_AS bounds one process, so many could hold many times as much. Where there is no cgroup to make (cgroups.py) the sum is taken every PERIOD
seconds, and a sandbox above its bound is killed; in one period a program can get further by what the machine writes in that time. Counted are
anonymous pages, resident or swapped out (each process's own, then, if that is too much, shared ones in parts: a forked child shares its
parent's), and of the tmpfs its bytes and 1 KiB for each file. Not counted: what the kernel holds in pipes and Unix sockets, some 400 KiB each at
most, 64 a process.
"""

from __future__ import annotations

import functools
import os
import re
import time

PERIOD = 0.05
LOOKS = 3
FILE = 1024
"""Bytes that the kernel holds for a file on a tmpfs beside its content."""


@functools.cache
def can_watch() -> bool:
    """Whether the kernel tells a process's children (CONFIG_PROC_CHILDREN)."""
    return os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


def exceeds(pid: int, tmpfs: int, bound: int) -> bool:
    """Whether the processes below `pid` hold more than `bound`, at each of a few looks: while children end, what they shared is seen twice."""
    for _ in range(LOOKS):
        if held(pid, tmpfs, bound) <= bound:
            return False
        time.sleep(0.002)
    return True


def held(pid: int, tmpfs: int, bound: int) -> int:
    """Bytes that the processes below `pid` hold, with the files in their /tmp of `tmpfs` bytes; exact only where it is above `bound`."""
    processes = below(pid)
    files = _files(processes[0], tmpfs) if processes else 0
    own = {process: _sum(_text(f"/proc/{process}/status"), r"^(?:RssAnon|VmSwap):\s+(\d+) kB") for process in processes}
    if sum(own.values()) + files > bound:
        for process in processes:
            if told := _text(f"/proc/{process}/smaps_rollup"):
                own[process] = _sum(told, r"^(?:Pss_Anon|SwapPss):\s+(\d+) kB")
    return sum(own.values()) + files


def below(pid: int) -> list[int]:
    """The processes below this one, its first child first."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            children = [int(child) for task in os.listdir(f"/proc/{parent}/task") for child in _text(f"/proc/{parent}/task/{task}/children").split()]
        except OSError:  # it has ended
            continue
        found += children
        waiting += children
    return found


def _files(pid: int, tmpfs: int) -> int:
    """Bytes of the files in a sandbox's /tmp; 0 before it has one."""
    try:
        state = os.statvfs(f"/proc/{pid}/root/tmp")
    except OSError:
        return 0
    if state.f_blocks * state.f_frsize != -(-tmpfs // state.f_frsize) * state.f_frsize:  # the host's: the sandbox is not set up yet
        return 0
    return (state.f_blocks - state.f_bfree) * state.f_frsize + (state.f_files - state.f_ffree) * FILE


def _sum(text: str, pattern: str) -> int:
    """Bytes of all lines in kB that the pattern finds."""
    return 1024 * sum(map(int, re.findall(pattern, text, re.MULTILINE)))


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:  # it has ended
        return ""
