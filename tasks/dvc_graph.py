"""data/dvc.yaml: the stages of params.yaml in DVC's words, so that `dvc dag`, `status`, `metrics`, `plots`, `push` and `repro data/dvc.yaml`
know each of them. It is written from params.yaml alone, by `touchstone run` and by the stage of dvc.yaml that `dvc repro` runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipelines import paths
from pipelines.config import STANDING, Params
from pipelines.errors import UserError
from pipelines.graph import SEEDLESS, Graph, Stage
from pipelines.store import replacing

CODE = "code-identity"
"""DVC's stage that writes what decides the results of the others."""
HEAD = "# Written by Touchstone from params.yaml: change that file, not this one. Commit it with data/dvc.lock, as every file of DVC's.\n"
SHOWN = {"base": "loss", "sft": "loss", "pretrain": "loss", "rl": "reward", "preference": "loss", "distil": "loss", "reward_model": "loss"}
"""Kind that learns -> the column of its plot that DVC draws; a command says it itself."""


def text(params: Params, stages: Graph) -> str:
    """The whole file."""
    code = {
        "desc": "digests of the code and versions of the libraries that decide the results of each kind of stage",
        "cmd": "python -m tasks.identity",
        "wdir": "..",
        "always_changed": True,
        "outs": [{paths.IDENTITY.as_posix(): {"cache": False}}],
    }
    written = {CODE: code, **{name: _stage(stage, params) for name, stage in stages.items()}}
    artifacts = {stage.name: _artifact(stage, params) for stage in stages.values() if stage.model}
    return HEAD + yaml.safe_dump({"stages": written, "artifacts": artifacts}, sort_keys=False, width=150, allow_unicode=True)


def write(project: Path, params: Params, stages: Graph) -> None:
    """Bring the file in line with params."""
    wanted, file = text(params, stages), project / paths.GRAPH
    if not file.is_file() or file.read_text() != wanted:
        with replacing(file) as temporary:
            temporary.write_text(wanted)


def refuse_another(project: Path, params: Params, stages: Graph) -> None:
    """
    Raises:
        UserError: DVC runs a stage from a file that says something else than params.
    """
    if (project / paths.GRAPH).read_text() != text(params, stages):
        raise UserError(f"{paths.GRAPH} is not what params.yaml says; `dvc repro` or `touchstone run` brings it in line and runs what has changed")


def _artifact(stage: Stage, params: Params) -> dict[str, Any]:
    """A model as `dvc artifacts get` and `dvc.api` know it."""
    labels = [stage.kind, *(["candidate"] if stage.name == params.evaluation.gate.candidate else [])]
    return {"path": paths.model(stage.name).relative_to(paths.GRAPH.parent).as_posix(), "type": "model", "labels": labels}


def _named(stage: Stage) -> str:
    """What else its command says: the models of the evaluation, which follow from other stages. DVC does not see that a dependency is gone,
    but that a command is another one it does."""
    settings: Any = stage.settings
    return "".join(f" {model}" for model in settings.models) if stage.kind == "evaluation" else ""


def _stage(stage: Stage, params: Params) -> dict[str, Any]:
    section = stage.name if stage.name in STANDING else f"stages.{stage.name}"
    of_params = [*([] if stage.kind in SEEDLESS else ["seed"]), section]
    if stage.kind == "synthesise":
        given: Any = params.stages[stage.name]
        of_params += ([] if given.curation else ["curation"]) + ([] if given.generators else ["sources.train"])
    manifest = [] if stage.kind == "report" else [paths.manifest(stage.name)]
    written: dict[str, Any] = {
        "desc": (type(stage.settings).__doc__ or "").split("\n")[0].rstrip("."),
        "cmd": f"python -m flows.stage {stage.name}{_named(stage)}",
        "wdir": "..",
        "deps": [path.as_posix() for path in (*stage.reads, paths.identity(stage.kind))],
        "params": of_params,
        "outs": [path.as_posix() for path in (*stage.makes, *manifest)],
    }
    for path in stage.records:
        if path.suffix == ".json":
            written["metrics"] = [{path.as_posix(): {"cache": False}}]
        else:
            settings: Any = stage.settings
            column = SHOWN.get(stage.kind) or settings.plot
            plot = {"cache": False, "x": "step", "y": column, "title": f"{stage.name}, {column} by step"}
            written["plots"] = [{path.as_posix(): plot}]
    return written
