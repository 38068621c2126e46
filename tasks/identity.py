"""One file per stage with what decides its results beside data and params: `python -m tasks.identity` writes them all.

That command is DVC's stage `code`, which always runs: each stage depends on its own file below data/identity, so an edit of code, or
another version of a library, reruns the stages that it reaches and no other. `touchstone run` writes the same files itself, before it
asks DVC anything.
"""

from __future__ import annotations

from pathlib import Path

from pipelines import paths
from pipelines.lineage import manifests
from pipelines.lineage.code import PACKAGE, RUNNING, Code, Identity, changes
from pipelines.stages import ENTRIES
from pipelines.store import read_json, write_json
from tasks import settings


def source(project: Path) -> Path:
    """The folder whose package `pipelines` the stages of the project run."""
    return project if (project / PACKAGE).is_dir() else RUNNING


def current(project: Path, stage: str) -> Identity:
    """Identity of `stage` by the code as it lies there and the libraries as they are installed now."""
    return _identity(Code(source(project)), stage.partition("@")[0])


def _identity(code: Code, name: str) -> Identity:
    module, settings_module, _ = ENTRIES[name]
    return code.identity([module, settings_module])


def write(project: Path) -> None:
    """Bring data/identity up to date; a file that is touched says something new."""
    code = Code(source(project))
    for name in ENTRIES:
        file, identity = project / paths.identity(name), _identity(code, name)
        if not file.is_file() or read_json(file) != identity:
            write_json(file, identity)


def changed_since_run(project: Path, stage: str) -> list[str]:
    """What of its code and libraries has changed since `stage` last ran here, by its manifest."""
    file = project / paths.manifest(stage)
    return changes(manifests.code(read_json(file)), current(project, stage)) if file.is_file() else []


def changed_since_written(project: Path, stage: str) -> list[str]:
    """What of it has changed since its file was written."""
    file = project / paths.identity(stage)
    return changes(read_json(file), current(project, stage)) if file.is_file() else [file.relative_to(project).as_posix()]


if __name__ == "__main__":
    write(settings.root())
