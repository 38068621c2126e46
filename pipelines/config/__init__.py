"""params.yaml as frozen models, one module per section so that a stage's code dependencies stay its own.

`load(path)` reads and checks a whole file; its errors name the key, what was expected, and the nearest valid key.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from pipelines.config.checking import check, nearest
from pipelines.config.common import Section
from pipelines.config.curation import CurationSettings, DifficultySettings, SynthesisSettings
from pipelines.config.evaluation import EvaluationSettings, MergingSettings, ReportSettings
from pipelines.config.rl import RlSettings
from pipelines.config.sources import SourcesSettings
from pipelines.config.training import BaseSettings, SftSettings
from pipelines.errors import UserError


class Params(Section):
    """All of params.yaml."""

    seed: int = Field(ge=0)
    """The one seed; every use derives its own stream from it by name."""
    sources: SourcesSettings
    curation: CurationSettings = CurationSettings()
    base: BaseSettings = BaseSettings()
    sft: SftSettings = SftSettings()
    difficulty: DifficultySettings = DifficultySettings()
    synthesis: SynthesisSettings = SynthesisSettings()
    rl: RlSettings
    merging: MergingSettings = MergingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="after")
    def _names_agree(self) -> Params:
        gate, told = self.evaluation.gate, list[str]()
        stages, benchmarks = tuple(self.rl.stages), tuple(self.sources.benchmarks)
        models = ("base", "sft", *stages, "merged")

        def known(key: str, names: Iterable[str], what: str, there: tuple[str, ...]) -> None:
            told.extend(f"{key}: '{name}' is no {what}; there are {', '.join(there)}{nearest(name, there)}" for name in names if name not in there)

        known("merging.models", self.merging.models or (), "RL stage", stages)
        known("merging.base", [self.merging.base], "model to merge from", ("base", "sft", *stages))
        known("evaluation.gate.improve", gate.improve, "benchmark", benchmarks)
        known("evaluation.gate.retain", gate.retain, "benchmark", benchmarks)
        known("evaluation.clusters", self.evaluation.clusters, "benchmark", benchmarks)
        known("evaluation.models", self.evaluation.models or (), "model", models)
        evaluated = models if self.evaluation.models is None else self.evaluation.models
        known("evaluation.gate.candidate", [gate.candidate], "model that is evaluated", evaluated)
        known("evaluation.gate.against", [gate.against], "model that is evaluated", evaluated)
        if (most := max(self.evaluation.ks, default=1)) > self.evaluation.samples:
            told.append(f"evaluation.ks: pass@{most} needs as many samples, got evaluation.samples = {self.evaluation.samples}")
        if told:
            raise ValueError("\n".join(told))
        return self


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
    name, _, item = stage.partition("@")
    if name == "rl":
        if item not in params.rl.stages:
            raise UserError(f"there is no RL stage '{item}'; params.yaml has {', '.join(params.rl.stages) or 'none'}")
        return params.rl.stages[item]
    if name not in Params.model_fields or item or name == "seed":
        raise UserError(f"there is no stage '{stage}'")
    section: Section = getattr(params, name)
    experts = tuple(params.rl.stages)
    if isinstance(section, SynthesisSettings):
        procedural = {key: source for key, source in params.sources.train.items() if source.kind in ("arithmetic", "functions", "reasoning_gym")}
        return section.model_copy(
            update={
                "generators": procedural if section.generators is None else section.generators,
                "curation": params.curation if section.curation is None else section.curation,
            }
        )
    if isinstance(section, MergingSettings):
        return section.model_copy(update={"models": experts if section.models is None else section.models})
    if isinstance(section, EvaluationSettings):
        everything = ("base", "sft", *experts, "merged")
        return section.model_copy(update={"models": everything if section.models is None else section.models})
    return section
