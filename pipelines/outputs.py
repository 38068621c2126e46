"""What a user names for a result. A folder takes the place of nothing but an earlier result that is still as it was written; a file, of no input.

What a folder holds is known by a record in it, of its files and their SHA-256: `SHA256SUMS`, as sha256sum writes it, under a first line that says
whose it is, or what a command writes in its stead (merge.json). A folder is ours if it has a record and exactly the files that the record names,
unchanged. Anything else that is not empty stays, and the command ends with a UserError before its work begins.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import UserError
from pipelines.lineage.digests import file_sha256
from pipelines.store import sync

SUMS = "SHA256SUMS"
HEADER = "# written by touchstone; this folder is replaced only while its files are these"
UNFINISHED = ".unfinished"
"""In a folder that is being written, so that the next run knows what a killed one left."""
Record = Callable[[Path], Mapping[str, str] | None]
State = dict[str, tuple[int, int, int]]
"""File -> inode, bytes and time of its last change."""


class OutputFolder:
    """The folder `path`, refused at once if it may not be written.

    inputs: what the command reads; none may lie in the folder, which is replaced. record: reads the files and digests that the folder's own record
    names, None where it has none; without it the record is SHA256SUMS, which `replacing` then writes.

    Raises:
        UserError: it is a file, a link, a mount or the folder that we stand in, an input lies in it, or it holds anything that is not ours.
    """

    def __init__(self, path: Path, inputs: Iterable[Path] = (), record: Record | None = None) -> None:
        self.path, self._named, self._record = Path(os.path.abspath(path)), path, record
        self._part = self.path.parent / f".{self.path.name}.part"
        self._place(inputs)
        self._held = self._ours(self.path) if self.path.is_dir() else {}
        if self._part.exists() and not (self._part / UNFINISHED).is_file():
            self._ours(self._part)

    def _place(self, inputs: Iterable[Path]) -> None:
        if self.path.is_symlink():
            raise UserError(f"{self._named}: is a symbolic link; name the folder that it leads to")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self._named}: is a file; the result is a folder")
        real = self.path.resolve()
        if os.path.ismount(self.path) or Path.cwd().is_relative_to(real):
            raise UserError(f"{self._named}: is {'a mount' if os.path.ismount(self.path) else 'where you stand'}; name a folder in it")
        above = next(parent for parent in self.path.parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise UserError(f"{self._named}: cannot be made, {above} is {'not writable' if above.is_dir() else 'a file'}")
        for given in inputs:
            if given.exists() and given.resolve().is_relative_to(real):
                raise UserError(f"{self._named}: the result would replace {given}, which is read; name another folder")

    @contextmanager
    def replacing(self) -> Iterator[Path]:
        """A temporary folder beside it that takes its place when the block succeeds, else is removed.

        Raises:
            UserError: the folder has changed meanwhile; it stays as it is.
        """
        self._part.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._part, ignore_errors=True)
        self._part.mkdir()
        (self._part / UNFINISHED).touch()
        try:
            yield self._part
            if self._record is None:
                _write_sums(self._part)
            (self._part / UNFINISHED).unlink()
            for inner in [*self._part.rglob("*"), self._part]:
                sync(inner)
            self._swap()
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    def _swap(self) -> None:
        """The new folder in the place of the old, which is deleted last and only if it is what it was at the start."""
        if not self.path.exists():
            self._part.rename(self.path)
            return sync(self.path.parent)
        aside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.old")
        self.path.rename(aside)
        if _state(aside) != self._held:
            aside.rename(self.path)
            raise UserError(f"{self._named}: has changed since the command began; it was left as it is")
        self._part.rename(self.path)
        sync(self.path.parent)
        return shutil.rmtree(aside)

    def _ours(self, folder: Path) -> State:
        """The state of a folder that is empty or ours."""
        if not any(folder.iterdir()):
            return {}
        named = self._record(folder) if self._record else _read_sums(folder)
        shown = self._named if folder == self.path else folder
        if named is None:
            raise UserError(f"{shown}: is not empty and not a result of this command; name another folder, or remove it yourself")
        state = _state(folder)
        own = set(named) | ({SUMS} if self._record is None else set())
        if strange := sorted(set(state) - own) or sorted(_empty_folders(folder)):
            raise UserError(f"{shown}: holds {strange[0]}, which this command did not write; name another folder, or move it away")
        for name, digest in zip(named, _digests(folder, named), strict=True):
            if digest != named[name]:
                what = "lacks" if digest is None else "was changed since it was written:"
                raise UserError(f"{shown}: {what} {name}; name another folder, or remove it yourself")
        return state


def output_file(path: Path, inputs: Iterable[Path]) -> Path:
    """`path`, which the result will replace if it is a file.

    Raises:
        UserError: it is a folder, or one of the files that are read.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; the result is a file")
    for given in inputs:
        if path.exists() and given.exists() and path.samefile(given):
            raise UserError(f"{path}: the result would replace {given}, which is read; name another file")
    return path


def _state(folder: Path) -> State:
    """Everything below the folder that is not a folder itself; links are not followed."""
    entries = (Path(where) / name for where, folders, files in os.walk(folder) for name in files + folders)
    states = ((entry, entry.lstat()) for entry in entries if entry.is_symlink() or not entry.is_dir())
    return {entry.relative_to(folder).as_posix(): (found.st_ino, found.st_size, found.st_mtime_ns) for entry, found in states}


def _empty_folders(folder: Path) -> list[str]:
    return [f"{Path(where).relative_to(folder)}/" for where, folders, files in os.walk(folder) if not folders and not files]


def _digests(folder: Path, names: Iterable[str]) -> list[str | None]:
    """Digest of each regular file; None where there is none of that name."""

    def digest(name: str) -> str | None:
        file = folder / name
        return file_sha256(file) if file.is_file() and not file.is_symlink() else None

    with ThreadPoolExecutor() as pool:
        return list(pool.map(digest, names))


def _write_sums(folder: Path) -> None:
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file() and file.name != UNFINISHED)
    lines = [f"{digest}  {name}\n" for name, digest in zip(names, _digests(folder, names), strict=True)]
    (folder / SUMS).write_text("".join([HEADER + "\n", *lines]))


def _read_sums(folder: Path) -> dict[str, str] | None:
    file = folder / SUMS
    if file.is_symlink() or not file.is_file():
        return None
    first, *lines = file.read_text(errors="replace").splitlines() or [""]
    if first != HEADER:
        return None
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
