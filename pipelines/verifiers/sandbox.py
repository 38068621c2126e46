"""bubblewrap sandboxes for programs that a model wrote.

A sandbox is new user, pid, network, ipc, uts and cgroup namespaces, an empty environment, no inherited descriptors but the
result pipe, and a file system of the interpreter, the shared libraries and a small tmpfs. When we are root it runs under an
unprivileged uid of its own (root's processes are exempt from RLIMIT_NPROC). `harness.py` sets the resource limits and runs the program; this side
keeps the clock, caps what it reads and kills. Where bubblewrap does not work nothing runs: InfrastructureError.

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
import random
import secrets
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.errors import InfrastructureError
from pipelines.verifiers.interpreter import HOME, interpreter

STARTUP_SECONDS = 20.0
INSTALL = "install it with `apt-get install bubblewrap` and allow unprivileged user namespaces"
Event = tuple[int, int, str, Any]
_SLOTS = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))


@dataclass(frozen=True)
class ProgramLimits:
    """Bounds of one program. seconds: wall time per test (a problem's `time_limit` replaces it); total: of all tests together."""

    seconds: float = 10.0
    total_seconds: float = 60.0
    memory: int = 1 << 30
    processes: int = 32
    file_size: int = 16 << 20
    tmpfs: int = 64 << 20
    output: int = 1 << 20


@dataclass
class Run:
    """What a sandbox reported: events (item, test, status, payload), and how it ended: closed (it left by itself), timeout or output (killed)."""

    events: list[Event] = field(default_factory=list)
    end: str = "closed"
    status: int = 0


def _system_binds() -> list[str]:
    arguments = []
    for name in ("lib", "lib64", "lib32"):
        if os.path.isdir(f"/usr/{name}"):
            arguments += ["--ro-bind", f"/usr/{name}", f"/usr/{name}"]
        if os.path.islink(f"/{name}"):
            arguments += ["--symlink", os.readlink(f"/{name}").lstrip("/"), f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            arguments += ["--ro-bind", f"/{name}", f"/{name}"]
    return arguments


def recipe(tmpfs: int) -> list[str]:
    """The bubblewrap command up to, and without, the program to run."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise InfrastructureError(f"The sandbox needs bubblewrap, which is not on this machine: {INSTALL}.")
    isolation = [bwrap, "--unshare-user", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    identity = ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--setenv", "PATH", f"{HOME}/bin", "--setenv", "HOME", "/tmp"]
    folders = ["--proc", "/proc", "--dev", "/dev", "--size", str(tmpfs), "--perms", "0700", "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return [*isolation, *identity, *_system_binds(), *interpreter().binds(), *folders]


def as_nobody() -> list[str]:
    """The command prefix that leaves root. A uid of its own per sandbox keeps process counts of parallel sandboxes apart."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise InfrastructureError("The sandbox needs setpriv when started by root: install it with `apt-get install util-linux`.")
    uid = str(random.SystemRandom().randrange(61000, 65000))
    return [setpriv, "--reuid", uid, "--regid", uid, "--clear-groups"]


LAUNCHER = """
import marshal
stream = open(0, "rb", closefd=False)
def execute(source, names): exec(source, names)
exec(marshal.load(stream))
"""
"""Reads the harness, then the job. `execute` lives here so that programs do not inherit the harness's __future__ imports; it takes text, because
`compile` would first build the ast module's types, 3 ms in each new process."""


@functools.cache
def _command(tmpfs: int) -> tuple[str, ...]:
    return (*recipe(tmpfs), f"{HOME}/bin/python3", "-I", "-S", "-E", "-B", "-X", "utf8", "-c", LAUNCHER)


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
        descriptors = [writing]
        if candidate is not None:
            (calls, call), (answer, answers) = _pipe(stack), _pipe(stack)
            descriptors += [call, answer]
            stack.enter_context(_sandbox({"role": "candidate", "items": [candidate]}, (calls, answers), limits))
        role = "batch" if batch else "single" if candidate is None else "examiner"
        process, errors = stack.enter_context(_sandbox({"role": role, "nonce": nonce, "items": list(items)}, descriptors, limits))
        outcome = _listen(reading, nonce, limits.output * max(4, len(items)), quiet_seconds, total_seconds)
        outcome.status = _leave(process) if outcome.end == "closed" else 0
        process.kill()
        process.wait()
        errors.seek(0)
        said = errors.read(2000).decode("utf-8", "replace").strip()
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


@contextmanager
def _sandbox(job: dict[str, Any], descriptors: Sequence[_End], limits: ProgramLimits) -> Iterator[tuple[subprocess.Popen[bytes], BinaryIO]]:
    """A sandbox at work on `job`, and its standard error. It gets `descriptors`, which are closed here, and does not outlive the block."""
    with open(os.memfd_create("touchstone-job"), "w+b") as stream, open(os.memfd_create("touchstone-errors"), "w+b") as errors:
        stream.write(_harness())
        marshal.dump(job, stream)
        stream.seek(0)
        passed = tuple(end.fileno() for end in descriptors)
        command = [*as_nobody(), *_command(limits.tmpfs), *map(str, passed)]
        try:
            process = subprocess.Popen(command, stdin=stream, stdout=subprocess.DEVNULL, stderr=errors, pass_fds=passed, env={})
        except OSError as error:
            raise InfrastructureError(f"The sandbox could not be started ({error}): {INSTALL}.") from error
        finally:
            for end in descriptors:
                end.close()
        try:
            yield process, errors
        finally:
            process.kill()
            process.wait()


def _leave(process: subprocess.Popen[bytes]) -> int:
    """Exit status of a sandbox that closed its result pipe: it needs a moment to end by itself."""
    try:
        return process.wait(1.0)
    except subprocess.TimeoutExpired:
        return 0


def _listen(reading: _End, nonce: str, cap: int, quiet_seconds: float, total_seconds: float) -> Run:
    outcome, buffer, received = Run(), b"", 0
    poller = select.poll()
    poller.register(reading.fileno(), select.POLLIN | select.POLLHUP)
    now = time.monotonic()
    quiet, total = now + STARTUP_SECONDS, now + STARTUP_SECONDS + total_seconds
    while True:
        left = min(quiet, total) - time.monotonic()
        if left <= 0 or not poller.poll(max(1, left * 1000)):
            outcome.end = "timeout"
            return outcome
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
