"""From a model or file back to the rows and source files it came from, through the manifests of the stages.

A link is one recorded digest: a file that a stage wrote, or something it read. `verify` recomputes every link of a chain,
origin first, so that the first broken one is where the trouble began; a file among a stage's outputs that it did not write
breaks the chain too. Code and libraries that have changed since are told, but break nothing: the statement names the commit,
and the chain is about data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines import graph, paths
from pipelines.errors import UserError
from pipelines.lineage.code import RUNNING, Code, changes
from pipelines.lineage.digests import combine, file_sha256, files_below
from pipelines.lineage.manifests import code, digest, endpoints, named, parameters, read_manifests, resolved, told

SHORT = 12
"""Hex digits shown to people."""


@dataclass(frozen=True)
class Broken:
    """The first link that does not hold."""

    stage: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"stage {self.stage}: {self.name}: {self.reason}"


class Lineage:
    """The statements of a project, and which stage made what. source: the folder that holds the package `pipelines`."""

    def __init__(self, root: Path, source: Path = RUNNING) -> None:
        self.root = root
        self.source = source
        self.statements = read_manifests(root)
        self._maker = {subject["name"]: stage for stage, statement in self.statements.items() for subject in statement["subject"]}
        self._digests: dict[Path, str] = {}

    def makers(self, name: str) -> list[str]:
        """Stages that wrote the file `name` or files below the folder `name`."""
        found = [stage for made, stage in self._maker.items() if made == name or made.startswith(name + "/")]
        return list(dict.fromkeys(found))

    def find(self, path: Path) -> list[str]:
        """Stages that made what lies at `path`.

        Raises:
            UserError: nothing there came out of a stage.
        """
        name = named(self.root, path)
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        stages = self.makers(name)
        if not stages:
            raise UserError(f"{path}: no manifest in data/manifests names it, so no stage of this project made it")
        return stages

    def parents(self, stage: str) -> list[str]:
        """Stages whose files `stage` read."""
        makers = [maker for entry in resolved(self.statements[stage]) if "name" in entry for maker in self.makers(entry["name"])]
        return [maker for maker in dict.fromkeys(makers) if maker != stage]

    def chain(self, stages: list[str]) -> list[str]:
        """`stages` and all they come from, origins first."""
        ordered: list[str] = []

        def visit(stage: str) -> None:
            if stage in ordered:
                return
            for parent in self.parents(stage):
                visit(parent)
            ordered.append(stage)

        for stage in stages:
            visit(stage)
        return ordered

    def tree(self, stages: list[str]) -> Iterator[str]:
        """The chain as indented lines, each stage told once."""
        shown: set[str] = set()

        def visit(stage: str, depth: int) -> Iterator[str]:
            indent = "    " * depth
            if stage in shown:
                yield f"{indent}{stage} (told above)"
                return
            shown.add(stage)
            statement = self.statements[stage]
            yield f"{indent}{stage}  {_origin(statement)}"
            yield from (f"{indent}  wrote {line}" for line in _written(statement))
            if seen := self.seen(stage):
                yield f"{indent}  saw " + ", ".join(f"{count:,} rows of {reference}" for reference, count in seen.items())
            for entry in resolved(statement):
                label, found, more = entry.get("name") or entry["uri"], digest(entry), told(entry)
                yield f"{indent}  read {label}  {found[:SHORT] if found else 'no digest: it lives on a hub, and nobody asked for a commit'}"
                yield from [f"{indent}    {more}"] if more else []
            for entry in endpoints(statement):
                names = " or ".join(entry["reported"]) or "a model that did not say its name"
                yield f"{indent}  asked {entry['role']} {entry['model']}: {entry['replies']} replies of {names}  {entry['sha256'][:SHORT]}"
            for parent in self.parents(stage):
                yield from visit(parent, depth + 1)

        for stage in stages:
            yield from visit(stage, 0)

    def seen(self, stage: str) -> dict[str, int]:
        """How many rows a stage has read by each reference; the rows themselves are in the view `seen` of `touchstone query`."""
        file = self.root / paths.seen(stage)
        return Counter(pq.read_table(file, columns=["data"])["data"].to_pylist()) if file.is_file() else {}

    def verify(self, stages: list[str]) -> tuple[Broken | None, int, list[str]]:
        """(first broken link or None, links checked, notes on code that has changed since)."""
        checked = 0
        notes = []
        source = Code(self.source)
        for stage in self.chain(stages):
            statement = self.statements[stage]
            for entry in (entry for entry in resolved(statement) if "name" in entry):
                checked += 1
                if reason := self._differs(entry, "is not what the stage read"):
                    return Broken(stage, entry["name"], reason), checked, notes
            for entry in statement["subject"]:
                checked += 1
                if reason := self._differs(entry, "is not what the stage wrote"):
                    return Broken(stage, entry["name"], reason), checked, notes
            if added := self._added(stage):
                return Broken(stage, added, "was added: the stage did not write it"), checked, notes
            recorded: Any = code(statement)
            if changed := changes(recorded, source.again(recorded)):
                notes.append(f"stage {stage}: code has changed since: {', '.join(changed)}")
        return None, checked, notes

    def _added(self, stage: str) -> str | None:
        """The first file among the outputs of `stage` that its statement does not name."""
        known = {paths.manifest(stage).as_posix(), *(subject["name"] for subject in self.statements[stage]["subject"])}
        given = parameters(self.statements[stage])
        made = graph.made(given) if "kind" in given else []  # statements of an earlier version name none
        lying = (file.relative_to(self.root).as_posix() for folder in made for file in files_below(self.root / folder))
        return next((name for name in lying if name not in known), None)

    def _differs(self, entry: dict[str, Any], what: str) -> str | None:
        found = self._digest(Path(entry["name"]))
        recorded = entry["digest"]["sha256"]
        if found == recorded:
            return None
        return "is missing" if found is None else f"{what}: sha256 {found[:SHORT]} now, {recorded[:SHORT]} recorded"

    def _digest(self, name: Path) -> str | None:
        """Digest of a file or folder now; each file is read once."""
        path = self.root / name
        if path.is_file():
            if path not in self._digests:
                self._digests[path] = file_sha256(path)
            return self._digests[path]
        if not path.exists():
            return None
        return combine({file.relative_to(path).as_posix(): self._digest(file) or "" for file in files_below(path)})


def _origin(statement: dict[str, Any]) -> str:
    """Seed and code of a statement, for people."""
    state = code(statement)
    commit = (state["git_commit"] or "no commit")[:SHORT] + (" with uncommitted changes" if state["dirty"] else "")
    return f"(seed {parameters(statement)['seed']}, code {state['sha256'][:SHORT]}, {commit})"


def _written(statement: dict[str, Any]) -> list[str]:
    """One line per folder that a stage wrote: its name, its digest and the number of files."""
    folders: dict[str, dict[str, str]] = {}
    for subject in statement["subject"]:
        path = Path(subject["name"])
        folders.setdefault(path.parent.as_posix(), {})[path.name] = subject["digest"]["sha256"]
    return [f"{folder}  {combine(files)[:SHORT]}  ({len(files)} files)" for folder, files in folders.items()]
