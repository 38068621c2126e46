"""Worker processes that can be killed: `ask` sends one request to a free worker and gets its reply or a Verdict that says what went wrong.

Each kind ("math", "text", "similarity", "logic") has one engine (engine.py), which loads its libraries once and forks up to `size` workers in
milliseconds. A worker over its wall limit is killed and the next request gets a new one; other workers never notice. Works from any
thread: signals and alarms play no part. Engines are started by one thread that lives as long as the pool, because Linux ties "die with
the parent" to the thread that started a process.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from pipelines.errors import InfrastructureError
from pipelines.records import Outcome, Verdict
from pipelines.verifiers import isolation, seccomp
from pipelines.verifiers.interpreter import HOME
from pipelines.verifiers.judgement import Limits, failed
from pipelines.verifiers.sandbox import require_sandbox

START_SECONDS = 60.0
FORK_SECONDS = 10.0
MAX_REPLY = 1 << 20
SCRATCH = 1 << 20
"""Bytes that the logic engine can write while its libraries load."""
ENGINE = Path(__file__).with_name("engine.py")


class _Timeout(Exception):
    """The worker did not answer in time."""


class _Died(Exception):
    """The worker closed its reply pipe, or the engine its socket."""


class Worker:
    """A fork of an engine: its pidfd, and the pipes to it."""

    def __init__(self, handle: int, requests: int, replies: int) -> None:
        self._handle, self._requests, self._replies, self._buffer = handle, requests, replies, b""

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Its reply to one request."""
        deadline = time.monotonic() + seconds
        self._send(json.dumps(request).encode() + b"\n", deadline)
        poller = select.poll()
        poller.register(self._replies, select.POLLIN | select.POLLHUP)
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(max(1, left * 1000)):
                raise _Timeout
            chunk = os.read(self._replies, 1 << 16)
            if not chunk or len(self._buffer) > MAX_REPLY:
                raise _Died
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _send(self, data: bytes, deadline: float) -> None:
        """Write without waiting longer than the deadline for a worker that does not read."""
        poller = select.poll()
        poller.register(self._requests, select.POLLOUT)
        while data:
            if not poller.poll(max(1, (deadline - time.monotonic()) * 1000)) or time.monotonic() > deadline:
                raise _Timeout
            try:
                data = data[os.write(self._requests, data) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise _Died from error

    def kill(self) -> None:
        """Kill it, whatever it does, and let go of it; the engine's kernel entry reaps it."""
        try:
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        except ProcessLookupError:
            pass
        for descriptor in (self._handle, self._requests, self._replies):
            os.close(descriptor)


class Engine:
    """The process of one kind from which workers are forked."""

    def __init__(self, kind: str, memory: int) -> None:
        self._control, theirs = socket.socketpair()
        self._control.settimeout(START_SECONDS)
        with theirs:
            nothing = subprocess.DEVNULL
            with _filter(kind) as rules:
                command, passed = _command(kind, memory, theirs.fileno(), rules), [theirs.fileno(), *([] if rules is None else [rules])]
                self.process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, pass_fds=passed)
        try:
            ready = self._control.recv(1)
        except TimeoutError:
            ready = b""
        if not ready:
            raise InfrastructureError(f"The {kind} engine does not start (status {self.kill()}): install the project's requirements.")
        self._control.settimeout(FORK_SECONDS)

    def fork(self) -> Worker:
        """A new worker.

        Raises:
            _Died: the engine is gone.
        """
        (requests_in, requests_out), (replies_in, replies_out) = os.pipe(), os.pipe()
        os.set_blocking(requests_out, False)
        try:
            socket.send_fds(self._control, [b"f"], [requests_in, replies_out])
            _, handles, _, _ = socket.recv_fds(self._control, 1, 1)
        except OSError:
            handles = []
        finally:
            os.close(requests_in)
            os.close(replies_out)
        if not handles:
            os.close(requests_out)
            os.close(replies_in)
            raise _Died
        return Worker(handles[0], requests_out, replies_in)

    def kill(self) -> int:
        """Kill and reap it; its forks die with it. Returns the exit status."""
        self.process.kill()
        self._control.close()
        return self.process.wait()


@contextmanager
def _filter(kind: str) -> Iterator[int | None]:
    """A descriptor with the sandbox's filter of system calls; None where there is none."""
    filtered = seccomp.program() if kind == "logic" else None
    if filtered is None:
        yield None
        return
    with open(os.memfd_create("touchstone"), "w+b") as file:
        file.write(filtered)
        file.seek(0)
        yield file.fileno()


def _command(kind: str, memory: int, control: int, rules: int | None) -> list[str]:
    if kind != "logic":
        return [sys.executable, "-P", str(ENGINE), kind, str(memory), str(os.getpid()), str(control)]
    packages = sysconfig.get_path("purelib")
    start = "import sys; sys.path.append('/packages'); sys.argv[0] = '/engine.py'; exec(compile(open('/engine.py').read(), 'engine', 'exec'))"
    binds = ["--ro-bind", packages, "/packages", "--ro-bind", str(ENGINE), "/engine.py"]
    own = (seccomp.program(worker=True) or b"").hex()
    python = [f"{HOME}/bin/python3", "-I", "-S", "-B", "-c", start]
    return [*isolation.command(SCRATCH, rules, binds), *python, kind, str(memory), "0", str(control), own]


class Workers:
    """Up to `size` workers of each kind, shared by any number of threads."""

    def __init__(self, size: int, limits: Limits) -> None:
        self.limits, self._size = limits, size
        self._idle: dict[str, queue.LifoQueue[Worker | None]] = {}
        self._engines: dict[str, Engine] = {}
        self._alive: set[Worker] = set()
        self._lock, self._forking, self._closed = Lock(), Lock(), False
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="verifier-starter")

    def ask(self, kind: str, request: dict[str, Any]) -> dict[str, Any] | Verdict:
        """The reply, or a verdict: timeout, crash (of the engine on this item), infrastructure (the engine cannot run here)."""
        free = self._queue(kind)
        worker = free.get()
        started = time.monotonic()
        try:
            worker = worker or self._fork(kind)
            started = time.monotonic()
            reply = worker.ask(request, self.limits.engine_seconds)
        except InfrastructureError as error:
            return failed(Outcome.INFRASTRUCTURE, str(error))
        except (_Timeout, _Died, ValueError) as trouble:
            self._discard(worker)
            worker = None
            seconds = time.monotonic() - started
            if isinstance(trouble, _Timeout):
                return Verdict(Outcome.TIMEOUT, 0.0, None, f"no judgement after {self.limits.engine_seconds:g} s", seconds)
            return Verdict(Outcome.INFRASTRUCTURE if self._closed else Outcome.CRASH, 0.0, None, f"the {kind} engine died on this item", seconds)
        except BaseException:  # interrupted half-way: a worker with an unread reply must not serve the next item
            self._discard(worker)
            worker = None
            raise
        else:
            if reply.get("fatal") or kind == "logic":  # what an item has done to its worker must not judge the next
                self._discard(worker)
                worker = None
            return failed(Outcome.CRASH, str(reply["error"])) if "error" in reply else reply
        finally:
            free.put(worker)

    def _queue(self, kind: str) -> queue.LifoQueue[Worker | None]:
        with self._lock:
            if self._closed:
                raise RuntimeError("this VerifierPool is closed")
            if kind not in self._idle:
                self._idle[kind] = queue.LifoQueue()
                for _ in range(self._size):
                    self._idle[kind].put(None)
            return self._idle[kind]

    def _fork(self, kind: str) -> Worker:
        """A worker of this kind; its engine is started when there is none, and once more when it turns out to be gone."""
        if kind == "logic":
            require_sandbox()
        with self._forking:
            for _ in range(2):
                if kind not in self._engines:
                    self._engines[kind] = self._starter.submit(Engine, kind, self.limits.engine_memory).result()
                try:
                    worker = self._engines[kind].fork()
                except _Died:
                    self._engines.pop(kind).kill()
                    continue
                with self._lock:
                    self._alive.add(worker)
                    if not self._closed:
                        return worker
                self._discard(worker)
                break
        raise InfrastructureError(f"The {kind} engine does not make workers.")

    def _discard(self, worker: Worker | None) -> None:
        if worker is not None:
            with self._lock:
                known = worker in self._alive
                self._alive.discard(worker)
            if known:
                worker.kill()

    def close(self) -> None:
        """Kill every engine, and with it every worker, busy or not; a thread that waits for a busy one gets an infrastructure verdict."""
        with self._lock:
            self._closed = True
        with self._forking:
            for engine in self._engines.values():
                engine.kill()
            self._engines.clear()
        for free in self._idle.values():
            for _ in range(self._size):
                self._discard(free.get())
        self._starter.shutdown(wait=True)
