"""One file per kind of stage with what decides its results beside data and params: `python -m tasks.identity` writes them all.

That command is DVC's stage `code-identity`, which always runs: each stage depends on the file of its kind below data/identity, so an edit of code, or
another version of a library, reruns the stages that it reaches and no other. `touchstone run` writes the same files itself, before it
asks DVC anything.
"""

from __future__ import annotations

from pathlib import Path

from pipelines import paths
from pipelines.graph import Stage
from pipelines.lineage import manifests
from pipelines.lineage.code import PACKAGE, RUNNING, Code, Identity, changes
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
    for kind in ENTRIES:
        file, identity = project / paths.identity(kind), _identity(code, kind)
        if not file.is_file() or read_json(file) != identity:
            write_json(file, identity)


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
