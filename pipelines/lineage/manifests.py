"""The statement that a stage leaves beside its outputs: what was made, from what, by which code and settings.

The form is an in-toto Statement v1 with an SLSA provenance v1 predicate. There is no time and no host in it: the same run
leaves the same bytes. Every path is relative to the project root, except those of files outside it.

What a stage starts from is taken before it runs (`begin`); when it has run and something of that is not as it was, there is no
statement: nobody could say what was made from what.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import paths
from pipelines.errors import UserError
from pipelines.lineage import external
from pipelines.lineage.code import RUNNING, Code, Identity, changes, identity_sha256
from pipelines.lineage.digests import file_sha256, files_below, tree_sha256
from pipelines.lineage.machine import machine
from pipelines.store import read_json, write_json

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD = "touchstone/stage/v1"
TRACKED = ("pipelines", "params.yaml", "dvc.yaml", "requirements")
"""A change here that is not committed makes the work tree count as dirty."""
Stamps = dict[Path, tuple[int, int, int]]
"""File -> inode, size and time of its last change (ns): as long as they are the same the content is."""


@dataclass(frozen=True)
class Beginning:
    """What a stage starts from, as it was before it ran."""

    root: Path
    stage: str
    given: dict[str, Any]
    read: dict[str, Path]
    """Name -> file or folder, of all inputs and of the local files that the settings name."""
    digests: dict[str, str]
    stamps: dict[str, Stamps]
    code: Identity
    git: dict[str, Any]
    modules: tuple[str, ...]
    source: Path

    def changed(self) -> list[str]:
        """What is no longer as it was: files of code, libraries, inputs."""
        code = changes(self.code, Code(self.source).identity(self.modules))
        touched = [name for name, path in self.read.items() if _stamps(path) != self.stamps[name]]
        return [*code, *(name for name in touched if tree_sha256(self.read[name]) != self.digests[name])]


def begin(root: Path, stage: str, given: dict[str, Any], *, inputs: Iterable[Path], modules: Iterable[str], source: Path = RUNNING) -> Beginning:
    """Take the digests of all that `stage` starts from. given: {seed, kind, settings} as the stage got them; modules: where its code starts.

    source: the folder that holds the package `pipelines` that runs.
    """
    modules = tuple(modules)
    read = _read(root, given["settings"], inputs)
    stamps = {name: _stamps(path) for name, path in read.items()}
    digests = {name: tree_sha256(path) for name, path in read.items()}
    return Beginning(root, stage, given, read, digests, stamps, Code(source).identity(modules), git_state(root), modules, source)


def write_manifest(
    beginning: Beginning,
    *,
    outputs: Iterable[Path],
    accepted: Sequence[dict[str, Any]] = (),
    origins: Mapping[str, external.Origin] | None = None,
    installed: Mapping[str, str] | None = None,
    endpoints: Sequence[dict[str, Any]] = (),
    notices: Sequence[str] = (),
    measured: Mapping[str, float] | None = None,
    device: str = "cpu",
) -> None:
    """Write the statement of a stage that has run.

    accepted: changes on the way that the user accepted; without them all of it was made by one code from one input. origins: setting ->
    what the stage read there and came from elsewhere. installed: packages of the environment of an outside program. endpoints: who answered
    requests of the stage, with a digest of what was said (`answered.summary`). notices: what somebody should look at. measured: what its model
    is worth. device: where tensors were.

    Raises:
        UserError: what the stage started from was edited while it ran.
    """
    root, stage = beginning.root, beginning.stage
    if changed := beginning.changed():
        raise UserError(f"{stage}: {', '.join(changed)} changed while the stage ran, so nobody can say what made its outputs; run again")
    made = [file for folder in outputs for file in files_below(root / folder) if file != root / paths.manifest(stage)]
    code = {"sha256": identity_sha256(beginning.code), **beginning.code, **beginning.git}
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": file.relative_to(root).as_posix(), "digest": {"sha256": file_sha256(file)}} for file in made],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD,
                "externalParameters": {"stage": stage, **beginning.given},
                "internalParameters": {"code": code}
                | ({"accepted_changes": list(accepted)} if accepted else {})
                | ({"environment": dict(installed)} if installed else {})
                | ({"endpoints": list(endpoints)} if endpoints else {}),
                "resolvedDependencies": _dependencies(beginning, origins or {}),
            },
            "runDetails": {
                "builder": {"id": "touchstone", "version": {"python": platform.python_version()}},
                "metadata": _machine(device)
                | ({"notices": list(notices)} if notices else {})
                | ({"measured": dict(measured)} if measured else {}),
            },
        },
    }
    write_json(root / paths.manifest(stage), statement)


def _read(root: Path, settings: Any, inputs: Iterable[Path]) -> dict[str, Path]:
    """Name -> place of everything on this machine that a stage reads."""
    read: dict[str, Path] = {}
    for path in inputs:
        if path.parent != paths.EXTERNAL:  # links to what `external` names below
            read[path.as_posix()] = root / path
    return read | {named(root, path): path for path in external.local(root, settings).values()}


def _dependencies(beginning: Beginning, origins: Mapping[str, external.Origin]) -> list[dict[str, Any]]:
    """Everything the stage read: {name, digest} of what lies on this machine, {uri, digest} of what came from elsewhere: a hub, an index."""
    root, settings = beginning.root, beginning.given["settings"]
    keys: dict[str, list[str]] = defaultdict(list)
    for key, path in external.local(root, settings).items():
        keys[named(root, path)].append(key)
    found: list[dict[str, Any]] = []
    for name, digest in beginning.digests.items():
        told = {key: value for setting in keys[name] for key, value in origins.get(setting, {}).get("annotations", {}).items()}
        entry: dict[str, Any] = {"name": name, "digest": {"sha256": digest}}
        found.append(entry | ({"annotations": {"setting": ", ".join(keys[name]), **told}} if keys[name] else {}))
    for key, entry in external.hub(root, settings).items():
        unknown: external.Origin = {"uri": f"hub:{entry['path']}@{entry['revision'] or 'unpinned'}"}
        origin = origins.get(key, unknown)
        told = {"setting": key, "revision": entry["revision"], **origin.get("annotations", {})}
        found.append({**origin, "annotations": told})
    return found


def _stamps(path: Path) -> Stamps:
    """Of every file at or below `path`."""
    stats = {file: file.stat() for file in files_below(path)}
    return {file: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()}


def _machine(device: str) -> dict[str, Any]:
    """What decides how sums are rounded, where the stage computed with torch."""
    found = machine()
    return {"device": device, **found} if found else {}


def named(root: Path, path: Path) -> str:
    """A path as manifests write it: relative to the project root where it lies below it."""
    resolved = path.resolve()
    return resolved.relative_to(root.resolve()).as_posix() if resolved.is_relative_to(root.resolve()) else resolved.as_posix()


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


def read_manifests(root: Path) -> dict[str, dict[str, Any]]:
    """Stage -> its statement, for all that there are."""
    files = [*sorted((root / paths.MANIFESTS).glob("*.json")), root / paths.manifest("report")]
    statements = [read_json(file) for file in files if file.is_file()]
    return {parameters(statement)["stage"]: statement for statement in statements}


def parameters(statement: dict[str, Any]) -> dict[str, Any]:
    """{stage, seed, kind, settings} of a statement."""
    return statement["predicate"]["buildDefinition"]["externalParameters"]


def code(statement: dict[str, Any]) -> dict[str, Any]:
    """{sha256, files, libraries, git_commit, dirty} of a statement."""
    return statement["predicate"]["buildDefinition"]["internalParameters"]["code"]


def notices(statement: dict[str, Any]) -> list[str]:
    """What somebody should look at in what a stage has made."""
    return statement["predicate"]["runDetails"]["metadata"].get("notices", [])


def endpoints(statement: dict[str, Any]) -> list[dict[str, Any]]:
    """Who answered requests of the stage: {role, model, reported, replies, sha256} each."""
    return statement["predicate"]["buildDefinition"]["internalParameters"].get("endpoints", [])


def resolved(statement: dict[str, Any]) -> list[dict[str, Any]]:
    """The dependencies of a statement."""
    return statement["predicate"]["buildDefinition"]["resolvedDependencies"]


def digest(entry: dict[str, Any]) -> str | None:
    """Digest of a dependency, whatever kind it is; None for what nobody asked for a commit of."""
    return next(iter(entry.get("digest", {}).values()), None)


def told(entry: dict[str, Any]) -> str:
    """What is known of a dependency beside its name and digest: of which model it is, and how its weights were converted."""
    known = entry.get("annotations", {})
    parts = [known[key] for key in ("origin", "licence") if key in known]
    if how := known.get("converted"):
        by = ", ".join(f"{name} {version}" for name, version in how["by"].items())
        parts.append(f"{', '.join(known['quantisation'])} to {how['to']} by {by}")
    return "; ".join([*parts, *known.get("packages", ())])
