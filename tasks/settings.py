"""Where the project is, what its params say, and the settings of this machine.

params.yaml holds what changes a result. Ports, addresses and devices do not, so they are environment settings:

    TOUCHSTONE_ROOT           project root; default: the nearest folder upwards with dvc.yaml and params.yaml
    TOUCHSTONE_DEVICE         torch device, default cpu
    TOUCHSTONE_PREFECT_PORT   port of `touchstone up`'s Prefect server, default 4200
    TOUCHSTONE_MLFLOW_PORT    port of its MLflow UI, default 5000
    TOUCHSTONE_MLFLOW_URI     MLflow tracking URI; default: MLFLOW_TRACKING_URI, else SQLite under .touchstone
    TOUCHSTONE_AT_ONCE        so many stages may run side by side, default 1
    TOUCHSTONE_MIN_FREE_GB    a stage does not start with less free disk, default 1
    TOUCHSTONE_TEACHER_URL, TOUCHSTONE_TEACHER_KEY    endpoint of kind synthesise with `method: teacher` and of the steps of curation that ask one
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pipelines import paths
from pipelines.config import Params
from pipelines.errors import UserError
from pipelines.graph import Graph
from tasks import experiments

HOST = "127.0.0.1"


def root() -> Path:
    """The project root.

    Raises:
        UserError: neither here nor above is a project.
    """
    if given := os.environ.get("TOUCHSTONE_ROOT"):
        if not (Path(given) / "dvc.yaml").is_file():
            raise UserError(f"TOUCHSTONE_ROOT: {given} holds no dvc.yaml")
        found = Path(given).resolve()
        experiments.adopt(found)
        return found
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / paths.PARAMS).is_file():
            experiments.adopt(folder)
            return folder
    raise UserError(f"{here}: no project here or above (a folder with dvc.yaml and params.yaml); go to one or set TOUCHSTONE_ROOT")


def port(name: str, default: int) -> int:
    """A port from the environment.

    Raises:
        UserError: not a port number.
    """
    text = os.environ.get(name, str(default))
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise UserError(f"{name}: expected a port between 1 and 65535, got '{text}'")
    return int(text)


def prefect_port() -> int:
    return port("TOUCHSTONE_PREFECT_PORT", 4200)


def mlflow_port() -> int:
    return port("TOUCHSTONE_MLFLOW_PORT", 5000)


def mlflow_uri(project: Path) -> str:
    """Absolute tracking URI: MLflow's own default depends on the working directory. Experiments of DVC are tracked beside the project's own runs."""
    given = os.environ.get("TOUCHSTONE_MLFLOW_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{experiments.home(project) / paths.STATE / 'mlflow.db'}"


def params(project: Path) -> Params:
    """params.yaml, checked whole: names, settings, files, machine.

    Raises:
        UserError: one sentence a line for all that does not hold.
    """
    from pipelines import checks  # all sciences' tables, which not every command needs

    return checks.load(project / paths.PARAMS, project)


def matching(stages: Graph, named: str) -> set[str]:
    """The stage called `named`, or all of the kind `named`.

    Raises:
        UserError: there is no such stage.
    """
    found = {name for name, stage in stages.items() if name == named} or {name for name, stage in stages.items() if stage.kind == named}
    if not found:
        raise UserError(f"there is no stage '{named}'; there are {', '.join(stages)}")
    return found


def check_disk(project: Path) -> None:
    """
    Raises:
        UserError: less space than TOUCHSTONE_MIN_FREE_GB.
    """
    text = os.environ.get("TOUCHSTONE_MIN_FREE_GB", "1")
    try:
        needed = float(text)
    except ValueError:
        raise UserError(f"TOUCHSTONE_MIN_FREE_GB: expected a number, got '{text}'") from None
    free = shutil.disk_usage(project).free / 1e9
    if free < needed:
        raise UserError(f"{project}: {free:.1f} GB of disk space are free, a stage needs {needed:g} (TOUCHSTONE_MIN_FREE_GB)")
