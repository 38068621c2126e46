"""`touchstone boundary`, `interference`, `scaling`, `diff-weights`: what RL did beyond the scores, or would do, from files."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import UserError


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the subcommands."""
    sub = add("boundary", boundary, "pass@k curves of two checkpoints, where they cross, and which problems were lost and found")
    sub.add_argument("start", type=Path, metavar="START.parquet", help="samples of the model that RL began with, as `evaluate --out` writes them")
    sub.add_argument("rl", type=Path, metavar="RL.parquet", help="samples of the other model on the same problems")
    sub.add_argument("--bootstrap", type=int, default=10_000, help="resamples of problems (10000)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", type=Path, metavar="FILE.json", help="gets every figure")
    sub = add("interference", interference, "what learning one problem does to the right answers of the others (The Reasoning Boundary Paradox)")
    sub.add_argument("model", type=Path, metavar="MODEL", help="a folder in Hugging Face format, or a hub id")
    sub.add_argument("samples", type=Path, metavar="SAMPLES.parquet", help="its answers, as `evaluate --out` writes them")
    sub.add_argument("--params", type=Path, metavar="params.yaml", help="problems are put as evaluation.generation of this file says")
    sub.add_argument("--problems", type=int, default=32, help="so many of those with right and wrong answers, drawn at random (32)")
    sub.add_argument("--step", type=float, default=1e-4, help="size of a step, as a share of the norm of the weights (1e-4)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", type=Path, metavar="FILE.json", help="gets every figure and the whole matrix")
    sub = add("scaling", scaling, "fit ScaleRL's sigmoid to a reward curve, extrapolate it, and rank two runs where both tell their asymptote")
    sub.add_argument("curves", type=Path, nargs="+", metavar="CURVE.csv", help="one file, or two to rank; data/plots/rl-NAME.csv is one")
    sub.add_argument("--compute", metavar="COLUMN", help="what was spent, rising (the updates before each row: step - 1)")
    sub.add_argument("--reward", default="pass_rate", metavar="COLUMN", help="what came of it, from 0 to 1 (pass_rate)")
    sub.add_argument("--skip", type=float, default=0.0, metavar="C", help="leave out what lies before this compute")
    sub.add_argument("--until", type=float, metavar="C", help="fit what lies up to this compute only; what follows is the check")
    sub.add_argument("--to", type=float, metavar="C", help="predict the mean reward up to this compute (twice the largest)")
    sub = add("diff-weights", diff_weights, "what training moved: sparsity, spectral drift, rotation and stable rank of the update")
    sub.add_argument("before", type=Path, metavar="BEFORE", help="a model folder with safetensors")
    sub.add_argument("after", type=Path, metavar="AFTER")
    sub.add_argument("--dtype", choices=("bfloat16", "stored"), default="bfloat16", help="precision in which both are seen (bfloat16)")
    sub.add_argument("--rank", type=int, default=512, help="leading singular directions whose rotation is measured (512)")
    sub.add_argument(
        "--exact", type=int, default=128, help="largest smaller side of a matrix that is decomposed as it is, not by its Gram matrix (128)"
    )
    sub.add_argument(
        "--budget", type=float, default=15.0, metavar="SECONDS", help="for decompositions, by a cost model: what fits is a sample; inf takes all (15)"
    )
    sub.add_argument("--out", type=Path, metavar="FILE.json", help="gets every figure of every tensor")


def boundary(options: argparse.Namespace) -> int:
    from pipelines import seeding
    from pipelines.evaluation.boundary import compare
    from pipelines.evaluation.samples import read_samples
    from pipelines.outputs import output_file
    from pipelines.store import write_json

    if options.out:
        output_file(options.out, [options.start, options.rl])
    found = compare(read_samples(options.start), read_samples(options.rl), options.bootstrap, seeding.generator(options.seed, "boundary"))
    if options.out:
        write_json(options.out, {"start": str(options.start), "rl": str(options.rl), "seed": options.seed, **found})
    print(f"{found['problems']} problems, {found['samples']} samples of each model")
    print(f"  {'k':>6}  start                    RL                       RL - start")
    for i, k in enumerate(found["ks"]):
        if k & (k - 1) == 0 or k == found["samples"]:
            start, rl, apart = (one[i] for one in (*found["curves"].values(), found["difference"]))
            print(f"  {k:>6}  {_shown(start)}  {_shown(rl)}  {_shown(apart, '+')}")
    at = found["crossing"]
    ends = f"[{at['low']:.3g}, {'beyond ' + str(found['samples']) if at['high'] is None else format(at['high'], '.3g')}]"
    print(f"  crossing: k* = {at['k']:.3g} {ends}" if at["shown"] else f"  no crossing shown: k* lies in {ends}")
    sets = found["support"]
    print("  " + ", ".join(f"{name.replace('_', ' ')} {sets['full'][name]:.0f}" for name in ("both", "start_only", "rl_only", "neither")))
    for name, meaning, sign in (("srr", "kept", ""), ("ndr", "new ", ""), ("sds", "both", ""), ("nscr", "net ", "+")):
        seen, excess = _shown(sets["full"][name], sign), _shown(sets["excess"][name], "+")
        print(f"  {name.upper():<4} ({meaning})  {seen}  beyond the start against itself: {excess}")
    return 0


def interference(options: argparse.Namespace) -> int:
    from pipelines import paths, seeding
    from pipelines.config import load
    from pipelines.evaluation.interference import answered, figures, measure
    from pipelines.evaluation.samples import read_samples
    from pipelines.models.loading import load_policy
    from pipelines.progress import Journal
    from pipelines.prompting import PLAIN
    from pipelines.store import write_json

    policy, tokenizer = load_policy(options.model, os.environ.get("TOUCHSTONE_DEVICE", "cpu"), chat=False)
    prompt = load(options.params).evaluation.generation.prompt if options.params else PLAIN
    found = answered(read_samples(options.samples), tokenizer, prompt)
    if len(found) < 2:
        raise UserError(f"{options.samples}: {len(found)} problem(s) with right and wrong answers; expected two or more")
    names = sorted(found)
    drawn = seeding.generator(options.seed, "interference").permutation(len(names))[: options.problems]
    chosen = [names[place] for place in sorted(drawn.tolist())]
    journal = Journal(paths.WORK / "interference" / "journal.jsonl", "interference", sys.stderr)
    changes = measure(policy, [found[name] for name in chosen], options.step, lambda done, total: journal.show(done, total, "problems"))
    told = figures(changes, [found[name].rate for name in chosen])
    if options.out:
        write_json(options.out, {"model": str(options.model), "step": options.step, **told, "problems": chosen, "changes": changes.tolist()})
    print(f"{len(chosen)} of {len(names)} problems with right and wrong answers; steps of {options.step:g} of the weights' norm")
    print(f"  a problem's own step   {told['own']:+.3g} nats a token of its right answers")
    print(f"  a step of another      {told['others']:+.3g}; {told['negative']:.0%} of the pairs lose, {told['harm']:+.3g} on average")
    print(f"  winner-take-all        {told['winner_take_all']:+.3f} rank correlation of the pass rate and what the others do to a problem")
    return 0


def scaling(options: argparse.Namespace) -> int:
    import numpy as np

    from pipelines.evaluation.scaling import fit, predict, rank

    if len(options.curves) > 2:
        raise UserError(f"scaling: expected one curve, or two to rank, got {len(options.curves)}")
    fits = []
    for file in options.curves:
        compute, reward = (np.array(column) for column in zip(*_points(file, options.compute, options.reward, options.skip), strict=True))
        seen = compute <= (compute[-1] if options.until is None else options.until)
        fits.append(found := fit(compute[seen], reward[seen]))
        print(f"{file}: {int(seen.sum())} points")
        low, high = found.interval("asymptote")
        print(
            f"  asymptote not told: {'; '.join(found.refused)}"
            if found.refused
            else f"  asymptote {found.best.asymptote[0]:.3f} [{low:.3f}, {high:.3f}]"
        )
        last, end = float(compute[seen][-1]), options.to or 2 * float(compute[seen][-1])
        if end <= last:
            raise UserError(f"scaling: --to {end:g} lies inside what is fitted, which ends at {last:g}")
        rest = compute[~seen]
        gap = float(np.median(np.diff(compute)))
        for what, ahead in (("predicted", np.arange(last + gap, end + gap / 2, gap)), ("check", rest)):
            if len(ahead):
                told = predict(found, ahead)
                was = f"; it was {reward[~seen].mean():.3f}" if what == "check" else ""
                print(f"  {what}: mean {told.mean:.3f} [{told.mean_low:.3f}, {told.mean_high:.3f}] from {ahead[0]:g} to {ahead[-1]:g}{was}")
    if len(fits) == 2:
        print(rank(*fits))
    return 0


def diff_weights(options: argparse.Namespace) -> int:
    from pipelines import paths
    from pipelines.evaluation.weights import Settings, compare
    from pipelines.progress import Journal
    from pipelines.store import write_json

    if options.rank < 1 or options.exact < 0 or not options.budget > 0:
        least = f"got {options.rank}, {options.exact} and {options.budget:g}"
        raise UserError(f"diff-weights: --rank must be at least 1, --exact at least 0 and --budget above 0, {least}")
    settings = Settings(dtype=options.dtype, rank=options.rank, exact=options.exact, budget=options.budget)
    journal = Journal(paths.WORK / "diff-weights" / "journal.jsonl", "diff-weights", sys.stderr)
    found = compare(options.before, options.after, settings, lambda done, total: journal.show(done, total, "tensors"))
    if options.out:
        write_json(options.out, {"before": str(options.before), "after": str(options.after), **found})
    print(f"{options.after} against {options.before}: {found['parameters']:,} parameters, {len(found['tensors'])} tensors, seen in {options.dtype}")
    print("\n".join(_moved(found)))
    return 0


def _moved(found: Mapping[str, Any]) -> list[str]:
    """The summary in lines; of a sample with standard errors."""
    names = ("sparsity", "relative_update", "drift", "left", "right", "largest", "stable_rank", "principal", "low")
    figures = {name: "none" if found[name] is None else f"{found[name]:.4g}" for name in names}
    if found["decomposed"] < found["matrices"]:
        for name, error in found["errors"].items():
            figures[name] += "" if found[name] is None else " ± unknown" if error is None else f" ± {error:.2g}"
    lines = [
        f"  unchanged        {figures['sparsity']}   size of the update against the weights {figures['relative_update']}",
        f"  decomposed       {found['decomposed']} of {found['matrices']} matrices, of which the next three lines tell (±: standard error)",
        f"  spectral drift   {figures['drift']}   mean",
        f"  rotation         left {figures['left']}, right {figures['right']} degrees, largest {figures['largest']}",
        f"  stable rank      {figures['stable_rank']}   median",
        f"  changed entries  {figures['principal']} on the principal, {figures['low']} on the smallest; chance gives {found['alpha']:g}",
    ]
    if left_out := found["left_out"]:
        prices = ", ".join(f"{kind} ({seconds:.3g} s)" for kind, seconds in left_out.items())
        lines.append(f"  left out         kinds of which one matrix does not fit in what the budget leaves: {prices}")
    return lines


def _points(file: Path, given: str | None, reward: str, skip: float) -> list[tuple[float, float]]:
    """(compute, reward) of a CSV file's rows; rows without either are left out."""
    compute, before = given or "step", 0 if given else 1
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    with file.open(newline="") as handle:
        reader = csv.DictReader(handle)
        for name in (compute, reward):
            if name not in (reader.fieldnames or ()):
                raise UserError(f"{file}: has no column '{name}'; it has {', '.join(reader.fieldnames or ()) or 'none'}")
        rows = [(number, row) for number, row in enumerate(reader, 2) if row[compute] and row[reward]]
    points = []
    for number, row in rows:
        try:
            points.append((float(row[compute]) - before, float(row[reward])))
        except ValueError:
            raise UserError(f"{file}: line {number}: expected numbers, got {row[compute]!r} and {row[reward]!r}") from None
    if not (kept := [point for point in points if point[0] >= skip]):
        raise UserError(f"{file}: no row of '{compute}' and '{reward}' from {skip:g} on")
    return kept


def _shown(one: Mapping[str, Any], sign: str = "") -> str:
    """`0.315 [0.279, 0.351]`, with a plus where `sign` is one."""
    if one["mean"] is None:
        return f"{'none':<23}"
    ends = "" if one["low"] is None else f" [{one['low']:{sign}.3f}, {one['high']:{sign}.3f}]"
    return f"{one['mean']:{sign}.3f}{ends}".ljust(23)
