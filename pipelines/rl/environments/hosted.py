"""Tools of a user's environment class, in processes that can be killed (host.py says what the class is)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pipelines.errors import InfrastructureError, UserError
from pipelines.records import Problem

HOST = Path(__file__).with_name("host.py")
STARTUP_SECONDS = 60.0
LONGEST = 1 << 20
"""Bytes of one answer."""


class Hosted:
    """Episodes of the class `factory` (MODULE:CLASS), shared out among `workers` processes of the interpreter `python`.

    A call that takes more than `seconds` ends its process: this episode, and the others that were in it, are `infrastructure`.
    """

    def __init__(self, factory: str, seconds: float, workers: int, python: str | None) -> None:
        self.factory, self.seconds, self.python = factory, seconds, python or sys.executable
        self._workers = [_Worker(self) for _ in range(workers)]
        self._numbers = itertools.count()
        self.schemas: dict[str, dict[str, Any]] = self._workers[0].tools()

    async def begin(self, problem: Problem) -> HostedSession:
        """
        Raises:
            InfrastructureError: the class could not be made, or its `reset` failed.
        """
        number = next(self._numbers)
        session = HostedSession(self._workers[number % len(self._workers)], number)
        row = {"prompt": problem.prompt, "answer": problem.answer, "domain": problem.domain, **problem.args}
        said = await session.ask("reset", row)
        session.said = "" if said is None else str(said)
        return session


class HostedSession:
    """One instance of the class."""

    said = ""

    def __init__(self, worker: _Worker, number: int) -> None:
        self._worker, self._number = worker, number

    async def call(self, tool: str, arguments: dict[str, Any] | str) -> str:
        """See `Session.call`."""
        if isinstance(arguments, str):
            names = list(self._worker.box.schemas[tool]["function"]["parameters"]["properties"])
            if len(names) != 1:
                raise ValueError(f"{tool} takes {', '.join(names) or 'no argument'}: write them by name")
            arguments = {names[0]: arguments}
        try:
            return str(await self.ask(tool, arguments))
        except _Raised as error:
            raise ValueError(str(error)) from None

    async def reward(self) -> float | None:
        """See `Session.reward`."""
        value = await self.ask("get_reward", {})
        if value is None:
            return None
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InfrastructureError(f"get_reward of the environment gave {value!r}; expected a number in [0, 1], or None")
        return float(value)

    async def end(self) -> None:
        """See `Session.end`."""
        with contextlib.suppress(InfrastructureError):  # then it is over all the more
            await self.ask("end", {})

    async def ask(self, method: str, arguments: dict[str, Any]) -> Any:
        """
        Raises:
            InfrastructureError: the process is gone, or too slow, or a method that is no tool raised.
        """
        request = {"episode": self._number, "method": method, "arguments": arguments}
        return await asyncio.to_thread(self._worker.ask, request)


class _Raised(InfrastructureError):
    """The class' own code raised."""


class _Worker:
    """A process, started when it is first asked, and anew when it is gone. One request at a time."""

    def __init__(self, box: Hosted) -> None:
        self.box = box
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._lives = 0
        self._born: dict[int, int] = {}
        """By episode, in which life of the process it began."""

    def tools(self) -> dict[str, dict[str, Any]]:
        """
        Raises:
            UserError: there is no such class, or it has no tools.
        """
        with self._lock:
            told = self._start()
        if "error" in told:
            raise UserError(f"environment '{self.box.factory}' cannot be had: {told['error']}")
        if not told["tools"]:
            raise UserError(f"environment '{self.box.factory}' has no public method beside reset and get_reward, so no tool")
        return told["tools"]

    def ask(self, request: dict[str, Any]) -> Any:
        """The value of an answer."""
        number = request["episode"]
        with self._lock:
            if self._process is None:
                self._start()
            if request["method"] == "reset":
                self._born[number] = self._lives
            elif self._born.get(number) != self._lives:
                raise InfrastructureError("the process of the environment ended under the episode")
            told = self._exchange(request, self.box.seconds)
            if request["method"] == "end":
                self._born.pop(number, None)
        if "error" in told:
            raise _Raised(told["error"])
        return told["value"]

    def _start(self) -> dict[str, Any]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")]))}
        self._process = subprocess.Popen(
            [self.box.python, str(HOST), self.box.factory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        self._lives += 1
        return self._read(STARTUP_SECONDS)

    def _exchange(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self.kill()
            raise InfrastructureError("the process of the environment is gone") from None
        return self._read(seconds)

    def _read(self, seconds: float) -> dict[str, Any]:
        """One line, within the seconds and the bytes."""
        assert self._process is not None and self._process.stdout is not None
        buffer, until = b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not buffer.endswith(b"\n"):
                chunk = os.read(self._process.stdout.fileno(), 1 << 16) if selector.select(max(until - time.monotonic(), 0)) else None
                buffer += chunk or b""
                if not chunk or len(buffer) > LONGEST:
                    self.kill()
                    why = f"took more than {seconds:g} seconds" if chunk is None else "ended" if not chunk else f"answered more than {LONGEST} bytes"
                    raise InfrastructureError(f"the process of the environment {why}")
        return json.loads(buffer)

    def kill(self) -> None:
        """End the process and what it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None
