"""diagnostics.json: what RL did to a model beyond its scores, from stored samples, rollouts and weights.

    boundary        benchmark -> for each start and RL model, what `boundary.compare` says
    entropy         benchmark -> {models: {model: {level: interval}}, changes: [{start, model, level: interval}]}
    scaling         RL stage -> its pass rate by step, the sigmoid, its extrapolation, and the second half predicted from the first
    pseudo_reward   RL stage -> how far a majority's word would have agreed with the verifier, by step
    weights         what `weights.compare` says of each start and model

RL models (and the gate's candidate) are compared with the model that the gate compares with, and with base; weights with the former alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import generation, seeding
from pipelines.config.common import GenerationSettings
from pipelines.config.diagnostics import DiagnosticsSettings
from pipelines.config.evaluation import EvaluationSettings
from pipelines.errors import UserError
from pipelines.evaluation import boundary, collapse, entropy, scaling, weights
from pipelines.evaluation.benchmarks import PURPOSE
from pipelines.evaluation.scores import others
from pipelines.evaluation.statistics import Floats, bootstrap_means
from pipelines.lineage.code import code_sha256
from pipelines.lineage.digests import combine, tree_sha256
from pipelines.models.loading import load_policy
from pipelines.records import POLICY, Outcome, Problem
from pipelines.store import read_json, write_json

POINTS = 60
"""Points of a drawn curve."""
MOVED = ("name", "parameters", "sparsity", "drift", "left", "right")
"""What is plotted of each tensor."""
Samples = Mapping[tuple[str, str], pa.Table]
Record = dict[str, Any]


def diagnose(
    models: Mapping[str, Path],
    benchmarks: Mapping[str, Sequence[Problem]],
    samples: Samples,
    rollouts: Mapping[str, Path],
    settings: EvaluationSettings,
    seed: int,
    device: str,
    cache: Path,
    say: Callable[[str], None],
    show: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """All diagnostics. models: name -> folder. samples: of every (model, benchmark). rollouts: RL stage -> folder. cache: keeps token entropies.

    say: a line. show(done, total, text): progress.
    """
    look = settings.diagnostics
    against, candidate = settings.gate.against, settings.gate.candidate
    ends = [*others(list(models), against, candidate), candidate]
    starts = [start for start in dict.fromkeys((against, "base")) if start in models]
    pairs = [(start, end) for start in starts for end in ends if start != end]
    updates = [("base", against)] * ("base" in models and against != "base") + [pair for pair in pairs if pair[0] == against]
    tokens = _token_entropies(models, benchmarks, settings.generation, look, seed, device, cache, say)
    found: dict[str, Any] = {"boundary": {}, "entropy": {}, "scaling": {}, "pseudo_reward": {}, "weights": []}
    for name in benchmarks:
        draw = seeding.generator(seed, "evaluation", "boundary", name)
        groups = _groups(samples[next(iter(models)), name], settings.clusters.get(name))
        found["boundary"][name] = []
        for start, end in pairs:
            try:
                one = boundary.compare(samples[start, name], samples[end, name], settings.bootstrap, draw, groups)
            except UserError as error:  # too little was judged; the scores have said so
                say(f"{end} from {start} on {name}: {error}")
                continue
            found["boundary"][name].append({"start": start, "model": end, **one})
        levels = {"answer": {model: entropy.answer_entropies(samples[model, name]) for model in models}, "token": tokens.get(name, {})}
        found["entropy"][name] = entropies(levels, pairs, settings.bootstrap, seeding.generator(seed, "evaluation", "entropy", name), groups)
    for stage, folder in rollouts.items():
        table = answered(folder)
        found["scaling"][stage] = extrapolate(pass_rates(table), look.horizon)
        found["pseudo_reward"][stage] = pseudo_reward(table)
    found["weights"] = [one for start in dict.fromkeys(start for start, _ in updates) for one in _weights(models, start, updates, look, show)]
    return found


def _weights(
    models: Mapping[str, Path], start: str, updates: Sequence[tuple[str, str]], look: DiagnosticsSettings, show: Callable[[int, int, str], None]
) -> list[Record]:
    """What moved from one start, whose matrices are decomposed once for all its models."""
    ends = list(dict.fromkeys(end for first, end in updates if first == start))
    given = weights.Settings(dtype=look.weights_dtype, rank=look.rank, exact=look.exact, budget=look.weights_budget)
    text = f"tensors of {', '.join(ends)} against {start}"
    compared = weights.compare_all(models[start], [models[end] for end in ends], given, lambda done, total: show(done, total, text))
    return [{"start": start, "model": end, **one} for end, one in zip(ends, compared, strict=True)]


def _groups(table: pa.Table, label: str | None) -> dict[str, str] | None:
    """Problem id -> its topic with this label, None without a label."""
    rows = zip(table["problem_id"].to_pylist(), table["topics"].to_pylist(), strict=True)
    return {problem: next(t for t in topics if t.startswith(f"{label} ")) for problem, topics in rows} if label else None


def entropies(
    levels: Mapping[str, Mapping[str, Mapping[str, float]]],
    pairs: Sequence[tuple[str, str]],
    resamples: int,
    generator: np.random.Generator,
    groups: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Mean entropy of every model over the problems that all have, and its changes over the same problems. levels: level -> model -> problem.

    Fewer than two problems, or clusters of them (`groups`), have no interval and are left out.
    """
    found: dict[str, Any] = {"models": {}, "changes": [{"start": start, "model": end} for start, end in pairs]}
    for level, by_model in levels.items():
        known = {model: values for model, values in by_model.items() if values}
        shared = sorted(set.intersection(*(set(values) for values in known.values()))) if known else []
        clusters = None if groups is None else np.unique([groups[problem] for problem in shared], return_inverse=True)[1]
        units = len(shared) if clusters is None else len(np.unique(clusters))
        if units < 2:
            continue
        values_PM = np.array([[known[model][problem] for model in known] for problem in shared])
        means_RM = bootstrap_means(values_PM, resamples, generator, clusters)
        place = {model: i for i, model in enumerate(known)}
        for model, i in place.items():
            interval = boundary.interval(float(values_PM[:, i].mean()), means_RM[:, i], units)
            found["models"].setdefault(model, {})[level] = {**interval, "problems": len(shared)}
        for change in found["changes"]:
            if change["start"] in place and change["model"] in place:
                before, after = place[change["start"]], place[change["model"]]
                shift = float((values_PM[:, after] - values_PM[:, before]).mean())
                change[level] = dict(boundary.interval(shift, means_RM[:, after] - means_RM[:, before], units))
    return found


def _token_entropies(
    models: Mapping[str, Path],
    benchmarks: Mapping[str, Sequence[Problem]],
    generation_settings: GenerationSettings,
    look: DiagnosticsSettings,
    seed: int,
    device: str,
    cache: Path,
    say: Callable[[str], None],
) -> dict[str, dict[str, dict[str, float]]]:
    """Benchmark -> model -> problem -> token-level entropy, on responses drawn again, with their token ids, from the streams of those judged."""
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in benchmarks}
    used: set[Path] = set()
    code = code_sha256("pipelines.evaluation.entropy")
    for model, folder in models.items() if look.entropy_problems else ():
        weights_digest, policy = tree_sha256(folder), None
        for name, problems in benchmarks.items():
            asked = problems[: look.entropy_problems]
            key = {"code": code, "model": weights_digest, "problems": combine({p.problem_id: repr(p) for p in asked})}
            sampling = f"{look.entropy_samples} {seed} {device} {generation_settings.model_dump_json(exclude={'batch_size'})}"
            file = cache / f"{combine(key | {'sampling': sampling})}.json"
            used.add(file)
            if not file.is_file():
                say(f"token entropy of {model} on {name}")
                policy = policy or load_policy(folder, device)
                generator = generation.TorchGenerator(*policy, generation_settings)
                responses = generation.respond(generator, asked, look.entropy_samples, (seed, PURPOSE))
                write_json(file, entropy.token_entropies(*policy, asked, responses, generation_settings))
            found[name][model] = read_json(file)
    for old in cache.glob("*.json"):
        if old not in used:
            old.unlink()
    return found


def answered(folder: Path) -> pa.Table:
    """What the policy answered in each step, whether it trained or not: neither what was replayed nor what a guide said."""
    return pq.read_table(sorted(folder.glob("*.parquet")), columns=["step", "group_id", "outcome", "extracted"], filters=[("origin", "=", POLICY)])


def pass_rates(rollouts: pa.Table) -> tuple[Floats, Floats]:
    """Training steps and the share of judged rollouts that were correct at each."""
    judged = [
        (step, outcome == Outcome.CORRECT)
        for step, outcome in zip(rollouts["step"].to_pylist(), rollouts["outcome"].to_pylist(), strict=True)
        if outcome != Outcome.INFRASTRUCTURE
    ]
    steps, place, counts = np.unique([step for step, _ in judged], return_inverse=True, return_counts=True)
    return steps.astype(np.float64), np.bincount(place, weights=[right for _, right in judged], minlength=len(steps)) / counts


def extrapolate(curve: tuple[Floats, Floats], horizon: float) -> dict[str, Any]:
    """Reward by step with its sigmoid, continued to `horizon` times the run, and the second half as predicted from the first.

    Compute is the number of updates before the step: the rollouts of the first step are those of the model that RL began with.
    """
    steps, reward = curve
    found: dict[str, Any] = {"steps": [int(step) for step in steps], "reward": reward.tolist()}
    half = len(steps) // 2
    if half < scaling.LEAST:
        return found | {"refused": [f"{len(steps)} steps are too few: expected {2 * scaling.LEAST}"]}
    fitted = scaling.fit(steps - 1, reward)
    last = float(steps[-1])
    line = scaling.predict(fitted, np.linspace(0.0, horizon * last - 1, POINTS))
    ahead = scaling.predict(fitted, np.arange(last, horizon * last))
    check = scaling.predict(scaling.fit(steps[:half] - 1, reward[:half]), steps[half:] - 1)
    measured = float(reward[half:].mean())
    best = fitted.best
    return found | {
        "refused": list(fitted.refused),
        "asymptote": None if fitted.refused else _told(float(best.asymptote[0]), fitted.interval("asymptote")),
        "curve": [
            {"step": float(x) + 1, "mean": float(y), "low": float(low), "high": float(high)}
            for x, y, low, high in zip(line.compute, line.reward, line.low, line.high, strict=True)
        ],
        "ahead": {"from": int(last) + 1, "to": int(horizon * last), **_told(ahead.mean, (ahead.mean_low, ahead.mean_high))},
        "check": {
            "from": int(steps[half]),
            **_told(check.mean, (check.mean_low, check.mean_high)),
            "measured": measured,
            "inside": check.mean_low <= measured <= check.mean_high,
        },
    }


def _told(mean: float, ends: tuple[float, float]) -> dict[str, float]:
    return {"mean": mean, "low": ends[0], "high": ends[1]}


def pseudo_reward(rollouts: pa.Table) -> dict[str, Any]:
    """Reward accuracy of a majority's word by step, and the model collapse step (None: not reached by the last step)."""
    accuracy = collapse.accuracy_by_step(rollouts)
    steps, values = list(accuracy), list(accuracy.values())
    return {"steps": steps, "accuracy": values, "collapse_step": collapse.collapse_step(steps, values), "threshold": collapse.THRESHOLD}


def tables(found: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], list[Record]]]:
    """The same for `dvc plots`, whose Vega-Lite templates stand in .dvc/plots: name of the table -> (columns, rows)."""
    compared = [(name, one) for name, pairs in found["boundary"].items() for one in pairs]
    named = [({"benchmark": name, "pair": f"{one['model']} from {one['start']}"}, one) for name, one in compared]
    curves = [
        named_by | {"model": one[who], "k": k, **point}
        for named_by, one in named
        for who, side in (("start", "start"), ("model", "rl"))
        for k, point in zip(one["ks"], one["curves"][side], strict=True)
    ]
    sets = [
        named_by | {"against": against, "set": name, "place": place, "problems": one["support"][part][name]}
        for named_by, one in named
        for against, part in (("model", "half"), ("itself", "control"))
        for place, name in enumerate(boundary.SET_NAMES)
    ]
    runs = [
        {"stage": stage, "kind": kind, **point}
        for stage, run in found["scaling"].items()
        for kind, points in (("measured", _measured(run)), ("sigmoid", run.get("curve", ())))
        for point in points
    ]
    moved = [
        {
            "pair": f"{one['model']} from {one['start']}",
            **{name: change[name] for name in ("name", "parameters", "sparsity", "drift", "left", "right")},
        }
        for one in found["weights"]
        for change in one["tensors"]
        if change["drift"] is not None
    ]
    return {
        "boundary": (("benchmark", "pair", "model", "k", "mean", "low", "high"), curves),
        "support": (("benchmark", "pair", "against", "set", "place", "problems"), sets),
        "scaling": (("stage", "kind", "step", "mean", "low", "high"), runs),
        "weights": (("pair", *MOVED), moved),
    }


def _measured(run: Mapping[str, Any]) -> list[Record]:
    return [{"step": step, "mean": reward, "low": reward, "high": reward} for step, reward in zip(run["steps"], run["reward"], strict=True)]
