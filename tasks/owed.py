"""What a stopped run owes, a small file each, so that the next run pays it whenever the kill came.

A stage that is to run though it is current is *forced*: written down before the run, crossed out once the stage is recorded. A stage that
has ended well is *finished*: written down before DVC records it, crossed out once it is recorded, what it would resume from is cleared,
and MLflow knows of it. Under `dvc repro` DVC records a stage after its process has ended, so there the next run of any stage crosses out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines import paths
from pipelines.store import discard, read_json, write_json
from tasks import versioning


@dataclass(frozen=True)
class Finished:
    """A stage that has ended well.

    run: its run in MLflow. given, models: what it got, and DVC's digests of the models it read. depended: its `versioning.dependencies`.
    outputs: path -> DVC's digest of all it made. recorded: DVC knows it, and its work is cleared. told: MLflow knows all of it.
    """

    stage: str
    run: str
    given: dict[str, Any]
    models: dict[str, str]
    depended: dict[str, str]
    outputs: dict[str, str]
    recorded: bool = False
    told: bool = False


def force(project: Path, stage: str) -> None:
    """Have `stage` run though it is current, now or in a later run."""
    write_json(project / paths.FORCED / stage, {})


def forced(project: Path) -> set[str]:
    """Stages that were to run though they are current, and have not been recorded since."""
    return {file.name for file in _files(project / paths.FORCED)}


def forget(project: Path, stage: str) -> None:
    """Nothing is owed of an end of `stage`: it starts, and finishes again what nobody recorded, or all is done."""
    _file(project, stage).unlink(missing_ok=True)


def finish(project: Path, finished: Finished) -> None:
    """The process of the stage has ended well. Only now may DVC record it."""
    write_json(_file(project, finished.stage), asdict(finished))


def recorded(project: Path, finished: Finished) -> None:
    """DVC knows the stage: nobody resumes it any more, and it need not be forced."""
    (project / paths.FORCED / finished.stage).unlink(missing_ok=True)
    discard(project / paths.WORK / finished.stage / paths.RESUME)
    if finished.told:
        forget(project, finished.stage)
    else:
        finish(project, replace(finished, recorded=True))


def told(project: Path, stage: str) -> None:
    """MLflow knows all of `stage`; that is its end, unless DVC has yet to record it."""
    finished = Finished(**read_json(_file(project, stage)))
    if finished.recorded:
        forget(project, stage)
    else:
        finish(project, replace(finished, told=True))


def untold(project: Path, stage: str) -> Finished | None:
    """The recorded end of `stage` that MLflow does not know of."""
    file = _file(project, stage)
    finished = Finished(**read_json(file)) if file.exists() else None
    return finished if finished and finished.recorded and not finished.told else None


def settle(project: Path, stages: Collection[str]) -> None:
    """Of every finished stage that DVC has recorded: clear what it would resume from, and the wish to force it.

    stages: all of the project; of any other nothing is owed any more.
    """
    for gone in [file for folder in (paths.FORCED, paths.FINISHED) for file in _files(project / folder) if file.name not in stages]:
        gone.unlink()
    for file in _files(project / paths.FINISHED):
        finished = Finished(**read_json(file))
        if not finished.recorded and versioning.recorded(project, finished.stage) == (finished.depended, finished.outputs):
            recorded(project, finished)


def _files(folder: Path) -> list[Path]:
    """One a stage, without what a kill left half written."""
    return sorted(folder.glob("[!.]*"))


def _file(project: Path, stage: str) -> Path:
    return project / paths.FINISHED / stage
