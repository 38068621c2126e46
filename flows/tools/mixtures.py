"""`touchstone mixture`: which shares of its rows a stage should train on, foretold from finished stages with other shares."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import UserError


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    sub = add("mixture", mixture, "the shares of rows that a stage should train on, foretold from evaluated stages with other shares (MoDoMoDo)")
    sub.add_argument("names", nargs="+", metavar="NAME", help="stages that were trained and evaluated, each on other shares; with --seeds: rows")
    sub.add_argument("--seeds", action="store_true", help="print the mixtures to begin with, `data` of a stage each")
    sub.add_argument("--benchmark", metavar="NAME", help="what pass@1 is of; one that no set is of tells of more than memory")
    sub.add_argument("--ridge", type=float, metavar="R", help="weight of the squared coefficients (1e-6); more where scores are noisy")


def mixture(options: argparse.Namespace) -> int:
    import numpy as np

    from pipelines.curation import mixtures
    from tasks import settings

    if options.seeds:
        for shares in mixtures.seeds(options.names):
            print(_yaml(shares))
        return 0
    if options.benchmark is None:
        raise UserError("mixture: say which --benchmark the runs are compared by")
    ridge = mixtures.RIDGE if options.ridge is None else options.ridge
    shares, scores = finished(settings.root(), options.names, options.benchmark)
    sets = sorted({name for run in shares for name in run})
    if len(sets) < 2 or len(shares) < 3:
        raise UserError(f"mixture: expected at least three runs of at least two sets, got {len(shares)} of {', '.join(sets)}")
    shares_ND, score_N = np.array([[run.get(name, 0.0) for name in sets] for run in shares]), np.array(scores)
    surface = mixtures.fit(shares_ND, score_N, ridge)
    chosen = mixtures.best(surface)
    missed, plain = mixtures.left_out(shares_ND, score_N, ridge)
    print(f"{len(shares)} runs of {len(sets)} sets, {mixtures.figures(len(sets))} figures to fit")
    print(f"a run that the fit has not seen is missed by {missed:.4f}, by the mean of the others {plain:.4f}")
    highest = int(score_N.argmax())
    foretold = float(surface(chosen[None])[0])
    print(f"pass@1 of {options.benchmark}: {foretold:.4f} foretold, {score_N[highest]:.4f} the best run ({options.names[highest]})")
    if len(shares) < mixtures.figures(len(sets)) or missed >= plain:
        print("look at this: so few runs, or such noisy ones, do not tell where the best mixture is; train on more seed mixtures (--seeds)")
    print(_yaml(dict(zip(sets, chosen.tolist(), strict=True))))
    return 0


def finished(root: Path, names: Sequence[str], benchmark: str) -> tuple[list[dict[str, float]], list[float]]:
    """Of each of these stages the shares that it was trained on, by its manifest, and its model's pass@1.

    Raises:
        UserError: one has not run, reads no rows, differs in other settings too, or was not evaluated on the benchmark.
    """
    from pipelines import paths
    from pipelines.lineage.manifests import parameters, read_manifests
    from pipelines.store import read_json

    manifests = read_manifests(root)
    scores = read_json(root / paths.SCORES)["models"] if (root / paths.SCORES).exists() else {}
    shares, found, first = [], [], dict[str, Any]()
    for name in names:
        given = dict(parameters(manifests[name])["settings"]) if name in manifests else {}
        data = given.pop("data", None)
        if not data:
            raise UserError(f"mixture: '{name}' is no stage with `data` that has run")
        first = first or given
        if other := sorted(key for key in first.keys() | given.keys() if first.get(key) != given.get(key)):
            raise UserError(f"mixture: '{name}' differs from '{names[0]}' in {', '.join(other)} too, so shares alone do not tell their scores apart")
        figures: Mapping[str, Any] = scores.get(name, {})
        if benchmark not in figures:
            known = f"it has {', '.join(sorted(figures))}" if figures else "it was not evaluated; name it in evaluation.models"
            raise UserError(f"mixture: there is no score of '{name}' on the benchmark '{benchmark}'; {known}")
        if len(data) > 1 and any(rows["share"] is None for rows in data.values()):
            raise UserError(f"mixture: '{name}' takes all rows of {', '.join(data)}, and how many that were, nobody says; give each a share")
        whole = sum(rows["share"] or 1.0 for rows in data.values())
        shares.append({reference: (rows["share"] or 1.0) / whole for reference, rows in data.items()})
        found.append(float(figures[benchmark]["pass_at_k"]["1"]["mean"]))
    return shares, found


def _yaml(shares: Mapping[str, float]) -> str:
    parts = ", ".join(f"{name}: {{share: {share:.4f}}}" for name, share in shares.items() if share >= 5e-5)
    return f"data: {{{parts}}}"
