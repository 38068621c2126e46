"""One file per kind of stage with what decides its results beside data and params, and one per virtual environment that a stage of kind command
runs in, with what is installed there: `python -m tasks.identity` writes them all.

That command is DVC's stage `code-identity`, which always runs: each stage depends on the file of its kind below data/identity, so an edit of code, or
another version of a library, reruns the stages that it reaches and no other. `touchstone run` writes the same files itself, before it
asks DVC anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines import paths
from pipelines.config import load
from pipelines.config.command import CommandStage
from pipelines.graph import Stage
from pipelines.lineage import manifests
from pipelines.lineage.code import PACKAGE, RUNNING, Code, Identity, changes, environment_identity
from pipelines.stages import ENTRIES
from pipelines.store import read_json, write_json
from tasks import settings


def source(project: Path) -> Path:
    """The folder whose package `pipelines` the stages of the project run."""
    return project if (project / PACKAGE).is_dir() else RUNNING


def current(project: Path, kind: str) -> Identity:
    """Identity of stages of a kind by the code as it lies there and the libraries as they are installed now."""
    return _identity(Code(source(project)), kind)


def _identity(code: Code, kind: str) -> Identity:
    module, settings_module, _ = ENTRIES[kind]
    return code.identity([module, settings_module])


def write(project: Path) -> None:
    """Bring data/identity up to date; a file that is touched says something new."""
    code = Code(source(project))
    wanted: dict[Path, Any] = {paths.identity(kind): _identity(code, kind) for kind in ENTRIES}
    wanted |= {paths.environment(folder): environment_identity(project / folder) for folder in _environments(project)}
    for path in (project / paths.ENVIRONMENTS).glob("*.json"):
        if path.relative_to(project) not in wanted:
            path.unlink()
    for path, content in wanted.items():
        file = project / path
        if not file.is_file() or read_json(file) != content:
            write_json(file, content)


def _environments(project: Path) -> set[str]:
    """Virtual environments that stages of kind command run in."""
    stages = load(project / paths.PARAMS).stages.values() if (project / paths.PARAMS).is_file() else ()
    return {stage.environment for stage in stages if isinstance(stage, CommandStage) and stage.environment}


def changed_since_run(project: Path, stage: Stage) -> list[str]:
    """What of its code and libraries has changed since `stage` last ran here, by its manifest."""
    file = project / paths.manifest(stage.name)
    return changes(manifests.code(read_json(file)), current(project, stage.kind)) if file.is_file() else []


def changed_since_written(project: Path, kind: str) -> list[str]:
    """What of it has changed since the file of the kind was written."""
    file = project / paths.identity(kind)
    return changes(read_json(file), current(project, kind)) if file.is_file() else [file.relative_to(project).as_posix()]


if __name__ == "__main__":
    write(settings.root())
