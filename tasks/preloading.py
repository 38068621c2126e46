"""The process that forks the stages of a run (`pipelines.preloaded`), from the side of the run."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines import paths

OWN = ("TOUCHSTONE_", "PREFECT_", "MLFLOW_", "DVC_")
"""Variables that no library reads which is imported before a stage begins, so that they may change between stages."""


class StageProcess:
    """A stage that the preloaded process has forked, with the part of `subprocess.Popen` that is used here."""

    def __init__(self, answers: int, arguments: list[str]) -> None:
        """answers: the pipe that its pid and its exit code come from."""
        self.args = arguments
        self.returncode: int | None = None
        self._answers = answers
        pid = self._line(None)
        if not pid:
            raise RuntimeError("the process that forks the stages is gone; see .touchstone/work/preloaded.log")
        self.pid = int(pid)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and (line := self._line(timeout)) is not None:
            self.returncode = int(line) if line else -signal.SIGKILL  # the kernel kills a stage whose starter is gone
            os.close(self._answers)
        return self.returncode

    def _line(self, timeout: float | None) -> str | None:
        """The next answer, whole: they are short and come in one piece. Empty where none can come, None where none has come in time."""
        if not select.select([self._answers], [], [], timeout)[0]:
            return None
        line = b""
        while not line.endswith(b"\n") and (byte := os.read(self._answers, 1)):
            line += byte
        return line.decode().strip()


class Preloaded:
    """Stages of one project, forked from one process that lives as long as this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._state: Any = None
        self._stages: list[StageProcess] = []
        self._older: list[tuple[subprocess.Popen[bytes], socket.socket]] = []
        self._lock = threading.RLock()

    def start(self, project: Path, *, libraries: bool) -> None:
        """Start the process, which imports the libraries or none, unless one of this project and this environment is there; returns at once.

        The kernel ends it with the thread that starts it, which therefore has to outlive the stages.
        """
        with self._lock:
            wanted = _state(project)
            if self._process and self._process.poll() is None and self._state == wanted:
                return
            self._set_aside()
            ours, its = socket.socketpair()
            log = project / paths.WORK / "preloaded.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "pipelines.preloaded", str(its.fileno()), str(os.getpid()), *(["libraries"] if libraries else [])]
            environment = os.environ | {"PYTHONUNBUFFERED": "1"}
            with its, log.open("wb") as out:
                self._process = subprocess.Popen(
                    command, cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    pass_fds=[its.fileno()], start_new_session=True,
                )  # fmt: skip
            self._requests, self._state = ours, wanted

    def stage(
        self, project: Path, arguments: list[str], stderr: Any, *, needs_libraries: bool, more: Mapping[str, str] | None = None
    ) -> StageProcess:
        """Start `python -m pipelines` with these arguments. Its output goes where this process's goes, its errors to the file `stderr`.

        more: variables beside those of this process's environment.
        """
        with self._lock:  # one request at a time, up to the pid
            self.start(project, libraries=False)
            assert self._requests
            asked = {"arguments": arguments, "environment": {**os.environ, **(more or {})}, "needs_libraries": needs_libraries}
            request = json.dumps(asked) + "\n"
            answers, its = os.pipe()
            try:
                sent = socket.send_fds(self._requests, [request.encode()], [1, stderr.fileno(), its])
                self._requests.sendall(request.encode()[sent:])
            finally:
                os.close(its)
            stage = StageProcess(answers, arguments)
            self._stages = [*(other for other in self._stages if other.returncode is None), stage]
            return stage

    def stop(self) -> None:
        """End the process, and what it runs."""
        self._stages = []
        self._set_aside()

    def _set_aside(self) -> None:
        """Have no process, for there to be another. What runs stages lives on until they are done."""
        if self._process and self._requests:
            self._older.append((self._process, self._requests))
            self._process = self._requests = None
        if not any(stage.returncode is None for stage in self._stages):
            for process, requests in self._older:
                process.kill()
                process.wait()
                requests.close()
            self._older = []


def _state(project: Path) -> Any:
    """What decides what the process has imported: another environment, or other packages installed, need another process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
    return project, os.stat(sysconfig.get_path("purelib")).st_mtime_ns, environment


PRELOADED = Preloaded()
