"""What a run of a stage is: settings, seed, code and inputs. Interrupted work continues only where all of it is the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines.lineage.code import code_identity
from pipelines.lineage.digests import combine, tree_sha256
from pipelines.stages import Context
from pipelines.store import discard


def identity(context: Context, module: str, **inputs: Path | Iterable[Path]) -> dict[str, Any]:
    """Settings, seed and digests. module: the stage's own, by its dotted name. inputs: what it reads, relative to the root."""
    read = {
        name: tree_sha256(context.root / path) if isinstance(path, Path) else [tree_sha256(context.root / each) for each in path]
        for name, path in inputs.items()
    }
    return {"settings": context.settings.model_dump(mode="json"), "seed": context.seed, "code": code_identity(module), **read}


def folder_of(context: Context, identity: dict[str, Any]) -> Path:
    """The folder for finished parts of exactly this run, below what the stage resumes from; what other runs left there is removed."""
    folder = context.resume / combine({name: json.dumps(value, sort_keys=True) for name, value in identity.items()})
    for other in context.resume.glob("*"):
        if other != folder:
            discard(other)
    return folder
