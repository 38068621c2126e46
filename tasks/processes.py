"""A stage's science as a process that can always be stopped, whole.

`preloading.PRELOADED` starts it. It leads its own session, so one signal reaches all it starts; it ends when this process is gone, so
kill -9 leaves no orphan. Under `dvc repro` this process is itself a child that nobody would stop, so it watches DVC and ends the
stage when DVC is gone: an orphan would later write into outputs that another run has recorded.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pipelines import paths
from pipelines.errors import UserError
from pipelines.graph import LOADING
from pipelines.progress import Journal
from pipelines.store import write_json
from tasks import side_by_side
from tasks.preloading import PRELOADED

PATIENCE = 3.0
"""Seconds between asking a process group to end and killing it."""
POLL = 0.5
"""Seconds between looks at the child, its journal and DVC."""
Rows = Callable[[list[dict[str, Any]]], None]


class Process(Protocol):
    """What `subprocess.Popen` and `preloading.StageProcess` have in common."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


def run_stage(project: Path, stage: str, given: dict[str, Any], on_rows: Rows, parts: int = 1) -> None:
    """Run what `python -m pipelines STAGE` runs to its end; `on_rows` gets the journal's new rows as they come.

    parts: between so many stages the machine is divided (`side_by_side.sharing`).

    Raises:
        UserError: the child said in one sentence what the user can mend.
        RuntimeError: it failed otherwise; its error output is the message.
    """
    work = project / paths.WORK / stage
    work.mkdir(parents=True, exist_ok=True)
    settings, errors = work / "settings.json", work / "stderr.log"
    write_json(settings, given)
    arguments = [stage, "--settings", str(settings), "--root", str(project), "--keep-work"]
    if parts > 1:
        arguments += ["--lines", *(["--threads", str(count)] if (count := side_by_side.threads(parts)) else [])]
    follow = _Follower(Journal(work / "journal.jsonl", stage), on_rows)
    with errors.open("wb") as stderr, whole(PRELOADED.stage(project, arguments, stderr, needs_libraries=given["kind"] in LOADING)) as process:
        while process.poll() is None:
            try:
                process.wait(POLL)
            except subprocess.TimeoutExpired:
                follow.look()
                if side_by_side.ENDING.is_set():
                    raise KeyboardInterrupt from None
                if not guardian_alive():
                    raise UserError(f"{stage}: stopped, because the DVC that ran it is gone") from None
        follow.look()
    said = errors.read_text(errors="replace").strip()
    if process.returncode == 2 and said:
        raise UserError(said.splitlines()[-1])
    if process.returncode == -signal.SIGKILL:
        raise UserError(f"{stage}: the process was killed from outside; if that was for lack of memory, lower batch_size or micro_batch")
    if process.returncode:
        raise RuntimeError(f"stage {stage} ended with exit code {process.returncode}\n{said}")


@contextmanager
def whole(process: Process) -> Iterator[Process]:
    """A process that leads its own session does not outlive the block, nor does anything it started."""
    try:
        yield process
    finally:
        stop_group(process)


def stop_group(process: Process, patience: float = PATIENCE) -> None:
    """Ask the child's group to end, then kill what is left; returns when the child is reaped."""
    try:
        if process.poll() is None:
            _signal_group(process.pid, signal.SIGTERM)
            process.wait(patience)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also when the user presses Ctrl-C again
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _signal_group(leader: int, number: signal.Signals) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        pass


class _Follower:
    """Hands on the rows that a journal gains. What an earlier run left is passed over until the child has cut or extended it."""

    def __init__(self, journal: Journal, on_rows: Rows) -> None:
        self.journal = journal
        self.on_rows = on_rows
        self.before = self._state()
        self.seen = float("-inf")

    def _state(self) -> tuple[int, int] | None:
        if not self.journal.path.exists():
            return None
        status = self.journal.path.stat()
        return status.st_ino, status.st_size

    def look(self) -> None:
        if self._state() == self.before:
            return
        rows = [row for row in self.journal.rows() if row["step"] > self.seen]
        if rows:
            self.seen = max(row["step"] for row in rows)
            self.on_rows(rows)


def guardian() -> tuple[int, float] | None:
    """(pid, start time) of the `dvc` that runs this stage, if one does."""
    if "DVC_STAGE" not in os.environ:
        return None
    import psutil  # comes with DVC

    for ancestor in psutil.Process().parents():
        try:
            words = [os.path.basename(word) for word in ancestor.cmdline()[:4]]
        except psutil.Error:
            continue
        if "dvc" in words:
            return ancestor.pid, ancestor.create_time()
    return None


_GUARDIAN = guardian()


def guardian_alive() -> bool:
    """False once the `dvc` that started this process is gone."""
    if _GUARDIAN is None:
        return True
    import psutil

    pid, started = _GUARDIAN
    try:
        process = psutil.Process(pid)
        return process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
