"""The statement that a stage leaves beside its outputs: what was made, from what, by which code and settings.

The form is an in-toto Statement v1 with an SLSA provenance v1 predicate. There is no time and no host in it: the same run
leaves the same bytes. Every path is relative to the project root, except those of files outside it.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines import paths
from pipelines.lineage import external
from pipelines.lineage.code import closure
from pipelines.lineage.digests import combine, file_sha256, files_below, tree_sha256
from pipelines.store import read_json, write_json

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD = "touchstone/stage/v1"
PACKAGES = ("numpy", "pyarrow", "duckdb", "torch", "transformers", "tokenizers", "safetensors", "math-verify", "reasoning-gym", "vllm")
"""Installed versions of these are part of the statement: they can change a number."""
TRACKED = ("pipelines", "params.yaml", "dvc.yaml", "requirements")
"""A change here that is not committed makes the work tree count as dirty."""


def write_manifest(
    root: Path,
    stage: str,
    given: dict[str, Any],
    *,
    inputs: Iterable[Path],
    outputs: Iterable[Path],
    modules: Iterable[str],
    accepted: Sequence[dict[str, Any]] = (),
    endpoints: Sequence[dict[str, Any]] = (),
) -> None:
    """Write the statement of `stage`. given: {seed, settings} as the stage got them; modules: where its code starts.

    accepted: changes on the way that the user accepted; without them all of it was made by one code from one input. endpoints: who
    answered requests of the stage, with a digest of what was said (`answered.summary`).
    """
    made = [file for folder in outputs for file in files_below(root / folder) if file != root / paths.manifest(stage)]
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": file.relative_to(root).as_posix(), "digest": {"sha256": file_sha256(file)}} for file in made],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD,
                "externalParameters": {"stage": stage, **given},
                "internalParameters": {"code": code_state(root, modules)}
                | ({"accepted_changes": list(accepted)} if accepted else {})
                | ({"endpoints": list(endpoints)} if endpoints else {}),
                "resolvedDependencies": dependencies(root, given["settings"], inputs),
            },
            "runDetails": {"builder": {"id": "touchstone", "version": versions()}},
        },
    }
    write_json(root / paths.manifest(stage), statement)


def dependencies(root: Path, settings: Any, inputs: Iterable[Path]) -> list[dict[str, Any]]:
    """Everything the stage read: {name, digest} of each input, of each local file named in the settings, {uri} of hub ids."""
    read: dict[str, Path] = {}
    for path in inputs:
        if path == paths.RL_MANIFESTS:  # stands for the experts themselves
            read |= {folder.as_posix(): root / folder for folder in (paths.model(file.stem) for file in files_below(root / path))}
        elif path.parent != paths.EXTERNAL:  # links to what `external` names below
            read[path.as_posix()] = root / path
    found = [{"name": name, "digest": {"sha256": tree_sha256(path)}} for name, path in read.items()]
    for key, path in external.local(root, settings).items():
        found.append({"name": named(root, path), "digest": {"sha256": tree_sha256(path)}, "annotations": {"setting": key}})
    found += [{"uri": f"hub:{uri}", "annotations": {"setting": key}} for key, uri in external.hub(root, settings).items()]
    return found


def named(root: Path, path: Path) -> str:
    """A path as manifests write it: relative to the project root where it lies below it."""
    resolved = path.resolve()
    return resolved.relative_to(root.resolve()).as_posix() if resolved.is_relative_to(root.resolve()) else resolved.as_posix()


def code_state(root: Path, modules: Iterable[str]) -> dict[str, Any]:
    """Digest of the stage's code with that of each file, the git commit, and whether the tree held uncommitted changes."""
    files = {file.as_posix(): file_sha256(root / file) for file in closure(root, modules)}
    return {"sha256": combine(files), "files": files, **git_state(root)}


def git_state(root: Path) -> dict[str, Any]:
    """{git_commit, dirty}; both None outside a git work tree or before its first commit."""
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", *(name for name in TRACKED if (root / name).exists()))
    return {"git_commit": commit, "dirty": None if commit is None else bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    if not shutil.which("git"):
        return None
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Python and the installed packages of PACKAGES."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_manifests(root: Path) -> dict[str, dict[str, Any]]:
    """Stage -> its statement, for all that there are."""
    files = [*files_below(root / paths.MANIFESTS), root / paths.manifest("report")]
    statements = [read_json(file) for file in files if file.is_file() and file.suffix == ".json"]
    return {parameters(statement)["stage"]: statement for statement in statements}


def parameters(statement: dict[str, Any]) -> dict[str, Any]:
    """{stage, seed, settings} of a statement."""
    return statement["predicate"]["buildDefinition"]["externalParameters"]


def code(statement: dict[str, Any]) -> dict[str, Any]:
    """{sha256, files, git_commit, dirty} of a statement."""
    return statement["predicate"]["buildDefinition"]["internalParameters"]["code"]


def endpoints(statement: dict[str, Any]) -> list[dict[str, Any]]:
    """Who answered requests of the stage: {role, model, reported, replies, sha256} each."""
    return statement["predicate"]["buildDefinition"]["internalParameters"].get("endpoints", [])


def resolved(statement: dict[str, Any]) -> list[dict[str, Any]]:
    """The dependencies of a statement."""
    return statement["predicate"]["buildDefinition"]["resolvedDependencies"]
