"""params.yaml: merging, evaluation, report."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipelines.config.common import GenerationSettings, Positive, Section, Share


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
    tolerate: Share = 0.05
    """On every other benchmark the mean pass@1 may fall by at most this."""


class EvaluationSettings(Section):
    """Every checkpoint on every benchmark."""

    models: tuple[str, ...] | None = None
    """Checkpoints to evaluate: base, sft, names of RL stages, merged; null takes all of them."""
    samples: Positive = 16
    """Responses per problem; pass@k needs k <= samples."""
    ks: tuple[Positive, ...] = (1, 2, 4, 8)
    """k of pass@k."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """First problems of each benchmark only."""
    generation: GenerationSettings = GenerationSettings()
    bootstrap: Positive = 10000
    """Resamples of problems for intervals."""
    gate: GateSettings = GateSettings()


class ReportSettings(Section):
    """The HTML page."""

    samples: Positive = 6
    """Problems shown side by side before and after RL."""
