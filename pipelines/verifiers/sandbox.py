"""Sandboxes at work: start one for a program that a model wrote, hear what it reports, keep the clock, and kill.

isolation.py says what a sandbox is. `harness.py` sets the limits of each process inside and runs the program; this side keeps the clock, caps what
it reads, bounds the memory of the whole (by a cgroup where one can be made, else by looking) and kills. Where bubblewrap does not work nothing
runs: InfrastructureError.

`run(..., candidate=item)` starts two: the program in one, the tests of its data set in the other, which calls the program through a pipe. So
tests that must run as code never stand beside the program that they judge.

`run(..., batch=True)` runs many items in ONE sandbox, each in a forked child. Siblings can then see and disturb each other, so it is for
auditing gold programs only. A reward must never come from it: one rollout could spoil or copy its neighbours.
"""

from __future__ import annotations

import functools
import json
import marshal
import os
import secrets
import select
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.errors import InfrastructureError
from pipelines.verifiers import cgroups, isolation, memory, seccomp
from pipelines.verifiers.interpreter import HOME
from pipelines.verifiers.isolation import INSTALL

STARTUP_SECONDS = 20.0
Event = tuple[int, int, str, Any]
_SLOTS = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))


@dataclass(frozen=True)
class ProgramLimits:
    """Bounds of one program. seconds: wall time per test (a problem's `time_limit` replaces it); total_seconds: of all tests together.

    memory: bytes of address space of each process, and, with `tmpfs`, of memory of all its processes and files together. tmpfs: bytes of its files
    together, file_size: of each. output: bytes that it prints or returns.
    """

    seconds: float = 10.0
    total_seconds: float = 60.0
    memory: int = 1 << 30
    processes: int = 32
    file_size: int = 16 << 20
    tmpfs: int = 64 << 20
    output: int = 1 << 20


@dataclass
class Run:
    """What a sandbox reported: events (item, test, status, payload), and how it ended: closed (by itself), or killed: timeout, output, memory."""

    events: list[Event] = field(default_factory=list)
    end: str = "closed"
    status: int = 0


LAUNCHER = """
import marshal
stream = open(0, "rb", closefd=False)
def execute(source, names): exec(source, names)
exec(marshal.load(stream))
"""
"""Reads the harness, then the job. `execute` lives here so that programs do not inherit the harness's __future__ imports; it takes text, because
`compile` would first build the ast module's types, 3 ms in each new process."""

PYTHON = (f"{HOME}/bin/python3", "-I", "-S", "-E", "-B", "-X", "utf8", "-c", LAUNCHER)


@functools.cache
def _harness() -> bytes:
    """`harness.py`, compiled: the sandbox runs the same Python version, and compiling costs 3 ms a start."""
    return marshal.dumps(compile(Path(__file__).with_name("harness.py").read_bytes(), "harness", "exec", optimize=2))


def run(
    items: Sequence[dict[str, Any]],
    limits: ProgramLimits,
    *,
    quiet_seconds: float,
    total_seconds: float,
    batch: bool = False,
    candidate: dict[str, Any] | None = None,
) -> Run:
    """Run the items in one sandbox. It is killed after `quiet_seconds` without an event, after `total_seconds`, and when it talks too much.

    candidate: an item that waits in a sandbox of its own for the calls that the one item makes. Between the two go only calls and plain values.
    """
    nonce = secrets.token_hex(16)
    with ExitStack() as stack, _SLOTS:
        reading, writing = _pipe(stack)
        descriptors, boxes = [writing], []
        if candidate is not None:
            (calls, call), (answer, answers) = _pipe(stack), _pipe(stack)
            descriptors += [call, answer]
            boxes.append(stack.enter_context(_sandbox({"role": "candidate", "items": [candidate]}, (calls, answers), limits)))
        role = "batch" if batch else "single" if candidate is None else "examiner"
        box = stack.enter_context(_sandbox({"role": role, "nonce": nonce, "items": list(items)}, descriptors, limits))
        boxes.append(box)
        outcome = _listen(reading, nonce, limits.output * max(4, len(items)), quiet_seconds, total_seconds, boxes)
        outcome.status = _leave(box.process) if outcome.end == "closed" else 0
        if any(each.group and each.too_large() for each in boxes):  # the kernel was faster than we
            outcome.end = "memory"
        said = box.said()
    if not outcome.events or outcome.events[0][2] != "ready":
        reason = said.splitlines()[-1] if said else f"no answer, exit status {outcome.status}"
        raise InfrastructureError(f"The bubblewrap sandbox did not start ({reason}): {INSTALL}.")
    outcome.events.pop(0)
    return outcome


def _pipe(stack: ExitStack) -> tuple[_End, _End]:
    """Reading and writing end, closed with the stack if they have not been before."""
    ends = tuple(map(_End, os.pipe()))
    for end in ends:
        stack.callback(end.close)
    return ends[0], ends[1]


class _End:
    """A descriptor that is closed once."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor

    def fileno(self) -> int:
        assert self.descriptor is not None
        return self.descriptor

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


@dataclass(frozen=True)
class _Box:
    """A sandbox at work: bubblewrap's process, its standard error, its cgroup where it has one, and its bounds."""

    process: subprocess.Popen[bytes]
    errors: BinaryIO
    group: Path | None
    limits: ProgramLimits

    def too_large(self) -> bool:
        """Whether it holds more memory than it may, or has been killed for that."""
        if self.group:
            return cgroups.killed_for_memory(self.group)
        bound = self.limits.memory + self.limits.tmpfs
        return memory.can_watch() and memory.exceeds(self.process.pid, self.limits.tmpfs, bound)

    def said(self) -> str:
        """Its standard error, after its end."""
        self.kill()
        self.errors.seek(0)
        return self.errors.read(2000).decode("utf-8", "replace").strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def _sandbox(job: dict[str, Any], descriptors: Sequence[_End], limits: ProgramLimits) -> Iterator[_Box]:
    """A sandbox at work on `job`. It gets `descriptors`, which are closed here, and does not outlive the block."""
    with ExitStack() as stack:
        stream = _memory_file(stack, _harness() + marshal.dumps(job))
        errors = _memory_file(stack, b"")
        filtered = seccomp.program()
        passed = [end.fileno() for end in descriptors]
        rules = _memory_file(stack, filtered).fileno() if filtered else None
        group = _group(stack, limits)
        joining = [*cgroups.ENTER, str(group)] if group else []
        command = [*joining, *isolation.as_nobody(), *isolation.command(limits.tmpfs, rules), *PYTHON, *map(str, passed)]
        handed = (*passed, rules) if rules is not None else passed
        try:
            process = subprocess.Popen(command, stdin=stream, stdout=subprocess.DEVNULL, stderr=errors, pass_fds=handed, env={})
        except OSError as error:
            raise InfrastructureError(f"The sandbox could not be started ({error}): {INSTALL}.") from error
        finally:
            for end in descriptors:
                end.close()
        box = _Box(process, errors, group, limits)
        try:
            yield box
        finally:
            box.kill()


def _memory_file(stack: ExitStack, content: bytes) -> BinaryIO:
    file = stack.enter_context(os.fdopen(os.memfd_create("touchstone"), "w+b"))
    file.write(content)
    file.seek(0)
    return file


def _group(stack: ExitStack, limits: ProgramLimits) -> Path | None:
    """The cgroup for a sandbox, removed with the stack; None where there can be none. bubblewrap has a few processes beside the program's own."""
    home = cgroups.home()
    if home is None:
        return None
    try:
        return stack.enter_context(cgroups.group(home, limits.memory + limits.tmpfs, limits.processes + 8))
    except OSError as error:
        raise InfrastructureError(f"The sandbox's cgroup below {home} could not be made ({error.strerror}).") from error


def _leave(process: subprocess.Popen[bytes]) -> int:
    """Exit status of a sandbox that closed its result pipe: it needs a moment to end by itself, and gets no more."""
    try:
        return process.wait(0.2)
    except subprocess.TimeoutExpired:
        return 0


def _listen(reading: _End, nonce: str, cap: int, quiet_seconds: float, total_seconds: float, boxes: Sequence[_Box]) -> Run:
    outcome, buffer, received = Run(), b"", 0
    poller = select.poll()
    poller.register(reading.fileno(), select.POLLIN | select.POLLHUP)
    now = time.monotonic()
    quiet, total, look = now + STARTUP_SECONDS, now + STARTUP_SECONDS + total_seconds, now + memory.PERIOD
    while True:
        ready = poller.poll(max(1, (min(quiet, total, look) - time.monotonic()) * 1000))
        now = time.monotonic()
        if now >= look:
            look = now + memory.PERIOD
            if any(box.too_large() for box in boxes):
                outcome.end = "memory"
                return outcome
        if now >= min(quiet, total):
            outcome.end = "timeout"
            return outcome
        if not ready:
            continue
        chunk = os.read(reading.fileno(), 1 << 16)
        if not chunk:
            return outcome
        received += len(chunk)
        if received > cap:
            outcome.end = "output"
            return outcome
        *lines, buffer = (buffer + chunk).split(b"\n")
        fresh = [event for event in (_event(line, nonce) for line in lines) if event is not None]
        if fresh:
            if not outcome.events:
                total = time.monotonic() + total_seconds
            outcome.events += fresh
            quiet = time.monotonic() + quiet_seconds


def _event(line: bytes, nonce: str) -> Event | None:
    """A line of the harness, or None for anything that is not exactly that."""
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(parsed, list) and len(parsed) == 5 and parsed[0] == nonce):
        return None
    _, item, test, status, payload = parsed
    return (item, test, status, payload) if isinstance(item, int) and isinstance(test, int) and isinstance(status, str) else None


@functools.cache
def probe() -> str:
    """'' when a sandbox starts and runs a program here, otherwise the sentence that says why not. Asked once per process."""
    item = {"setup": "", "program": "def f():\n    return 1", "entry_point": "f", "tests": [("args", ([], {}))]} | resources(ProgramLimits(), 5.0)
    try:
        outcome = run([item], ProgramLimits(), quiet_seconds=5.0, total_seconds=10.0)
    except InfrastructureError as error:
        return str(error)
    worked = (0, 0, "value", 1) in outcome.events
    return "" if worked else f"The bubblewrap sandbox starts but runs no program here ({outcome.end}, {outcome.events}): {INSTALL}."


def require_sandbox() -> None:
    """Raise InfrastructureError with one sentence if programs cannot be judged on this machine."""
    if reason := probe():
        raise InfrastructureError(reason)


def resources(limits: ProgramLimits, seconds: float) -> dict[str, Any]:
    """The part of a harness item that bounds it; `seconds` of wall time for the whole item."""
    bounds = {"memory": limits.memory, "processes": limits.processes, "file_size": limits.file_size, "output": limits.output}
    return bounds | {"cpu": int(seconds) + 2, "wall": seconds}
