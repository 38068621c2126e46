"""params.yaml: merging, evaluation, report."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.config.common import GenerationSettings, Positive, Section, Share
from pipelines.config.diagnostics import DiagnosticsSettings


class MergingSettings(Section):
    """How the RL experts become one model."""

    method: str = "ram"
    """A row of pipelines.merging.METHODS."""
    base: str = "sft"
    """Model that deltas are taken from."""
    models: tuple[str, ...] | None = None
    """RL stages to merge; null takes all of them."""
    settings: dict[str, Any] = {}
    """Keyword settings of the method."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Stored dtype of the merged weights."""


class GateSettings(Section):
    """When the merged model becomes `champion`."""

    candidate: str = "merged"
    """Model that is judged."""
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
    """Checkpoints to evaluate: base, sft, names of RL stages, merged; null takes all of them."""
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
    bootstrap: Positive = 10000
    """Resamples of problems for intervals, and sign flips for p-values, none of which is below 1 / (resamples + 1)."""
    gate: GateSettings = GateSettings()
    diagnostics: DiagnosticsSettings = DiagnosticsSettings()


class ReportSettings(Section):
    """The HTML page."""

    samples: Positive = 6
    """Problems shown side by side before and after RL."""
