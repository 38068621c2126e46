"""Kind extrapolate: the model that a training would have become, from the weights that it kept on its way.

Writes data/models/<NAME>, with extrapolation.json: what was found of every tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipelines import paths
from pipelines.config.checking import check
from pipelines.config.extrapolation import ExtrapolateStage
from pipelines.errors import UserError
from pipelines.merging import MergeConfig, MergeSummary, merge
from pipelines.models.kept import steps
from pipelines.stages import Context
from pipelines.store import write_json

LITTLE = 0.5
"""A method that keeps less than this share of the update, as squared norm, is pointed at."""


def run(context: Context) -> dict[str, float]:
    """Read the kept steps, write the model. Returns how well they lie on lines.

    Raises:
        UserError: fewer than two steps were kept, or the target is none of a later step.
    """
    settings: ExtrapolateStage = context.settings
    kept = steps(context.root / paths.KEPT / settings.init)
    if len(kept) < 2:
        raise UserError(f"{context.stage}: {settings.init} kept {len(kept)} steps of its training, and a line needs two; lower its keep.every")
    if settings.target <= (last := max(kept)):
        raise UserError(f"{context.stage}.target: step {settings.target} is not later than {last}, the last that {settings.init} kept")
    given = {
        "base": context.root / paths.model(settings.start or ""),
        "models": tuple(kept.values()),
        "method": settings.method,
        "settings": {**settings.settings, "steps": list(kept), "target": settings.target},
        "dtype": settings.dtype,
        "seed": context.seed,
    }
    folder = context.root / paths.model(context.stage)
    summary = merge(check(MergeConfig, given, f"params.yaml: stages.{context.stage}"), folder, owned=True)
    write_json(folder / paths.EXTRAPOLATION, {"method": settings.method, "steps": list(kept), "target": settings.target, "tensors": summary.told})
    figures = pooled(summary.told)
    if (explained := figures.get("explained", 1.0)) < LITTLE:
        context.notice(
            f"the directions that go on hold {explained:.0%} of the update of {settings.init} (squared norm); the rest of it is left out: raise rank"
        )
    told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    context.journal.say(f"{settings.method} of {len(kept)} steps up to {last}, read at {settings.target}: {told}")
    return {"kept": float(len(kept)), "last_step": float(last), "target": float(settings.target), **figures, **_size(summary)}


def pooled(told: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Of all tensors, each by its share of |update|^2: `explained`, `fit` and `length` as the method tells them (merging/trajectory.py), and the
    least `fit` of a tensor."""
    whole = math.fsum(figures["update"] for figures in told.values())
    names = [name for name in ("explained", "fit", "length") if any(name in figures for figures in told.values())]
    mean = {name: math.fsum(figures[name] * figures["update"] for figures in told.values()) / whole if whole else 0.0 for name in names}
    fits = [figures["fit"] for figures in told.values() if figures["update"] and "fit" in figures]
    return mean | ({"least_fit": min(fits)} if fits else {})


def _size(summary: MergeSummary) -> dict[str, float]:
    return {"tensors": float(summary.tensors), "parameters": float(summary.parameters)}
