"""Worker processes that can be killed: `ask` sends one request to a free worker and gets its reply or a Verdict that says what went wrong.

Each kind ("math", "text", "logic") has up to `size` processes, started when first needed. A worker over its wall limit is
killed and the next request gets a new one; other workers never notice. Works from any thread: signals and alarms play no
part. Workers are started by one thread that lives as long as the pool, because Linux ties "die with the parent" to the
thread that started a process.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from pipelines.errors import InfrastructureError
from pipelines.records import Outcome, Verdict
from pipelines.verifiers.interpreter import HOME
from pipelines.verifiers.judgement import Limits, failed
from pipelines.verifiers.sandbox import recipe, require_sandbox

START_SECONDS = 60.0
MAX_REPLY = 1 << 20
ENGINE = Path(__file__).with_name("engine.py")


class _Timeout(Exception):
    """The worker did not answer in time."""


class _Died(Exception):
    """The worker closed its reply pipe."""


class Worker:
    """One process of `engine.py` and the pipes to it."""

    def __init__(self, kind: str, memory: int) -> None:
        reading, writing = os.pipe()
        try:
            self.process = subprocess.Popen(
                _command(kind, memory, writing), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(writing,)
            )
        finally:
            os.close(writing)
        self._reading, self._buffer = reading, b""

    def receive(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        poller = select.poll()
        poller.register(self._reading, select.POLLIN | select.POLLHUP)
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(max(1, left * 1000)):
                raise _Timeout
            chunk = os.read(self._reading, 1 << 16)
            if not chunk or len(self._buffer) > MAX_REPLY:
                raise _Died
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def send(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise _Died from error

    def kill(self) -> int:
        """Kill and reap; the exit status, which tells what a worker died of that was already dead."""
        self.process.kill()
        status = self.process.wait()
        if self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass
        if self._reading >= 0:
            os.close(self._reading)
            self._reading = -1
        return status


def _command(kind: str, memory: int, writing: int) -> list[str]:
    if kind != "logic":
        return [sys.executable, "-P", str(ENGINE), kind, str(memory), str(os.getpid()), str(writing)]
    packages = sysconfig.get_path("purelib")
    start = "import sys; sys.path.append('/packages'); sys.argv[0] = '/engine.py'; exec(compile(open('/engine.py').read(), 'engine', 'exec'))"
    binds = ["--ro-bind", packages, "/packages", "--ro-bind", str(ENGINE), "/engine.py"]
    return [*recipe(64 << 20), *binds, f"{HOME}/bin/python3", "-I", "-S", "-B", "-c", start, kind, str(memory), "0", str(writing)]


class Workers:
    """Up to `size` workers of each kind, shared by any number of threads."""

    def __init__(self, size: int, limits: Limits) -> None:
        self.limits, self._size = limits, size
        self._idle: dict[str, queue.LifoQueue[Worker | None]] = {}
        self._alive: set[Worker] = set()
        self._lock, self._closed = Lock(), False
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="verifier-starter")

    def ask(self, kind: str, request: dict[str, Any]) -> dict[str, Any] | Verdict:
        """The reply, or a verdict: timeout, crash (of the engine on this item), infrastructure (the engine cannot run here)."""
        free = self._queue(kind)
        worker = free.get()
        started = time.monotonic()
        try:
            worker = worker or self._start(kind)
            started = time.monotonic()
            worker.send(request)
            reply = worker.receive(self.limits.engine_seconds)
        except InfrastructureError as error:
            return failed(Outcome.INFRASTRUCTURE, str(error))
        except (_Timeout, _Died, ValueError) as trouble:
            status = self._discard(worker)
            worker = None
            seconds = time.monotonic() - started
            if isinstance(trouble, _Timeout):
                return Verdict(Outcome.TIMEOUT, 0.0, None, f"no judgement after {self.limits.engine_seconds:g} s", seconds)
            foreign = status == -signal.SIGKILL or self._closed
            return Verdict(Outcome.INFRASTRUCTURE if foreign else Outcome.CRASH, 0.0, None, f"the {kind} engine died, status {status}", seconds)
        except BaseException:  # interrupted half-way: a worker with an unread reply must not serve the next item
            self._discard(worker)
            worker = None
            raise
        else:
            if reply.get("fatal"):
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

    def _start(self, kind: str) -> Worker:
        if kind == "logic":
            require_sandbox()
        worker = self._starter.submit(Worker, kind, self.limits.engine_memory).result()
        with self._lock:
            self._alive.add(worker)
            if self._closed:
                worker.process.kill()
        try:
            worker.receive(START_SECONDS)
        except (_Timeout, _Died) as error:
            status = self._discard(worker)
            raise InfrastructureError(f"The {kind} engine does not start (status {status}): install the project's requirements.") from error
        return worker

    def _discard(self, worker: Worker | None) -> int:
        if worker is None:
            return 0
        with self._lock:
            self._alive.discard(worker)
        return worker.kill()

    def close(self) -> None:
        """Kill every worker, busy or not; the thread that was waiting for a busy one gets an infrastructure verdict and cleans up after it."""
        with self._lock:
            self._closed = True
            for worker in self._alive:
                worker.process.kill()
        for free in self._idle.values():
            for _ in range(self._size):
                self._discard(free.get())
        self._starter.shutdown(wait=True)
