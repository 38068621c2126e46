"""One thin module per kind of stage: read its inputs, call the science, write its outputs whole.

Each has `run(context) -> summary`. Only these modules know file names, and only they may combine two sciences (synthesis
curates what it proposes). `ENTRIES` says where each lives, without importing it: a stage loads only what it needs. rows.py: what of the
named rows a stage reads; responses.py: the stored responses; learning.py: what the kinds share that a recipe trains.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines import paths
from pipelines.lineage.external import Origin
from pipelines.progress import Journal

ENTRIES = {
    "sources": ("pipelines.stages.sources", "pipelines.config.sources", "SourcesSettings"),
    "curation": ("pipelines.stages.curation", "pipelines.config.curation", "CurationSettings"),
    "base": ("pipelines.stages.base", "pipelines.config.training", "BaseSettings"),
    "sft": ("pipelines.stages.sft", "pipelines.config.training", "SftStage"),
    "grade": ("pipelines.stages.grade", "pipelines.config.curation", "GradeStage"),
    "pretrain": ("pipelines.stages.pretrain", "pipelines.config.training", "PretrainStage"),
    "sample": ("pipelines.stages.sample", "pipelines.config.sampling", "SampleStage"),
    "select": ("pipelines.stages.select", "pipelines.config.selection", "SelectStage"),
    "critique": ("pipelines.stages.critique", "pipelines.config.critique", "CritiqueStage"),
    "target": ("pipelines.stages.target", "pipelines.config.targeting", "TargetStage"),
    "synthesise": ("pipelines.stages.synthesise", "pipelines.config.curation", "SynthesiseStage"),
    "rl": ("pipelines.stages.rl", "pipelines.config.rl", "RlStage"),
    "preference": ("pipelines.stages.preference", "pipelines.config.preference", "PreferenceStage"),
    "distil": ("pipelines.stages.distil", "pipelines.config.distil", "DistilStage"),
    "reward_model": ("pipelines.stages.reward_model", "pipelines.config.reward_model", "RewardModelStage"),
    "command": ("pipelines.stages.command", "pipelines.config.command", "CommandStage"),
    "merge": ("pipelines.stages.merge", "pipelines.config.evaluation", "MergeStage"),
    "extrapolate": ("pipelines.stages.extrapolate", "pipelines.config.extrapolation", "ExtrapolateStage"),
    "evaluation": ("pipelines.stages.evaluation", "pipelines.config.evaluation", "EvaluationSettings"),
    "report": ("pipelines.stages.report", "pipelines.config.evaluation", "ReportSettings"),
}
"""Kind -> its module, the module and the class of its settings."""


ON_CHANGE = {
    "accept": "continue interrupted work though settings, inputs or code have changed since; the manifest records it",
    "discard": "begin again where interrupted work was made with other settings, inputs or code",
}
"""What becomes of interrupted work that was made otherwise; without a word it is refused."""


@dataclass(frozen=True)
class Context:
    """What a stage gets to know.

    stage: its name. root: the project root that `pipelines.paths` is relative to. settings: its
    section of params, resolved. work: folder of the stage outside its outputs: journal, caches. device: cpu, cuda, ... on_change: what
    becomes of interrupted work that was made otherwise: refuse, accept, discard. accepted: such changes, for the manifest. origins:
    dotted key in the settings -> what the stage read there and came from elsewhere (a hub, an index), for the manifest. installed: packages of
    a virtual environment that a program of the stage runs in, by version, for the manifest. notices: what somebody should look at. measured: what
    its model is worth, for the manifest. first: this process writes for all that the stage has.
    """

    stage: str
    root: Path
    seed: int
    settings: Any
    work: Path
    journal: Journal
    device: str = "cpu"
    on_change: Literal["refuse", "accept", "discard"] = "refuse"
    accepted: list[dict[str, Any]] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    installed: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    first: bool = True

    def notice(self, text: str) -> None:
        """Say what somebody should look at, now and wherever the stage is looked at: manifest, report, MLflow, the end of a run."""
        self.journal.say(f"look at this: {text}")
        self.notices.append(text)

    @property
    def resume(self) -> Path:
        """Folder of what an interrupted run continues from: whoever records the stage clears it, the stage never does."""
        return self.work / paths.RESUME
