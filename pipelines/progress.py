"""What a running stage tells the world: a journal of metrics per step on disk, and one line (or a live bar) for people.

The journal is JSON lines, so that whoever started the stage can follow it; on resume it is cut back to the step of the
checkpoint, so a resumed run leaves the same file as one left alone. What the clock says is in a file beside it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from pipelines.store import replacing

BAR = 24
LARGEST = 1e300
"""Of a figure."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)


def is_figure(name: object, value: object) -> bool:
    """Can a journal, and all that reads it, take this name and value?"""
    named = isinstance(name, str) and _NAME.fullmatch(name) is not None
    return named and isinstance(value, int | float) and abs(value) < LARGEST


class Journal:
    """Append-only metrics of one stage, `{"step": n, name: value, ...}` per line; seconds and rates in <name>-clock.jsonl."""

    def __init__(self, path: Path, title: str, out: TextIO | None = None, *, lines: bool = False) -> None:
        """lines: no live bar on a terminal either, for others write there, too."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._clock = path.with_name(f"{path.stem}-clock.jsonl")
        self.title = title
        self._out = out or sys.stdout
        self._live = self._out.isatty() and not lines
        self._started = 0.0
        self._first, self._step, self._total = 0, 0, -1
        self._spoke = float("-inf")

    def part(self, name: str) -> Journal:
        """The journal of a part of the stage that is trained by itself, beside the stage's own."""
        return Journal(self.path.with_name(f"{name}-{self.path.name}"), f"{self.title} {name}", self._out, lines=not self._live)

    def cut(self, step: int) -> None:
        """Forget rows after `step`: they belong to work that is about to be done again."""
        for path in (self.path, self._clock):
            rows = [row for row in _whole_lines(path) if row["step"] <= step]
            with replacing(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def rows(self) -> list[dict[str, Any]]:
        """Every row so far, with what the clock said of its step."""
        clock = {row["step"]: row for row in _whole_lines(self._clock)}
        return [row | clock.get(row["step"], {}) for row in _whole_lines(self.path)]

    def log(self, step: int, total: int, show: str = "", clock: Mapping[str, float] | None = None, **metrics: float) -> None:
        """Record `metrics`, and what the `clock` says, at `step` of `total`; `show` is what people read beside the bar."""
        self.record(step, metrics, clock or {})
        self.show(step, total, show)

    def record(self, step: int, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        """The same without a word."""
        for path, row in ((self._clock, clock), (self.path, metrics)):
            with path.open("a") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")

    def show(self, step: int, total: int, text: str = "") -> None:
        """Progress without a record: a live bar on a terminal, elsewhere a line at most every five seconds and at the end. The time left is by the
        steps since the first that was shown; another total, or a step that is not later, begins anew."""
        now = time.monotonic()
        if total != self._total or step <= self._step:
            self._started, self._first, self._total = now, step, total
        self._step = step
        done = step >= total
        if not done and now - self._spoke < (0.1 if self._live else 5.0):
            return
        self._spoke = now
        rate = (step - self._first) / max(now - self._started, 1e-9)
        left = "" if done or rate <= 0 or step - self._first < 2 else f"  {_minutes((total - step) / rate)} left"
        if self._live:
            filled = BAR * step // max(total, 1)
            columns = os.get_terminal_size(self._out.fileno()).columns
            line = f"{self.title} [{'#' * filled}{'.' * (BAR - filled)}] {step}/{total}  {text}{left}"
            self._out.write("\r\x1b[K" + line[: columns - 1] + ("\n" if done else ""))
        else:
            self._out.write(f"{self.title} {step}/{total}  {text}{left}\n")
        self._out.flush()

    def say(self, text: str) -> None:
        """One plain line."""
        self._out.write(("\r\x1b[K" if self._live else "") + f"{self.title}: {text}\n")
        self._out.flush()


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a line torn by a crash is not one."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
