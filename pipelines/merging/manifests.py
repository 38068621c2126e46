"""merge.json: what a merge was made from and how, by which an earlier merge is known again."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.lineage.code import code_sha256
from pipelines.lineage.digests import file_sha256
from pipelines.lineage.manifests import PREDICATE, STATEMENT
from pipelines.merging.configs import MergeConfig

MANIFEST = "merge.json"
BUILD = "touchstone/merge/v1"


def made(folder: Path) -> dict[str, str] | None:
    """Files and digests of an earlier merge, by its own manifest."""
    file = folder / MANIFEST
    try:
        statement = json.loads(file.read_text())
        named = {entry["name"]: entry["digest"]["sha256"] for entry in statement["subject"]}
        build = statement["predicate"]["buildDefinition"]["buildType"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return named | {MANIFEST: file_sha256(file)} if build == BUILD else None


@functools.cache
def _code() -> str:
    return code_sha256("pipelines.merging")


def manifest(config: MergeConfig, written: Mapping[str, str], read: Mapping[Path, str]) -> dict[str, Any]:
    """What was made from what, how and by which code, as an in-toto statement; without times and machine paths: the same merge, the same bytes."""
    settings = config.model_dump(mode="json", exclude={"base", "models", "shard_bytes"})
    roles = {"base": config.base.name if config.base else None, "models": [folder.name for folder in config.models]}
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in written.items()],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD,
                "externalParameters": settings | roles,
                "internalParameters": {"code": {"sha256": _code()}},
                "resolvedDependencies": [
                    {"name": f"{file.parent.name}/{file.name}", "digest": {"sha256": digest}} for file, digest in sorted(read.items())
                ],
            },
            "runDetails": {"builder": {"id": "touchstone"}},
        },
    }
