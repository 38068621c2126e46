"""Where fetched models lie: `models` in TOUCHSTONE_CACHE, else in touchstone below XDG_CACHE_HOME or ~/.cache; one GGUF file for each."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.models.gguf.header import SUFFIX
from pipelines.models.known import KnownModel

CACHE = "TOUCHSTONE_CACHE"


def cached(known: KnownModel) -> Path:
    """Where the model's GGUF file is, or will be."""
    given, xdg = os.environ.get(CACHE), os.environ.get("XDG_CACHE_HOME")
    folder = Path(given) if given else (Path(xdg) if xdg else Path.home() / ".cache") / "touchstone"
    return folder.expanduser().absolute() / "models" / f"{known.name}{SUFFIX}"


def is_cached(known: KnownModel) -> bool:
    """Whether a file of its size is there; its digest is looked at when it is used."""
    return cached(known).is_file() and cached(known).stat().st_size == known.size
