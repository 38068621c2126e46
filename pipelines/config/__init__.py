"""params.yaml as frozen models, one module per section so that a stage's code dependencies stay its own.

`load(path)` reads and checks a whole file; its errors name the key, what was expected, and the nearest valid key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from pipelines.config.checking import check, nearest
from pipelines.config.command import CommandStage
from pipelines.config.common import Section
from pipelines.config.critique import CritiqueStage
from pipelines.config.curation import CurationSettings, GradeStage, SynthesiseStage
from pipelines.config.distil import DistilStage
from pipelines.config.evaluation import EvaluationSettings, MergeStage, ReportSettings
from pipelines.config.extrapolation import ExtrapolateStage
from pipelines.config.preference import PreferenceStage
from pipelines.config.reward_model import RewardModelStage
from pipelines.config.rl import RlStage
from pipelines.config.sampling import SampleStage
from pipelines.config.selection import SelectStage
from pipelines.config.sources import GENERATORS, SourcesSettings
from pipelines.config.stage import FILES, OUTPUTS, ROLLOUTS, TEXT, Reading
from pipelines.config.targeting import TargetStage
from pipelines.config.training import BaseSettings, PretrainStage, SftStage
from pipelines.errors import UserError

STANDING = ("sources", "curation", "base", "evaluation", "report")
"""Stages that every project has, each with a section of its own; those between `base` and `evaluation` are the mapping `stages`."""
Stage = Annotated[
    SftStage | PretrainStage | GradeStage | SampleStage | SelectStage | CritiqueStage | TargetStage | SynthesiseStage | RlStage | PreferenceStage
    | DistilStage | RewardModelStage | MergeStage | ExtrapolateStage | CommandStage,
    Field(discriminator="kind"),
]
SPLITS = ("base", "sft", "rl")
ROWS: dict[str, tuple[str, ...]] = {
    "grade": ("problems", "graded", "ungraded", "strong"), "sample": ("problems", "reflections"), "select": ("problems",), "critique": ("problems",),
    "target": ("problems",), "synthesise": ("problems",),
}  # fmt: skip
"""Kinds that make rows -> the files of rows that they make; a reference that names no file means the first."""
OF = {"strong": "strong", "reflections": "reflect"}
"""File of rows that is not always made -> the setting that it is made by."""
POLICIES = ("sft", "pretrain", "rl", "preference", "distil", "merge", "extrapolate", "command")
"""Kinds that make a policy: a model that answers, and that others start from."""
REWARD_MODELS = ("reward_model",)
"""Kinds that make a model which says what a response is worth."""
MODELS = (*POLICIES, *REWARD_MODELS)
"""Kinds that make a model."""
READING_ROLLOUTS = ("sft", "select", "critique", "target", "preference", "reward_model")
"""Kinds that read the rollouts of others."""


class Params(Section):
    """All of params.yaml."""

    seed: int = Field(ge=0)
    """The one seed; every use derives its own stream from it by name."""
    sources: SourcesSettings
    curation: CurationSettings = CurationSettings()
    base: BaseSettings = BaseSettings()
    stages: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Stage] = {}
    """Name -> a stage: its kind, what it starts from, what it reads. The order follows from what they name."""
    evaluation: EvaluationSettings = EvaluationSettings()
    report: ReportSettings = ReportSettings()

    @property
    def models(self) -> tuple[str, ...]:
        """Names of all policies that the stages make, in the order of the stages."""
        return ("base", *(name for name in order(self.stages) if self.stages[name].kind in POLICIES))

    @model_validator(mode="after")
    def _names_agree(self) -> Params:
        gate, told = self.evaluation.gate, list[str]()
        benchmarks = tuple(self.sources.benchmarks)
        told += [f"stages.{name}: a stage of every project is called so; choose another name" for name in self.stages if name in STANDING]
        for name, stage in self.stages.items():
            told += [f"stages.{name}.{sentence}" for sentence in _references(name, stage, self.stages)]
        if not told and (cycle := _cycle(self.stages)):
            told.append(f"stages: {' -> '.join(cycle)} make a cycle, so none of them could run first")
        if told:
            raise ValueError("\n".join(told))

        def known(key: str, names: Iterable[str], what: str, there: tuple[str, ...]) -> None:
            choice = ', '.join(there) or 'none'
            told.extend(f"{key}: '{name}' is no {what}; there are {choice}{nearest(name, there)}" for name in names if name not in there)

        known("evaluation.gate.improve", gate.improve, "benchmark", benchmarks)
        known("evaluation.gate.retain", gate.retain, "benchmark", benchmarks)
        known("evaluation.clusters", self.evaluation.clusters, "benchmark", benchmarks)
        known("evaluation.models", self.evaluation.models or (), "model", self.models)
        reward_models = tuple(name for name, stage in self.stages.items() if stage.kind in REWARD_MODELS)
        known("evaluation.judge.stage", [self.evaluation.judge.stage] if self.evaluation.judge else [], "stage of kind reward_model", reward_models)
        sampled = tuple(name for name, stage in self.stages.items() if stage.leaves_rollouts and stage.kind in MODELS)
        known("evaluation.rollouts", self.evaluation.rollouts or (), "stage that leaves rollouts", sampled)
        evaluated = self.models if self.evaluation.models is None else self.evaluation.models
        known("evaluation.gate.candidate", [gate.candidate], "model that is evaluated", evaluated)
        known("evaluation.gate.against", [gate.against], "model that is evaluated", evaluated)
        known("evaluation.compare", [name for pair in self.evaluation.compare for name in pair], "model that is evaluated", evaluated)
        known("evaluation.gaps", [name for gap in self.evaluation.gaps for name in gap], "model that is evaluated", evaluated)
        if (most := max(self.evaluation.ks, default=1)) > self.evaluation.samples:
            told.append(f"evaluation.ks: pass@{most} needs as many samples, got evaluation.samples = {self.evaluation.samples}")
        if told:
            raise ValueError("\n".join(told))
        return self


def _references(name: str, stage: Stage, stages: Mapping[str, Stage]) -> Iterator[str]:
    """What is wrong with the names that a stage gives."""
    others = {other: each for other, each in stages.items() if other != name}
    models = ["base", *(other for other, each in others.items() if each.kind in POLICIES)]
    reward_models = [other for other, each in others.items() if each.kind in REWARD_MODELS]
    for model in stage.models_read:
        if model not in models:
            keys = ("init", "start", "reference", "later", "models", "teachers")
            of_sample = "outputs.by" if stage.kind == "sample" and stage.outputs and stage.outputs.by == model else "reflect.by"
            nested = of_sample if stage.kind == "sample" else "strong.model"
            key = next((key for key in keys if model in _names(getattr(stage, key, None))), nested)
            yield f"{key}: {_unfit(model, name, stages, 'model')}; choose one of {', '.join(models)}{nearest(model, models)}"
    for key, scorer in stage.reward_models_named:
        if scorer not in reward_models:
            choice = f"choose one of {', '.join(reward_models)}{nearest(scorer, reward_models)}"
            choice = choice if reward_models else "add a stage of kind reward_model"
            yield f"{key}: {_unfit(scorer, name, stages, 'reward model')}; {choice}"
    along = {"init": stage.init} if isinstance(stage, ExtrapolateStage) else {"later": stage.later} if isinstance(stage, RlStage) else {}
    for key, model in along.items():
        if model in models and not getattr(others.get(model), "keep", None):
            keeping = [other for other, each in others.items() if getattr(each, "keep", None)]
            yield f"{key}: '{model}' keeps no weights along its training; {_choice(keeping)}"
    made = [(other, file) for other, each in others.items() for file in ROWS.get(each.kind, ()) if getattr(each, OF.get(file, "kind"))]
    rows = [f"curation/{split}" for split in SPLITS] + _rollouts(stage, others)
    rows += [other if file == "problems" else f"{other}/{file}" for other, file in made]
    for reference in stage.rows_read:
        files = (*FILES, TEXT) if stage.kind == "pretrain" else FILES
        if stage.kind == "distil" and reference == stage.stored and reference.endswith(OUTPUTS):
            there = [f"{other}{OUTPUTS}" for other, each in others.items() if each.kind == "sample" and each.outputs]
            if reference not in there:
                choice = f"choose one of {', '.join(there)}" if there else "give a stage of kind sample `outputs`"
                yield f"stored: '{reference}' names no outputs; {choice}{nearest(reference, there)}"
            continue
        if not reference.endswith(files) and reference.removesuffix("/problems") not in rows:
            own = next((key for key in ("weak", "answers") if getattr(stage, key, None) == reference), "data")
            key = own if isinstance(stage, Reading) else "search.data"
            choice = f"choose one of {', '.join(rows)}, or a file *{' or *'.join(files)}"
            yield f"{key}: {_unfit(reference, name, stages, 'rows')}; {choice}{nearest(reference, rows)}"


def _choice(keeping: Iterable[str]) -> str:
    """What to do where the stage keeps nothing."""
    return "give a stage that trains `keep: {every: ...}`" + (f", or choose one of {', '.join(keeping)}" if keeping else "")


def _rollouts(stage: Stage, others: Mapping[str, Stage]) -> list[str]:
    """References to rollouts that a stage can read."""
    return [f"{other}{ROLLOUTS}" for other, each in others.items() if each.leaves_rollouts] if stage.kind in READING_ROLLOUTS else []


def _unfit(named: str, name: str, stages: Mapping[str, Stage], wanted: str) -> str:
    """Why a name is none of what is wanted: `model`, `reward model` or `rows`."""
    if named == name:
        return f"'{named}' is the stage itself"
    if named not in stages:
        return f"'{named}' names no {wanted}"
    kind = stages[named].kind
    if kind in REWARD_MODELS and wanted == "model":
        return f"stage '{named}' of kind {kind} makes a model that scores responses, and a policy is wanted"
    asked = "rows are wanted" if wanted == "rows" else f"a {wanted} is wanted"
    return f"stage '{named}' of kind {kind} makes {'a model' if kind in MODELS else 'rows'}, and {asked}"


def _names(given: str | tuple[str, ...] | Mapping[str, str] | None) -> tuple[str, ...]:
    """What a key names: one, several or none."""
    if isinstance(given, Mapping):
        return tuple(given.values())
    return (given,) if isinstance(given, str) else given or ()


def _sources(stage: Stage) -> list[str]:
    """Names of the stages that a stage reads."""
    return [*stage.models_read, *stage.reward_models_read, *(reference.partition("/")[0] for reference in stage.rows_read)]


def order(stages: Mapping[str, Stage]) -> list[str]:
    """The names in an order in which the stages can run: that of the alphabet, except that a stage follows what it reads."""
    ordered: list[str] = []

    def visit(name: str) -> None:
        for other in _sources(stages[name]):
            if other in stages and other not in ordered:
                visit(other)
        if name not in ordered:
            ordered.append(name)

    for name in stages:
        visit(name)
    return ordered


def _cycle(stages: Mapping[str, Stage]) -> list[str] | None:
    """Names of stages that read each other in a ring, the first again at the end."""

    def visit(seen: list[str]) -> list[str] | None:
        for other in _sources(stages[seen[-1]]):
            if other in seen:
                return [*seen[seen.index(other) :], other]
            if other in stages and (found := visit([*seen, other])):
                return found
        return None

    return next((found for name in stages if (found := visit([name]))), None)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML 1.1 lets a repeated key silently win; here it is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from disk.

    Raises:
        UserError: no such file, not YAML, a key given twice, or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(), _UniqueKeyLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of sections, got {type(content).__name__}")
    return content


def load(path: Path) -> Params:
    """Read and check a params file.

    Raises:
        UserError: one sentence per problem found, each naming the key.
    """
    return check(Params, read_yaml(path), str(path))


def resolve(params: Params, stage: str) -> Section:
    """The settings of one stage with every null that stands for 'all of them' filled in; this is what the stage is given.

    Raises:
        UserError: no such stage.
    """
    if stage in params.stages:
        settings: Section = params.stages[stage]
    elif stage in STANDING:
        settings = getattr(params, stage)
    else:
        raise UserError(f"there is no stage '{stage}'{nearest(stage, [*STANDING, *params.stages])}")
    if isinstance(settings, SynthesiseStage):
        procedural = {key: source for key, source in params.sources.train.items() if source.kind in GENERATORS}
        filled: dict[str, Any] = {"generators": procedural, "curation": params.curation}
    elif isinstance(settings, ExtrapolateStage):
        filled = {"start": getattr(params.stages[settings.init], "init", None)}
    elif isinstance(settings, EvaluationSettings):
        models = params.models if settings.models is None else settings.models
        filled = {"models": models, "rollouts": tuple(name for name in models if name in params.stages and params.stages[name].leaves_rollouts)}
    else:
        return settings
    return settings.model_copy(update={key: value for key, value in filled.items() if getattr(settings, key) is None})
