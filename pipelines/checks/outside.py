"""What params.yaml names outside itself: files of rows, scripts, packages, the device, and by `models.py` models. Looked at, not loaded."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from pipelines import extras
from pipelines.checks import models, names
from pipelines.command import program
from pipelines.config import Params
from pipelines.config.checking import nearest
from pipelines.config.command import CommandStage
from pipelines.config.evaluation import MergeStage
from pipelines.config.learning import LearningStage
from pipelines.config.sources import FileSource
from pipelines.config.stage import FILES, TEXT, Reading
from pipelines.config.training import TrainedStage
from pipelines.curation.judging import ASKING
from pipelines.errors import InfrastructureError, UserError
from pipelines.models import packaged
from pipelines.models.known import is_hub_id
from pipelines.records import Outcome, Problem
from pipelines.sources import BadRow, files
from pipelines.verifiers import ProgramLimits, gold_response
from pipelines.verifiers.pool import begin
from pipelines.verifiers.programs import harness_item

LOOKED_AT = 20
"""Rows of a file that are mapped; if none of them fits, the mapping is at fault and not a row."""
_DEVICE = """
import sys, torch
from pipelines.errors import UserError
from pipelines.models.precision import chosen
device, precision, processes = sys.argv[1], sys.argv[2], int(sys.argv[3])
kind = torch.device(device).type
count = torch.cuda.device_count() if kind == "cuda" else 1 if kind == "cpu" or getattr(torch, kind).is_available() else 0
if not count:
    sys.exit(f"the device '{device}' of TOUCHSTONE_DEVICE is not on this machine")
if kind == "cuda" and processes > count:
    sys.exit(f"{processes} processes need a GPU each, this machine has {count}")
try:
    chosen(device, precision)
except UserError as error:
    sys.exit(str(error))
"""
"""Ends with a sentence where the device is not there, not for so many processes, or not in that precision."""


def faults(params: Params, root: Path, device: str) -> names.Faults:
    yield from ((f"base.{key}", what) for key, what in models.faults(params.base, root))
    for key, source in names.sources(params).items():
        if isinstance(source, FileSource):
            yield from _rows(key, source, root)
    yield from _packages(params)
    yield from _embeddings(params, root)
    for key, generation in names.generations(params).items():
        if generation.engine == "scripted":
            yield from _script(f"{key}.script", root / generation.script)
    for name, settings in names.of_kind(params, MergeStage):
        if (policy := settings.tokenizer) and policy.source not in ("union", "base") and not (root / policy.source).is_dir():
            yield f"stages.{name}.tokenizer.source", f"'{policy.source}' is neither union, nor base, nor a folder"
    for name, stage in params.stages.items():
        for reference in stage.rows_read:
            if reference.endswith((*FILES, TEXT)) and not (root / reference).is_file():
                key = "stored" if reference == getattr(stage, "stored", None) else "data" if isinstance(stage, Reading) else "search.data"
                yield f"stages.{name}.{key}", f"{reference}: no such file{models.neighbour(root / reference)}"
    yield from _commands(params, root)
    yield from _devices(params, device)


def left_open(params: Params, root: Path) -> Iterator[str]:
    """What nobody can tell without the network or a long look: said with the plan."""
    yield from models.left_open(params.base, root)
    for key, source in names.sources(params).items():
        if isinstance(source, FileSource) and source.kind == "huggingface" and not (root / source.path).exists():
            yield f"{key}.path {source.path}: a hub id, looked up when the stage sources starts"
    if not os.environ.get(names.TEACHER_URL):
        for key, curation in names.curations(params).items():
            if skipped := [step for step in curation.steps if step in ASKING]:
                yield f"{key}.steps {', '.join(skipped)}: skipped, for {names.TEACHER_URL} is not set"


def _rows(key: str, source: FileSource, root: Path) -> names.Faults:
    """Is the file there, and do its first rows become problems that their verifier can judge?"""
    path = root / source.path
    try:
        if source.kind == "huggingface":
            extras.require("datasets", "kind huggingface")
            if not path.exists() and is_hub_id(source.path):
                return
        found = list(islice(files.problems(source, 0, key.rpartition(".")[2], root), LOOKED_AT))
    except UserError as error:
        sentence = str(error).split("': ", 1)[-1]
        yield f"{key}.{'fields' if sentence.startswith('fields ') else 'path'}", sentence + ("" if path.exists() else models.neighbour(path))
        return
    problems = [row for row in found if isinstance(row, Problem)]
    bad = [row for row in found if isinstance(row, BadRow)]
    if problems:
        if not any(names.verifier(key, source)):
            yield from _verdict(key, problems[0])
    elif bad:
        first = bad[0]
        where = f"{source.path} line {first.line}: {first.field}: {first.reason}{_column(first)}"
        yield f"{key}.fields", f"none of the first {len(found)} rows fits; {where}"
    else:
        yield f"{key}.path", f"{source.path} holds no row"


def _column(bad: BadRow) -> str:
    """The column that a missing one may have meant."""
    if bad.reason != "missing field":
        return ""
    try:
        return nearest(bad.field, json.loads(bad.raw))
    except ValueError:  # a long row is kept in part
        return ""


def _verdict(key: str, problem: Problem) -> names.Faults:
    """Can the verifier of the first row judge with its settings?"""
    response = gold_response(problem)
    try:
        if problem.verifier == "code":
            harness_item(problem, response, ProgramLimits())
        verdict = begin(problem, response)
    except InfrastructureError as error:
        if problem.verifier != "judge":  # which lacks its address, as is told once
            yield f"{key}.verifier_args", f"the first row: {error}"
        return
    if getattr(verdict, "outcome", None) is Outcome.INFRASTRUCTURE:
        yield f"{key}.verifier_args", f"the first row: {verdict.detail}"  # type: ignore[union-attr]


def _packages(params: Params) -> names.Faults:
    wanted = {f"{key}.engine": ("ray", "ray") for key, curation in names.curations(params).items() if curation.engine == "ray"}
    wanted |= {f"stages.{name}.lora": ("peft", "lora") for name, stage in names.of_kind(params, LearningStage) if stage.lora}
    for key, generation in names.generations(params).items():
        if generation.engine == "vllm" or (generation.engine == "vllm_server" and not os.environ.get(names.GENERATION_URL)):
            wanted[f"{key}.engine"] = "vllm", generation.engine
    for key, (package, what) in wanted.items():
        try:
            extras.require(package, f"'{what}'")
        except UserError as error:
            yield key, str(error)


def _embeddings(params: Params, root: Path) -> names.Faults:
    for key, curation in names.curations(params).items():
        wanted = {}
        if "decontaminate" in curation.steps and curation.decontamination.paraphrases and curation.decontamination.paraphrases.embedding:
            wanted[f"{key}.decontamination.paraphrases.embedding"] = curation.decontamination.paraphrases.embedding
        if "semantic_dedup" in curation.steps and curation.semantic_duplicates:
            wanted[f"{key}.semantic_duplicates.embedding"] = curation.semantic_duplicates.embedding
        for at, model in wanted.items():
            try:
                packaged.located(model)
            except UserError as error:
                yield at, str(error)
            misspelt = difflib.get_close_matches(model, packaged.PACKAGED, cutoff=0.8)
            if model not in packaged.PACKAGED and not (root / model).is_dir() and (misspelt or not is_hub_id(model)):
                known = ", ".join(packaged.PACKAGED)
                yield at, f"'{model}' is neither a packaged model ({known}), nor a folder, nor a hub id{nearest(model, packaged.PACKAGED)}"


def _script(key: str, path: Path) -> names.Faults:
    if not path.is_file():
        near = models.neighbour(path)
        yield key, f"'{path.name or path}' is no file; engine scripted answers from a JSON file of prompts and their responses{near}"
    elif not isinstance(models.json_of(path), Mapping):
        yield key, f"{path} is no JSON object of prompts and their responses"


def _commands(params: Params, root: Path) -> names.Faults:
    """Programs of stages of kind command: their code, their virtual environment, and what they are to be passed."""
    for name, stage in names.of_kind(params, CommandStage):
        key = f"stages.{name}"
        for entry in stage.code:
            if not (root / entry).exists():
                yield f"{key}.code", f"{entry}: no such file or folder{models.neighbour(root / entry)}"
        programs = root / stage.environment / "bin" if stage.environment else None
        first = stage.command[0]
        if programs and not (programs / "python").exists():
            yield f"{key}.environment", f"{stage.environment}: there is no virtual environment (docs/COMMAND.md says how those of overlays are made)"
        elif not first.startswith(stage.code) and not shutil.which(first, path=program.searched(programs, os.environ)):
            yield f"{key}.command", f"there is no program '{first}'" + (f" in {stage.environment}/bin or on PATH" if programs else " on PATH")
        yield from ((f"{key}.variables", f"{variable} is not set") for variable in stage.variables if variable not in os.environ)


def _devices(params: Params, device: str) -> names.Faults:
    """Only where more than the CPU in float32 is asked for: it takes the seconds that torch takes to load."""
    asked: dict[str, tuple[str, int]] = {f"stages.{name}": (stage.precision, stage.processes) for name, stage in names.of_kind(params, LearningStage)}
    if device == "cpu":
        asked = {key: each for key, each in asked.items() if each[0] == "bfloat16"}
    elif not asked:
        asked["TOUCHSTONE_DEVICE"] = "float32", 1
    others = {key: generation.precision for key, generation in names.generations(params).items()}
    others |= {"base.train": params.base.train.precision}
    others |= {f"stages.{name}.train": stage.train.precision for name, stage in names.of_kind(params, TrainedStage)}
    asked |= {key: (precision, 1) for key, precision in others.items() if precision == "bfloat16"}
    code, home = [sys.executable, "-c", _DEVICE, device], Path(__file__).parents[2]
    for precision, processes in dict.fromkeys(asked.values()):
        done = subprocess.run([*code, precision, str(processes)], cwd=home, capture_output=True, text=True, check=False)
        if done.returncode:
            sentence = done.stderr.strip().splitlines()[-1]
            yield from ((key, sentence) for key, each in asked.items() if each == (precision, processes))
