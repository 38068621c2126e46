"""Several experts into one model: `merge(config, out)`, and the published rules as rows of METHODS.

Rules are functions over one tensor (`methods.py`); files, checks and memory are the engine's (`streaming.py`). A rule that needs
statistics of the whole model takes them as a third argument and has a row in REDUCTIONS, which is summed over all tensors first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from pipelines.config.common import Positive, Section
from pipelines.merging.methods import linear, overlap, ram, ram_plus, task_arithmetic, ties
from pipelines.merging.streaming import DTYPES, MergeSummary, open_inputs, stream
from pipelines.methods import bind, settings_of

__all__ = ["METHODS", "MergeConfig", "MergeSummary", "merge"]

METHODS: dict[str, Callable[..., torch.Tensor]] = {
    "linear": linear,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "ram": ram,
    "ram_plus": ram_plus,
}
REDUCTIONS: dict[str, Callable[..., torch.Tensor]] = {"ram_plus": overlap}
"""Method -> the statistic whose sum over all tensors it takes."""


class MergeConfig(Section):
    """One merge."""

    base: Path
    """Model folder that deltas are taken from, and whose config and tokenizer the result gets."""
    models: tuple[Path, ...] = Field(min_length=1)
    """Model folders to merge."""
    method: str = "ram"
    """A row of METHODS."""
    settings: dict[str, Any] = Field(default={})
    """Keyword settings of the method."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Stored dtype of the result."""
    shard_bytes: Positive = 5_000_000_000
    """Largest weight file; a larger model gets several and an index."""


def merge(config: MergeConfig, out: Path) -> MergeSummary:
    """Merge `config.models` into the model folder `out`, which appears whole or not at all.

    Raises:
        UserError: unknown method or setting, or inputs that do not fit together or are not finite.
    """
    method = bind("merge method", METHODS, config.method, config.settings)
    inputs = open_inputs(config.base, config.models)
    counts = None
    if config.method in REDUCTIONS:
        statistic = REDUCTIONS[config.method]
        settings = {name: value for name, value in config.settings.items() if name in settings_of(statistic)}
        for base, experts in inputs.floating():
            one = statistic(base, experts, **settings)
            counts = one if counts is None else counts + one
    return stream(inputs, method, counts, DTYPES[config.dtype], config.shard_bytes, out)
