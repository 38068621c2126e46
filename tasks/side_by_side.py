"""Stages that run at the same time: which may, what each gets of the machine, and how all of them end together.

A stage begins when all that it reads is made. One at a time, stages run in the thread that walks the graph; side by side each has a thread, which
waits for the process that works. With DVC they take turns (`locking.TURN`).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context

from pipelines.errors import UserError
from pipelines.graph import Graph, upstream

AT_ONCE = "TOUCHSTONE_AT_ONCE"
ENDING = threading.Event()
"""Set when a run ends before its stages are done: every thread with a stage ends it then."""


def at_once(given: int | None = None) -> int:
    """How many stages may run at the same time: as given, as TOUCHSTONE_AT_ONCE says, else one.

    Raises:
        UserError: not a whole number of at least 1.
    """
    text = os.environ.get(AT_ONCE, "1") if given is None else str(given)
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{'--at-once' if given is not None else AT_ONCE}: expected a whole number of at least 1, got '{text}'")
    return int(text)


def sharing(stages: Graph, stage: str, most: int) -> int:
    """Between how many stages, this one counted, the machine is divided while `stage` runs: `most`, or fewer where fewer can run beside it. It
    follows from the whole graph, not from what happens to run, so that a run again gives every stage as much.
    """
    before = {name: set(upstream(stages, {name})) for name in stages}
    return min(most, 1 + sum(stage not in before[other] and other not in before[stage] for other in stages))


def threads(parts: int) -> int | None:
    """Of a stage that has one part of the machine's processors; None where OMP_NUM_THREADS says it, or the stage has all of them."""
    if parts == 1 or os.environ.get("OMP_NUM_THREADS"):
        return None
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, usable // parts)


Run = Callable[[str, Sequence[str], Sequence[str]], None]
"""(a stage whose inputs are made, those that have not begun, those that run beside it)."""


def walk(stages: Graph, most: int, run: Run) -> None:
    """`run` every stage, each after those that feed it, at most `most` at the same time.

    After an error nothing new starts, what runs goes on to its end, and then the error is raised. Anything else, such as Ctrl-C, ends all.
    """
    waiting = list(stages)
    running: dict[Future[None], str] = {}
    failed: list[Exception] = []
    ENDING.clear()
    with ThreadPoolExecutor(most, "stage") as pool:
        try:
            while running or (waiting and not failed):
                stage = None if failed or len(running) == most else _ready(stages, waiting, running.values())
                if stage is None:
                    failed += _failures(running)
                    continue
                waiting.remove(stage)
                if most == 1:
                    run(stage, waiting, ())  # in this thread, where Ctrl-C meets it at any instant
                else:
                    running[pool.submit(copy_context().run, run, stage, [*waiting], [*running.values()])] = stage
        except BaseException:
            ENDING.set()
            raise
    if len(failed) > 1:
        users = all(isinstance(error, UserError) for error in failed)
        raise UserError("\n".join(map(str, failed))) if users else ExceptionGroup("several stages failed", failed)
    for error in failed:
        raise error


def _ready(stages: Graph, waiting: Sequence[str], running: Collection[str]) -> str | None:
    """The first stage that waits for no other."""
    unmade = [*waiting, *running]
    return next((name for name in waiting if not any(stages[other].feeds(stages[name]) for other in unmade)), None)


def _failures(running: dict[Future[None], str]) -> list[Exception]:
    """Wait until a stage ends; what those that have ended raised."""
    failed: list[Exception] = []
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        stage, error = running.pop(future), future.exception()
        if isinstance(error, Exception):
            failed.append(error)
            if running:
                print(f"{stage} failed; {', '.join(running.values())} may end, and nothing new starts", flush=True)
        elif error:
            raise error
    return failed
