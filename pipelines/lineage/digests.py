"""SHA-256 of files and folders. A folder's digest covers names and contents, so a moved, added or edited file shows."""

from __future__ import annotations

import hashlib
from pathlib import Path

CHUNK = 1 << 20


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces of one megabyte."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def files_below(path: Path) -> list[Path]:
    """`path` itself if it is a file, else every file below it in the order of their names; links are followed."""
    if path.is_file():
        return [path]
    return sorted(entry for entry in path.rglob("*") if entry.is_file())


def combine(named: dict[str, str]) -> str:
    """One digest for many named ones, whatever their order."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(named.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def tree_sha256(path: Path) -> str:
    """Digest of a file, or of a folder's files by name relative to it."""
    if path.is_file():
        return file_sha256(path)
    return combine({file.relative_to(path).as_posix(): file_sha256(file) for file in files_below(path)})
