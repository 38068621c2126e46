"""params.yaml: stages of kind merge, evaluation, report."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.config.common import GenerationSettings, Positive, Section, Share
from pipelines.config.diagnostics import DiagnosticsSettings
from pipelines.config.searching import Searching, SearchingSettings
from pipelines.config.stage import Served, Starting


class TokenizerPolicy(Section):
    """What becomes of vocabularies that differ. Without one they stop the merge."""

    source: str = "union"
    """`union`, `base`, or a model folder: whose tokens the result has."""
    pad_to_multiple_of: Positive | None = None
    """Rows of zeros are added to the embedding until its height is a multiple of this."""


class CandidateSettings(Section):
    """Merges that a search tries: one method with every combination of some settings."""

    method: str
    """A row of pipelines.merging.METHODS."""
    settings: dict[str, Any] = {}
    """Keyword settings that all of them share."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Setting -> values to try."""


class SearchSettings(SearchingSettings):
    """Choose the merge by problems that no training has seen."""

    candidates: tuple[CandidateSettings, ...] = (
        CandidateSettings(method="linear"),
        CandidateSettings(method="ram_plus"),
        CandidateSettings(method="ties", grid={"density": [0.2, 0.5]}),
        CandidateSettings(method="task_arithmetic", grid={"lambda": [0.5, 1.0]}),
    )
    """Tried in this order, after the stage's method with its own settings."""
    greedy: bool = True
    """Try the greedy soup too (arXiv 2203.05482)."""


class MergeStage(Searching, Starting):
    """Several models become one."""

    kind: Literal["merge"] = "merge"
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    """Models to merge; what they have learnt is what differs from `init`."""
    method: str = "ram"
    """A row of pipelines.merging.METHODS."""
    settings: dict[str, Any] = {}
    """Keyword settings of the method."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Stored dtype of the merged weights."""
    tokenizer: TokenizerPolicy | None = None
    """What becomes of vocabularies that differ; null refuses them."""
    search: SearchSettings | None = None
    """Try several merges and keep the one that validates best; null merges by `method` alone."""

    @property
    def models_read(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([self.init, *self.models]))


class GateSettings(Section):
    """When a model becomes `champion`."""

    candidate: str = "merged"
    """Model that is judged, and that becomes the champion where it passes."""
    against: str = "sft"
    """Model it is compared with, problem by problem."""
    improve: tuple[str, ...] = ("math",)
    """Benchmarks on which the 95 % paired interval of the pass@1 difference must lie above zero."""
    retain: dict[str, Share] = {}
    """The suite that must not be forgotten: off-domain benchmark -> margin, set before the run. The 95 % paired interval of the pass@1
    difference must lie above minus the margin (non-inferiority)."""
    tolerate: Share = 0.05
    """On every other benchmark the mean pass@1 may fall by at most this."""

    @model_validator(mode="after")
    def _one_rule_each(self) -> GateSettings:
        for name in self.retain:
            if name in self.improve:
                raise ValueError(f"retain: '{name}' stands under improve too; a benchmark has one rule")
        return self


class EvaluationSettings(Section):
    """Every checkpoint on every benchmark."""

    models: tuple[str, ...] | None = None
    """Models to evaluate: base, and stages that make one; null takes all of them."""
    rollouts: tuple[str, ...] | None = None
    """Stages with rollouts whose rewards over steps are looked at; null takes those among the models."""
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs [MODEL, AGAINST] to compare problem by problem, beside each model with the gate's `against` and its candidate with each."""
    gaps: tuple[tuple[str, str, str], ...] = ()
    """Triples [MODEL, WEAK, CEILING]: how much of the gap in pass@1 between a weak model and the ceiling a model that learnt of the weak one recovers
    (Weak-to-Strong Generalization, arXiv 2312.09390), with a bootstrap interval."""
    samples: Positive = 16
    """Responses per problem; pass@k needs k <= samples."""
    ks: tuple[Positive, ...] = (1, 2, 4, 8)
    """k of pass@k and pass^k; the largest is that of maj@k, worst@k and G-pass@k too."""
    taus: tuple[Share, ...] = (0.25, 0.5, 0.75)
    """Shares of correct samples of G-pass@k."""
    clusters: dict[str, str] = {}
    """Benchmark -> label of its topics (`passage` for `passage 12`) whose value says which problems belong together, as those of one
    passage or template do: standard errors, intervals and tests then count clusters, not problems."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """First problems of each benchmark only."""
    generation: GenerationSettings = GenerationSettings()
    judge: Served | None = None
    """The reward model that judges benchmarks of verifier `judge`; null asks the endpoint that TOUCHSTONE_JUDGE_URL names."""
    bootstrap: Positive = 10000
    """Resamples of problems for intervals, and sign flips for p-values, none of which is below 1 / (resamples + 1)."""
    gate: GateSettings = GateSettings()
    diagnostics: DiagnosticsSettings = DiagnosticsSettings()


class ReportSettings(Section):
    """The HTML page."""

    samples: Positive = 6
    """Problems shown side by side before and after RL."""
