"""Responses sampled and judged in parts, each stored whole when it is done: interrupted work goes on after the last of them.

A part's file is named by the first problem it holds and the first it does not, so parts of any size continue each other. The folder's
name must cover all that the work depends on; who works in it holds it, so that two at the same work share their parts.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.records import Outcome, Problem
from pipelines.store import write_table


def in_parts(problems: Sequence[Problem], size: int, folder: Path, judge: Callable[[int, Sequence[Problem]], pa.Table]) -> Iterator[pa.Table]:
    """What `judge(place of the first, problems)` gives of each part, from `folder` where it is there: tables with a column `outcome`.

    What the machine failed to judge is judged again next time, so such a part is used but not kept.
    """
    start = 0
    while start < len(problems):
        if file := next(folder.glob(f"{start:08d}-*.parquet"), None):
            table, end = pq.read_table(file), int(file.stem.partition("-")[2])
        else:
            end = min(start + size, len(problems))
            table = judge(start, problems[start:end])
            if Outcome.INFRASTRUCTURE.value not in set(table["outcome"].to_pylist()):
                write_table(folder / f"{start:08d}-{end:08d}.parquet", table)
        yield table
        start = end


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if need be, with all others that do the same work; who is done with it last removes it. An error leaves it."""
    descriptor = _hold(folder)
    try:
        yield
        with suppress(BlockingIOError):  # another is still at work here
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _hold(folder: Path) -> int:
    """A descriptor of `folder` with a shared lock, which the kernel drops with the process."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileExistsError, FileNotFoundError):  # another removes it this very moment
            continue
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.stat(folder).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)
