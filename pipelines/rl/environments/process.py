"""A script of ours in a process that can be killed, in an interpreter that may be that of another virtual environment."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import InfrastructureError
from pipelines.loopback import direct
from pipelines.records import Problem

LONGEST = 1 << 20
"""Bytes of one line."""


def told_of(problem: Problem) -> dict[str, Any]:
    """What a program outside gets to know of a problem."""
    return {"prompt": problem.prompt, "answer": problem.answer, "domain": problem.domain, **problem.args}


class Process:
    """Speaks JSON, a line each, over standard input and output. It ends with our own process, whose end closes its input. Programs that stand beside
    its interpreter are found first, as where a virtual environment is activated."""

    def __init__(self, python: str, script: Path, *arguments: str) -> None:
        inherited = os.environ
        modules = os.pathsep.join(filter(None, [os.getcwd(), inherited.get("PYTHONPATH", "")]))
        beside = os.path.dirname(python)
        programs = os.pathsep.join(filter(None, [beside and os.path.abspath(beside), inherited.get("PATH", os.defpath)]))
        try:
            self._process = subprocess.Popen(
                [python, str(script), *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
                env={**inherited, **direct(inherited), "PYTHONPATH": modules, "PATH": programs},
            )  # fmt: skip
        except OSError as error:
            raise InfrastructureError(f"{python} cannot be run: {error}") from None
        self._buffer = b""
        self.gone = False

    def send(self, message: Mapping[str, Any]) -> None:
        """
        Raises:
            InfrastructureError: the process is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            self.kill()
            raise InfrastructureError("the process of the environment is gone") from None

    def receive(self, seconds: float | None) -> dict[str, Any]:
        """The next line, within the seconds and the bytes, or the process is killed.

        Raises:
            InfrastructureError: it took too long, said too much or no JSON object, or ended.
        """
        assert self._process.stdout is not None
        until = None if seconds is None else time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = None if until is None else max(until - time.monotonic(), 0)
                chunk = os.read(self._process.stdout.fileno(), 1 << 16) if selector.select(left) else None
                if chunk is None:
                    raise self._failed(f"took more than {seconds:g} seconds")
                if not chunk:
                    raise self._failed("ended")
                self._buffer += chunk
                if len(self._buffer) > LONGEST:
                    raise self._failed(f"answered more than {LONGEST} bytes")
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise self._failed(f"said {line[:80]!r}")
        return told

    def _failed(self, why: str) -> InfrastructureError:
        self.kill()
        return InfrastructureError(f"the process of the environment {why}")

    def kill(self) -> None:
        """End it, and what it started in its group."""
        self.gone = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
