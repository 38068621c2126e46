"""What a stage's settings name outside the project's own stages: local files and folders, and hub ids.

Settings are plain data here: a mapping with `kind: file | huggingface` and a `path` is a source of rows, and the key
`model` at the top of the section `base` is a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

KINDS = ("file", "huggingface")


class Origin(TypedDict, total=False):
    """What a manifest says of something from outside: where it is, the digest of what was read, and what else is known of it."""

    uri: str
    digest: dict[str, str]
    annotations: dict[str, Any]


def at_commit(repository: str, commit: str) -> Origin:
    """A hub's repository as it was at a commit."""
    return {"uri": f"hub:{repository}@{commit}", "digest": {"gitCommit": commit}}


def named(settings: Any) -> dict[str, dict[str, Any]]:
    """Dotted key in the settings -> {path, revision} of everything that comes from outside."""
    found: dict[str, dict[str, Any]] = {}
    if isinstance(settings, dict) and "architecture" in settings and settings.get("model"):
        found["model"] = {"path": settings["model"], "revision": settings.get("revision")}

    def visit(value: Any, key: str) -> None:
        if not isinstance(value, dict):
            return
        if value.get("kind") in KINDS and "path" in value:
            found[key] = {"path": value["path"], "revision": value.get("revision")}
        for name, inner in value.items():
            visit(inner, f"{key}.{name}" if key else str(name))

    visit(settings, "")
    return found


def local(root: Path, settings: Any) -> dict[str, Path]:
    """Dotted key -> path, of those that exist on this machine; relative paths start at the project root."""
    paths = {key: root / entry["path"] for key, entry in named(settings).items()}
    return {key: path for key, path in paths.items() if path.exists()}


def hub(root: Path, settings: Any) -> dict[str, dict[str, Any]]:
    """Dotted key -> {path, revision}, of those that do not."""
    return {key: entry for key, entry in named(settings).items() if not (root / entry["path"]).exists()}
