"""Kind extrapolate: the model that a training would have become, from the weights that it kept on its way.

Writes data/models/<NAME>, with extrapolation.json: what was found of every tensor. With `search`, several steps answer problems that no figure is of,
and the best becomes the model (search.json).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines import paths
from pipelines.config.checking import check
from pipelines.config.extrapolation import ExtrapolateStage, TargetSearchSettings
from pipelines.errors import UserError
from pipelines.merging import MergeConfig, MergeSummary, merge
from pipelines.merging.search import Candidate, grid, search
from pipelines.models.kept import steps
from pipelines.stages import Context
from pipelines.stages.judging import judge_of
from pipelines.stages.searching import Scorer, figures, record_of
from pipelines.store import write_json
from pipelines.verifiers import VerifierPool

LITTLE = 0.5
"""A method that keeps less than this share of the update, as squared norm, is pointed at."""


def run(context: Context) -> dict[str, float]:
    """Read the kept steps, write the model. Returns how well they lie on lines.

    Raises:
        UserError: fewer than two steps were kept, or a target is none of a later step.
    """
    settings: ExtrapolateStage = context.settings
    kept = steps(context.root / paths.KEPT / settings.init)
    if len(kept) < 2:
        raise UserError(f"{context.stage}: {settings.init} kept {len(kept)} steps of its training, and a line needs two; lower its keep.every")
    last, own = max(kept), settings.settings | {"target": settings.target}
    tried = {"target": [settings.target], "search.grid.target": settings.search.grid.get("target", []) if settings.search else []}
    for key, targets in tried.items():
        if (least := min(targets, default=last + 1)) <= last:
            raise UserError(f"{context.stage}.{key}: step {least} is not later than {last}, the last that {settings.init} kept")
    chosen, record = Candidate(settings.method, settings.method, own), None
    if settings.search:
        chosen, record = _search(context, settings.search, own, kept)
    target, folder = chosen.settings["target"], context.root / paths.model(context.stage)
    summary = merge(_config(context, chosen, kept), folder, owned=True)
    write_json(folder / paths.EXTRAPOLATION, {"method": settings.method, "steps": list(kept), "target": target, "tensors": summary.told})
    found = pooled(summary.told)
    if (explained := found.get("explained", 1.0)) < LITTLE:
        context.notice(
            f"the directions that go on hold {explained:.0%} of the update of {settings.init} (squared norm); the rest of it is left out: raise rank"
        )
    told = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    context.journal.say(f"{settings.method} of {len(kept)} steps up to {last}, read at {target}: {told}")
    if record:
        write_json(folder / paths.SEARCH, record)
        found |= figures(record)
    return {"kept": float(len(kept)), "last_step": float(last), "target": float(target), **found, **_size(summary)}


def _config(context: Context, candidate: Candidate, kept: Mapping[int, Path]) -> MergeConfig:
    settings: ExtrapolateStage = context.settings
    given = {
        "base": context.root / paths.model(settings.start or ""),
        "models": tuple(kept.values()),
        "method": settings.method,
        "settings": {**candidate.settings, "steps": list(kept)},
        "dtype": settings.dtype,
        "seed": context.seed,
    }
    return check(MergeConfig, given, f"params.yaml: stages.{context.stage}")


def _search(context: Context, wanted: TargetSearchSettings, own: Mapping[str, Any], kept: Mapping[int, Path]) -> tuple[Candidate, dict[str, Any]]:
    """The settings that validate best, and the record of the search: they are compared with the model that the training ended with."""
    settings: ExtrapolateStage = context.settings
    candidates = [*grid(settings.method, own, {}), *grid(settings.method, own, wanted.grid)]
    for candidate in candidates:  # a misspelt one is told before hours of scoring
        _config(context, candidate, kept).rule_for(1)

    def make(candidate: Candidate, folder: Path) -> object:
        return merge(_config(context, candidate, kept), folder, owned=True, empty=True)

    with VerifierPool(judge=judge_of(context, wanted.judge, context.device)) as pool:
        scorer = Scorer(context, wanted, {settings.init: paths.model(settings.init)}, make, pool, (paths.KEPT / settings.init,))
        choice = search(list({candidate.name: candidate for candidate in candidates}.values()), [settings.init], scorer.score, wanted.budget, False)
    return choice.winner, record_of(choice, scorer)


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
