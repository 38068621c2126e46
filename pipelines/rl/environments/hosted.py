"""Tools of a user's environment class, in processes that can be killed (host.py says what the class is)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import threading
from pathlib import Path
from typing import Any

from pipelines.errors import InfrastructureError, UserError
from pipelines.records import Problem
from pipelines.rl.environments.conversation import worth
from pipelines.rl.environments.process import Process, told_of

HOST = Path(__file__).with_name("host.py")
STARTUP_SECONDS = 60.0


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
        said = await session.ask("reset", told_of(problem))
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
        return worth(await self.ask("get_reward", {}), "get_reward of the environment")

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
        self._process: Process | None = None
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
            if self._process is None or self._process.gone:
                self._start()
            assert self._process is not None
            if request["method"] == "reset":
                self._born[number] = self._lives
            elif self._born.get(number) != self._lives:
                raise InfrastructureError("the process of the environment ended under the episode")
            self._process.send(request)
            told = self._process.receive(self.box.seconds)
            if request["method"] == "end":
                self._born.pop(number, None)
        if "error" in told:
            raise _Raised(told["error"])
        return told["value"]

    def _start(self) -> dict[str, Any]:
        self._process = Process(self.box.python, HOST, self.box.factory)
        self._lives += 1
        return self._process.receive(STARTUP_SECONDS)
