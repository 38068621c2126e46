"""out/metrics.jsonl: what the program measures, step by step, into the journal as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.progress import Journal, is_figure

METRICS = "metrics.jsonl"
LONGEST = 1 << 20
"""Bytes of a line."""
TAKEN = ("step", "total")
"""Keys that are no figures."""
SHOWN = 3
"""Figures that are said with the progress."""


class Figures:
    """Follows the file of one run of the program. first: of the figures that people are shown, None where they have been.

    The first row says where the program goes on: what the journal has of that step and later ones belongs to work that is done again.
    """

    def __init__(self, path: Path, journal: Journal, first: str | None) -> None:
        self._path, self._journal, self._first = path, journal, first
        self._read, self._line, self._step, self._rest = 0, 0, 0, b""
        self.names: set[str] = set()

    def look(self, *, whole: bool = False) -> None:
        """Take what the file has gained. whole: nobody writes there any more, so that what has no end is a line too.

        Raises:
            UserError: a line is malformed, or steps do not rise; names line and key.
        """
        for line in self._lines(whole):
            self._line += 1
            row = self._row(line)
            step, total = row.pop("step"), row.pop("total", None)
            if not self._step:
                self._journal.cut(step - 1)
            self._step = step
            self.names |= row.keys()
            self._journal.record(step, row, {})
            if self._first is not None:
                shown = sorted(row, key=lambda name: name != self._first)[:SHOWN]
                self._journal.show(step, total or step + 1, ", ".join(f"{name} {row[name]:.4g}" for name in shown))

    def _lines(self, all_of_it: bool) -> Iterator[bytes]:
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            while chunk := file.read(LONGEST):
                self._read += len(chunk)
                *whole, self._rest = (self._rest + chunk).split(b"\n")
                if len(self._rest) > LONGEST:
                    raise self._wrong(f"is longer than {LONGEST} bytes", self._line + len(whole) + 1)
                yield from whole
        if all_of_it and self._rest:
            rest, self._rest = self._rest, b""
            yield rest

    def _row(self, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise self._wrong("is not JSON") from None
        if not isinstance(row, dict) or not _is_step(row.get("step")):
            raise self._wrong("has no `step`, a number from 1 on")
        if "total" in row and not _is_step(row["total"]):
            raise self._wrong(f"total: expected a number of steps, got {row['total']!r}")
        if row["step"] <= self._step:
            raise self._wrong(f"step {row['step']} comes after step {self._step}, and steps must rise")
        for name, value in row.items():
            if name not in TAKEN and not is_figure(name, value):
                raise self._wrong(f"{name!r}: {value!r} is no figure: expected a finite number by a name of letters, digits and _ . -")
        return {name: value if name in TAKEN else float(value) for name, value in row.items()}

    def _wrong(self, why: str, line: int | None = None) -> UserError:
        return UserError(f"{METRICS} line {line or self._line}: {why}")


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 1 << 53
