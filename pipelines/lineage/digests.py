"""SHA-256 of files and folders. A folder's digest covers names and contents, so a moved, added or edited file shows.

What lies in a folder is what `files_below` says, here and wherever files of a folder are counted, linked or compared. DVC sees the same.
"""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from pathlib import Path

from pipelines import paths

IGNORED = (paths.TORN, "__pycache__", ".git", ".hg", ".dvc")
"""Patterns of files and folders that are not content: writes in progress, what Python leaves of a program, and what DVC passes over by itself."""
CHUNK = 1 << 20


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces of one megabyte."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def files_below(path: Path) -> list[Path]:
    """`path` itself if it is a file, else every file below it in the order of their names but the IGNORED; links to files are followed."""
    if path.is_file():
        return [path]
    return sorted(entry for entry in path.rglob("*") if entry.is_file() and not _ignored(entry.relative_to(path)))


def _ignored(path: Path) -> bool:
    return any(fnmatchcase(part, pattern) for part in path.parts for pattern in IGNORED)


def combine(named: dict[str, str]) -> str:
    """One digest for many named ones, whatever their order."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(named.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def tree_sha256(path: Path) -> str:
    """Digest of a file, or of a folder's files by name relative to it."""
    if path.is_file():
        return file_sha256(path)
    return combine({file.relative_to(path).as_posix(): file_sha256(file) for file in files_below(path)})
