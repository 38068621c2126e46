"""Which model answered what, for a stage's manifest: what an endpoint said is an input of the stage, like a file.

Every reply that a stage uses is entered by its request, so one that is used again, or asked again after an interruption, counts once.
The entries stand in a file of the stage's working folder; several processes of one stage share it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pipelines import paths

WAIT = 60.0
"""Seconds to wait for another process that writes."""
_SCHEMA = """
create table if not exists work (identity text primary key);
create table if not exists replies (role text, asked text, request text, reported text, reply text, primary key (role, asked, request));
"""


class Answered:
    """The entries of one stage. The file is made with the first; `identity` says of which work they are, and those of other work go."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path, self._identity = path, identity

    def begin(self) -> None:
        """Forget what was answered to other work."""
        if self._path.exists():
            with closing(self._open()) as database:
                same = database.execute("select 1 from work where identity = ?", (self._identity,)).fetchone()
            if not same:
                self._path.unlink()

    def add(self, role: str, asked: str, request: str, reported: str, text: str) -> None:
        """Enter a reply. role: who was asked, such as `judge`; asked, reported: the model's name as params and as the server give it."""
        with closing(self._open()) as database, database:
            database.execute("insert or ignore into work values (?)", (self._identity,))
            row = (role, asked, _digest(request), reported, _digest(text))
            database.execute("insert or replace into replies values (?, ?, ?, ?, ?)", row)

    def summary(self) -> list[dict[str, Any]]:
        """{role, model, reported, replies, sha256} of each role and model; the digest is of all requests with their replies."""
        if not self._path.exists():
            return []
        found: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
        with closing(self._open()) as database:
            for role, asked, *row in database.execute("select role, asked, request, reply, reported from replies order by 1, 2, 3"):
                found.setdefault((role, asked), []).append((row[0], row[1], row[2]))
        return [
            {
                "role": role,
                "model": asked,
                "reported": sorted({reported for _, _, reported in rows if reported}),
                "replies": len(rows),
                "sha256": _digest("\n".join(f"{request} {reply}" for request, reply, _ in rows)),
            }
            for (role, asked), rows in found.items()
        ]

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=WAIT)
        database.executescript(_SCHEMA)
        return database


def of_stage(root: Path, stage: str, given: Any, work: Path, *, begin: bool) -> Answered:
    """The entries of a stage, which does other work when what it is `given` has changed, or what other stages made.

    begin: this process is the first of the stage.
    """
    others = sorted(path for path in (root / paths.MANIFESTS).rglob("*.json") if path != root / paths.manifest(stage))
    identity = _digest("\n".join([json.dumps(given, sort_keys=True), *(path.read_text() for path in others)]))
    answered = Answered(work / "answered.sqlite", identity)
    if begin:
        answered.begin()
    return answered


_CURRENT: list[Answered] = []


@contextmanager
def kept(answered: Answered) -> Iterator[None]:
    """Within the block every reply that any client of this process uses is entered."""
    _CURRENT.append(answered)
    try:
        yield
    finally:
        _CURRENT.pop()


def enter(role: str, asked: str, request: str, reported: str, text: str) -> None:
    """Enter a reply where somebody keeps account; see `Answered.add`."""
    if _CURRENT:
        _CURRENT[-1].add(role, asked, request, reported, text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
