"""params.yaml: evaluation.diagnostics."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.config.common import Count, Positive, Section


class DiagnosticsSettings(Section):
    """What RL did beyond the scores: boundary, entropy, scaling, weights."""

    entropy_problems: Count = 32
    """First problems of each benchmark on which token-level entropy is measured; 0 leaves it out."""
    entropy_samples: Positive = 2
    """Responses to each of them."""
    horizon: Annotated[float, Field(gt=1.0)] = 2.0
    """Reward of RL is extrapolated to this many times the steps of the run."""
    weights_dtype: Literal["bfloat16", "stored"] = "bfloat16"
    """Precision in which two checkpoints are compared: bfloat16, in which models are served, or as stored."""
    rank: Positive = 512
    """Leading singular directions whose rotation is measured; at most half of a matrix's smaller side."""
    exact: Positive = 128
    """Matrices whose smaller side is at most this are decomposed as they are, larger ones through their Gram matrix."""
    weights_budget: Annotated[float, Field(gt=0.0)] = 15.0
    """Seconds for the decompositions of a pair of models: as many matrices as this buys by a cost model, not by the clock, of each kind and at
    all depths, so all machines choose the same. What is of all tensors comes on top: some seconds per 100 M parameters."""
