"""The outside program as a process: in an environment of its own, heard line by line, and gone when the stage is, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pipelines import guard
from pipelines.errors import UserError
from pipelines.loopback import direct
from pipelines.store import replacing

KEPT = (
    "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "MKL_NUM_THREADS", "GOMP_SPINCOUNT",
)  # fmt: skip
"""Variables that a program gets unasked."""
FOLDER = "TOUCHSTONE_STAGE"
"""Variable with the path of its folder."""
POLL = 0.25
"""Seconds between looks at the process and at what it leaves."""
DRAIN_SECONDS = 5.0
"""For the last lines of a program that has ended to arrive."""
LINE, LONGEST, LOG = 2000, 1 << 16, 16 << 20
"""Characters of a line that are said, bytes after which what has no end is taken for a line, and bytes of the log."""
REDRAWN = 5.0
"""Seconds between two states of a line that the program draws again and again, such as a progress bar."""
_UNPRINTABLE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


def end_earlier(mark: Path) -> None:
    """End what a killed run may have left a moment ago: it would write where the next one does."""
    if mark.exists():
        guard.end(mark.read_text())
        mark.unlink()


def searched(programs: Path | None, inherited: Mapping[str, str]) -> str:
    """Where programs are looked for: in the folder of a virtual environment, then where everybody looks."""
    return os.pathsep.join([*([str(programs)] if programs else []), inherited.get("PATH", os.defpath)])


def variables(environment: Path | None, names: Sequence[str], folder: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of the program. environment: a virtual environment, whose programs come first. names: further variables that it gets.

    Raises:
        UserError: one of them is not set.
    """
    if missing := [name for name in names if name not in inherited]:
        raise UserError(f"variables: {', '.join(missing)} is not set")
    given = {name: inherited[name] for name in (*KEPT, *names) if name in inherited}
    path = searched(environment / "bin" if environment else None, inherited)
    given |= {"PATH": path, "PYTHONPATH": str(folder), FOLDER: str(folder)}
    given |= {"VIRTUAL_ENV": str(environment)} if environment else {}
    return given | direct(inherited) | {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def words(command: Sequence[str], code: Sequence[str], root: Path) -> list[str]:
    """The command with what it names of its code by whole paths."""
    return [str(root / word) if any(word == entry or word.startswith(f"{entry}/") for entry in code) else word for word in command]


@dataclass
class Program:
    """One run of it. folder: where it starts. log: a file for what it says. mark: a file by which the next run ends what a kill has left
    (`end_earlier`). secrets: values that are neither said nor written."""

    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    log: Path
    mark: Path
    say: Callable[[str], None]
    secrets: Sequence[str] = ()
    last: str = field(default="", init=False)
    """The last line that it has said."""

    def run(self, look: Callable[[], None], timeout: float | None) -> int:
        """Its exit code, negative for a signal. look: is called a few times a second, and once at the end; may raise, which ends the program.

        Raises:
            UserError: there is no such program, or it took longer than `timeout` seconds.
        """
        if not shutil.which(self.command[0], path=self.environment["PATH"]):
            raise UserError(f"command: there is no program '{self.command[0]}' in {self.environment['PATH']}")
        watched = guard.Guard()
        process = None
        try:
            with replacing(self.mark) as temporary:
                temporary.write_text(watched.mark)
            process = subprocess.Popen(
                list(self.command), cwd=self.folder, env={**self.environment, **watched.environment}, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            with self.log.open("wb") as log:
                hear = _Ear(process, log, self._without_secrets, self._heard)
                self._follow(process, hear, look, timeout)
                watched.close()  # what it has left running would keep its output open
                hear.rest()
            look()
            return process.wait()
        except OSError as error:
            if process is None:
                raise UserError(f"command: {self.command[0]} cannot be run: {error.strerror}") from None
            raise
        finally:
            watched.close()
            if process:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self.mark.unlink(missing_ok=True)

    def _follow(self, process: subprocess.Popen[bytes], hear: _Ear, look: Callable[[], None], timeout: float | None) -> None:
        started = time.monotonic()
        while process.poll() is None:
            hear.some(POLL)
            look()
            if timeout is not None and time.monotonic() - started > timeout:
                raise UserError(f"timeout: the program ran for more than {timeout:g} seconds, and was ended")

    def _without_secrets(self, said: bytes) -> bytes:
        for secret in filter(None, self.secrets):
            said = said.replace(secret.encode(errors="surrogateescape"), b"***")
        return said

    def _heard(self, line: str) -> None:
        self.last = line
        self.say(line)


class _Ear:
    """Hears lines. A line that is drawn again is said every few seconds, and when it is done."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], clean: Callable[[bytes], bytes], say: Callable[[str], None]) -> None:
        assert process.stdout is not None
        self._out, self._log, self._clean, self._say = process.stdout, log, clean, say
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)
        self._buffer, self._written, self._drawn, self._open = b"", 0, float("-inf"), True

    def some(self, seconds: float) -> None:
        """Wait so long at most for something, and say what has become whole lines."""
        if not self._open:
            time.sleep(seconds)
        elif self._selector.select(seconds):
            chunk = os.read(self._out.fileno(), 1 << 16)
            self._open = bool(chunk)
            self._buffer += chunk
            *whole, self._buffer = re.split(rb"(?<=[\r\n])", self._buffer)
            if len(self._buffer) > LONGEST:
                whole, self._buffer = [*whole, self._buffer], b""
            for piece in whole:
                self._piece(piece)

    def rest(self) -> None:
        """What is still on its way from a program that has ended."""
        until = time.monotonic() + DRAIN_SECONDS
        while self._open and time.monotonic() < until:
            self.some(POLL)
        self._piece(self._buffer)
        self._selector.close()
        self._out.close()

    def _piece(self, piece: bytes) -> None:
        piece = self._clean(piece)
        self._log.write(piece[: max(LOG - self._written, 0)])
        self._log.flush()
        self._written += len(piece)
        text = _UNPRINTABLE.sub("", piece.decode(errors="replace").replace("\t", " ")).strip()[:LINE]
        now = time.monotonic()
        if text and (not piece.endswith(b"\r") or now - self._drawn >= REDRAWN):
            self._drawn = now if piece.endswith(b"\r") else self._drawn
            self._say(text)
