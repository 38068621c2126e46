"""DVC's experiments: edits of params.yaml that run in a temporary copy of the project, and what of them outlives the copy.

`dvc exp run --temp` and DVC's queue copy the project's commit below `.dvc/tmp/exps`, run it there and remove it. Data and models go to DVC's cache,
which the copy shares. Journals, checkpoints and MLflow's runs would go with the copy, so its `.touchstone` is a link into that of the project, to a
folder named by what params.yaml says: the same edits go on from the same checkpoints. An experiment registers its models and moves no alias.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from pipelines import paths
from pipelines.config import read_yaml
from pipelines.errors import UserError
from pipelines.store import replacing

if TYPE_CHECKING:
    from pipelines.evaluation.outlook import Outlook

COPIES = (".dvc", "tmp", "exps")
"""Where in a project DVC makes its copies."""
EXPERIMENTS = paths.STATE / "experiments"
"""<digest of params.yaml>/: the `.touchstone` of a copy."""

LOOK = 1.0
"""Seconds between looks at a point that runs."""

Point = dict[str, Any]
"""Dotted key of params.yaml -> its value."""


def home(project: Path) -> Path:
    """The project that DVC has copied here for an experiment; of one that is no copy, itself."""
    for folder in project.parents:
        if folder.parts[-len(COPIES) :] == COPIES:
            return folder.parents[len(COPIES) - 1]
    return project


def is_copy(project: Path) -> bool:
    return home(project) != project


def adopt(project: Path) -> None:
    """Have the state of a copy outlive it, the virtual environments of its programs be there, and its params.yaml look as in the commit, whose lines
    DVC has broken anew as it edited."""
    state = project / paths.STATE
    if not is_copy(project) or state.exists():
        return
    values = read_yaml(project / paths.PARAMS)
    committed = subprocess.run(["git", "show", f"HEAD:{paths.PARAMS}"], cwd=project, capture_output=True, text=True, check=False).stdout
    if committed:
        from tasks import overlays  # with all that checks params

        with replacing(project / paths.PARAMS) as temporary:
            temporary.write_text(overlays.with_values(committed, values))
    kept = home(project) / EXPERIMENTS / hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
    kept.mkdir(parents=True, exist_ok=True)
    for stage in (values.get("stages") or {}).values():
        if environment := stage.get("environment") if isinstance(stage, dict) else None:  # git knows nothing of it
            _lend(home(project) / str(environment), project / str(environment))
    state.symlink_to(kept)


def _lend(own: Path, copy: Path) -> None:
    """Have what lies in the project lie in the copy, too."""
    if own.exists() and not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(own)


def grid(edits: Sequence[str]) -> list[Point]:
    """Every combination of `KEY=VALUE,VALUE,...`, the first values first.

    Raises:
        UserError: an edit that is none, or a key twice.
    """
    axes: dict[str, list[Any]] = {}
    for edit in edits:
        key, equals, values = edit.partition("=")
        try:
            axis = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError:
            axis = []
        if not (key and equals and axis) or key in axes:
            raise UserError(f"'{edit}': expected KEY=VALUE,VALUE,... with a key of params.yaml, each once, such as stages.math.recipe=grpo,dapo")
        axes[key] = axis
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def named(sweep: str, point: Point) -> str:
    """Name of the experiment of a point."""
    return f"{sweep}-{hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Ran:
    """A point of a sweep, its experiment, and what was predicted of it if it was stopped for that."""

    point: Point
    experiment: str
    stopped: Outlook | None = None


def sweep(project: Path, name: str, points: Sequence[Point], stop_early: str | None = None) -> Iterator[Ran]:
    """Run every point that has not run from this commit, and say of each which experiment it is.

    stop_early: an RL stage; a point after the first is stopped once the curve of this stage cannot reach the best one's end any more
    (`pipelines.evaluation.outlook`). Its checkpoints stay.

    Raises:
        UserError: an experiment fails; those before it stay, and the same sweep goes on from there. Or the curves of points cannot be compared.
    """
    watch = None
    if stop_early:
        from tasks import stopping  # with numpy and torch

        watch = stopping.watch(project, stop_early, points)
    for number, point in enumerate(points):
        experiment, stopped = named(name, point), None
        if experiment not in _there(project):
            edits = [word for key, value in point.items() for word in ("-S", f"++{key}={_written(value)}")]
            look = partial(watch.look, point=number) if watch and number else None  # with the first all others are compared
            stopped = _dvc(project, "exp", "run", "--temp", "--name", experiment, *edits, look=look)
        if watch and not stopped:
            watch.over(_files(project, experiment).read_text((paths.PLOTS / f"{watch.stage}.csv").as_posix()))
        yield Ran(point, experiment, stopped)


def _files(project: Path, experiment: str) -> Any:
    """What an experiment has committed, and made into DVC's cache."""
    from dvc.api import DVCFileSystem

    return DVCFileSystem(str(project), rev=experiment)


def samples(project: Path, experiment: str, model: str) -> dict[str, Any]:
    """Benchmark -> what an experiment's model answered, from DVC's cache.

    Raises:
        UserError: the experiment has not evaluated it.
    """
    from pipelines.evaluation.samples import read_samples

    files = _files(project, experiment)
    folder = (paths.SAMPLES / model).as_posix()
    if not files.isdir(folder):
        raise UserError(f"{experiment}: it has not evaluated a model '{model}'")
    with TemporaryDirectory() as taken:
        files.get(folder, taken, recursive=True)
        return {path.stem: read_samples(path) for path in sorted(Path(taken).rglob("*.parquet"))}


def _there(project: Path) -> list[str]:
    """Names of the experiments from this commit."""
    done = subprocess.run([sys.executable, "-m", "dvc", "exp", "list", "--name-only"], cwd=project, capture_output=True, text=True, check=False)
    return done.stdout.split()


def _dvc(project: Path, *arguments: str, look: Callable[[Path], Outlook | None] | None = None) -> Outlook | None:
    """Run a command of DVC. look: says of the `.touchstone` of the copy in which it runs what will come of it; where that is hopeless the run is
    stopped, and that is returned."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
    process = subprocess.Popen([sys.executable, "-m", "dvc", *arguments], cwd=project, env=environment)
    stopped: Outlook | None = None
    try:
        while process.returncode is None:
            try:
                process.wait(LOOK if look and not stopped else None)
            except subprocess.TimeoutExpired:
                pid, copy = _run_below(process.pid)
                if look and pid and (seen := look(copy / paths.STATE)) and seen.hopeless:
                    stopped = seen
                    with suppress(ProcessLookupError):  # it is over
                        os.kill(pid, signal.SIGTERM)
    finally:
        process.kill()
    if process.returncode and not stopped:
        raise UserError(f"dvc {' '.join(arguments)}: it failed; what it said stands above")
    return stopped if process.returncode else None


def _run_below(dvc: int) -> tuple[int, Path]:
    """The `touchstone run` that a process of DVC has started, and the copy in which it runs; 0 where there is none now."""
    import psutil  # comes with DVC

    with suppress(psutil.Error):
        for process in psutil.Process(dvc).children(recursive=True):
            if process.cmdline()[1:4] == ["-m", "flows.cli", "run"] and is_copy(Path(process.cwd())):
                return process.pid, Path(process.cwd())
    return 0, Path()


def _written(value: Any) -> str:
    """A value in the words of DVC's `-S`."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return json.dumps(value)
