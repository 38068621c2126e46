"""How often the early end of a sweep's points is wrong, and what it saves: `python -m benchmarks.stopping [JOURNAL.jsonl ...]`.

Sweeps of drawn learning curves: from one start, each point with its own rise, noise of as many answers as the default's steps have, correlated from
step to step. A point that has run after the first is looked at after every third step as `touchstone sweep --stop-early` does after each, against
the best point before it. Forms: `sigmoid` is what the prediction assumes; `two rises` has a second one later, `late` rises after the middle of the
run, `fall` collapses: what it does not assume. Journals of real runs are swept too, each as the point after each other one.

stopped: share of the points after the first. wrong: share of those stopped that would have ended above the best point before. lost: share of the
sweeps whose best point, by the curve without its noise, was stopped, and what that cost at most, in pass rate. saved: share of all steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pipelines.evaluation.outlook import FEWEST, end, outlook
from pipelines.evaluation.statistics import Floats

ANSWERS = 128
"""Of a step."""
NEAR = 0.3
"""Correlation of the noise of neighbouring steps."""
POINTS = 5
LOOKS = 3
"""Steps between two looks."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stopping", description=__doc__)
    parser.add_argument("journals", type=Path, nargs="*")
    parser.add_argument("--sweeps", type=int, default=40)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    found = {}
    for form, curve in FORMS.items():
        rng = np.random.default_rng(options.seed)
        found[form] = measured([list(_sweep(rng, options.steps, curve)) for _ in range(options.sweeps)])
    if options.journals:
        real = [np.array([json.loads(line)["pass_rate"] for line in file.read_text().splitlines()]) for file in options.journals]
        found["journals"] = measured([[(one, one), (other, other)] for one in real for other in real if one is not other and len(one) == len(other)])
    print(f"{'':10s} {'points':>6s} {'stopped':>8s} {'wrong':>6s} {'lost':>6s} {'cost':>6s} {'saved':>6s}")
    for form, figures in found.items():
        shares = "".join(f" {figures[name]:>6.3f}" for name in ("wrong", "lost", "cost", "saved"))
        print(f"{form:10s} {figures['points']:>6.0f} {figures['stopped']:>8.3f}{shares}")
    print(json.dumps(found))


def measured(sweeps: Sequence[Sequence[tuple[Floats, Floats]]]) -> dict[str, float]:
    """The figures of the table. A sweep: (curve, the same as it was measured) of each point, both (T,)."""
    points = stopped = wrong = lost = steps = saved = 0
    cost = 0.0
    for sweep in sweeps:
        ended: list[bool] = []
        best = 0.0
        for place, (_, rates) in enumerate(sweep):
            at = _stopped_at(rates, best) if place else None
            ended.append(at is not None)
            steps += len(rates)
            if at is None:
                best = max(best, end(rates))
            else:
                saved += len(rates) - at
                wrong += end(rates) > best
        points += len(sweep) - 1
        stopped += sum(ended)
        true = [end(curve) for curve, _ in sweep]
        left = max(value for value, over in zip(true, ended, strict=True) if not over)
        lost += left < max(true)
        cost = max(cost, max(true) - left)
    shares = {"stopped": stopped / points, "wrong": wrong / max(stopped, 1), "lost": lost / len(sweeps), "saved": saved / steps}
    return {"points": float(points), **shares, "cost": cost}


def _stopped_at(rates: Floats, best: float) -> int | None:
    """The step after which the run is found hopeless."""
    for step in range(1, len(rates), LOOKS):
        if rates[max(step - FEWEST, 0) : step].mean() < best and (seen := outlook(rates[:step], len(rates), best)) and seen.hopeless:
            return step
    return None


def _sweep(rng: np.random.Generator, steps: int, curve: Callable[[np.random.Generator, int, float], Floats]) -> Iterator[tuple[Floats, Floats]]:
    start = rng.uniform(0.1, 0.5)
    for _ in range(POINTS):
        true = np.clip(curve(rng, steps, start), 0.0, 1.0)
        noise = np.zeros(steps)
        for step in range(steps):
            noise[step] = (NEAR * noise[step - 1] if step else 0.0) + rng.normal() * np.sqrt(1 - NEAR**2)
        yield true, np.clip(true + noise * np.sqrt(true * (1 - true) / ANSWERS * 2), 0.0, 1.0)  # answers of a problem are alike


def _rise(steps: int, middle: float, steepness: float) -> Floats:
    """From 0 to 1, half of it at `middle`."""
    return 1 / (1 + (middle / np.maximum(np.arange(steps), 1e-9)) ** steepness)


def _sigmoid(rng: np.random.Generator, steps: int, start: float) -> Floats:
    return start + rng.uniform(0, 0.5) * _rise(steps, steps * np.exp(rng.uniform(np.log(0.05), np.log(1.5))), rng.uniform(0.7, 4))


def _two_rises(rng: np.random.Generator, steps: int, start: float) -> Floats:
    second = rng.uniform(0, 0.3) * _rise(steps, steps * rng.uniform(0.4, 0.9), rng.uniform(4, 8))
    return start + rng.uniform(0, 0.3) * _rise(steps, steps * rng.uniform(0.05, 0.2), rng.uniform(1, 4)) + second


def _late(rng: np.random.Generator, steps: int, start: float) -> Floats:
    return start + rng.uniform(0, 0.5) * _rise(steps, steps * rng.uniform(0.5, 1.0), rng.uniform(2, 8))


def _fall(rng: np.random.Generator, steps: int, start: float) -> Floats:
    return _sigmoid(rng, steps, start) - rng.uniform(0, 0.4) * _rise(steps, steps * rng.uniform(0.3, 1.0), 6)


FORMS = {"sigmoid": _sigmoid, "two rises": _two_rises, "late": _late, "fall": _fall}

if __name__ == "__main__":
    main()
