"""What methods that choose problems, answers and help give for the same number of answers: `python -m benchmarks.online [--rows self svs ...]`.

Each seed has its own problems, cold start (pass@1 about .4) and held-out problems. Every row whose data half
says something of its own trains that cold start on the same 400 graded problems, with worked solutions, until so many answers have been sampled, not
for as many steps; frozen policies are the cold start. All settings are the recipe's, and those of the stage the same.

pass@1 and pass@8 are of 200 held-out problems with 16 answers each. `gain` is pass@1 against plain GRPO by problem, paired, over the problems of all
seeds, with its 95 % interval and Holm's p-value over all rows. `mixed`: share of the groups that trained with both outcomes. `answers a point`: for
each percentage point of pass@1 above the cold start. `own`: share of a step's seconds that is neither sampling nor scoring nor the update: the
method's own bookkeeping, and reading and writing. A row that ends below the cold start, or not finite, is marked.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.data_half import EPOCHS, MIXED, Testbed, mixed, plain, rates, stories
from pipelines import seeding
from pipelines.errors import UserError
from pipelines.evaluation.metrics import pass_at_k
from pipelines.evaluation.statistics import holm, paired_difference, sign_flip
from pipelines.records import Outcome
from pipelines.rl import RECIPES
from pipelines.rl.account import training
from pipelines.rl.costs import needs
from pipelines.rl.demands import Need

START = "cold start"
PLAIN = "grpo"
ONLINE = [name for name, row in RECIPES.items() if name == PLAIN or (row.sampling and Need.TEACHER not in needs(row))]
"""Rows that sample in a way of their own, and what they are compared with."""
SAMPLES = 16
"""Answers to a held-out problem."""
RESAMPLES = 10_000
WORK = ("generate", "score", "update")
"""Phases of a step that are not a method's own."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.online", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=ONLINE, metavar="ROW", help="rows to train beside grpo; default all that sample otherwise")
    parser.add_argument("--answers", type=int, default=3840, help="answers that each row is given (default 3840: 30 steps of grpo)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    options = parser.parse_args()
    if unknown := sorted(set(options.rows) - set(RECIPES)):
        sys.exit(f"no such row: {', '.join(unknown)}")
    rows = [PLAIN, *(row for row in options.rows if row != PLAIN)]
    began = time.monotonic()
    runs: dict[str, list[dict[str, Any]]] = {row: [] for row in (START, *rows)}
    for seed in options.seeds:
        bed = graded(Testbed(stories(MIXED), seed, plain, EPOCHS))
        runs[START].append(held_out(bed, bed.policy))
        for row in rows:
            runs[row].append(trained(bed, row, options.answers))
            print(f"seed {seed}, {row} ({time.monotonic() - began:.0f} s)", flush=True)
    table = compared(runs)
    print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", *map(line, table), sep="\n")
    print(f"{len(rows)} rows, seeds {', '.join(map(str, options.seeds))}, {options.answers} answers each, {time.monotonic() - began:.0f} s")
    print(json.dumps(table))


def graded(bed: Testbed) -> Testbed:
    """With the pass rate of each problem that is trained on, of 8 answers of the cold start."""
    measured = rates(bed.answers(bed.policy, bed.problems))
    bed.problems = [replace(problem, pass_rate=float(rate), pass_n=8) for problem, rate in zip(bed.problems, measured, strict=True)]
    return bed


def held_out(bed: Testbed, policy: Any) -> dict[str, Any]:
    """pass@1 and pass@8 by held-out problem."""
    right = [sum(t.outcome == Outcome.CORRECT for t in group) for group in bed.answers(policy, bed.held_out, SAMPLES)]
    return {f"pass_at_{k}_P": np.array([pass_at_k(SAMPLES, count, k) for count in right]) for k in (1, 8)}


def trained(bed: Testbed, row: str, answers: int) -> dict[str, Any]:
    """Figures of one run; of one that the recipe refuses, why."""
    try:
        policy, steps, told = bed.rl(answers, row=row, answers=answers)
    except UserError as error:
        return {"refused": str(error)}
    groups = [mixed(of_policy) for step in told if (of_policy := training(step))]
    seconds = [{name.removeprefix("seconds_"): value for name, value in step.items() if name.startswith("seconds_")} for step in steps]
    whole = sum(sum(step.values()) for step in seconds)
    finite = all(math.isfinite(step[name]) for step in steps for name in ("loss", "grad_norm") if name in step)
    return {
        **held_out(bed, policy), "answers": int(sum(step["answered"] for step in steps)), "steps": len(steps), "mixed": float(np.mean(groups)),
        "own": sum(value for step in seconds for phase, value in step.items() if phase not in WORK) / whole,
        "finite": finite and all(bool(parameter.isfinite().all()) for parameter in policy.parameters()),
    }  # fmt: skip


def compared(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row of the table for each row of recipes, over the problems of all seeds."""
    ran = {row: of_seeds for row, of_seeds in runs.items() if not any("refused" in run for run in of_seeds)}
    rate_P = {row: np.concatenate([run["pass_at_1_P"] for run in of_seeds]) for row, of_seeds in ran.items()}
    others = [row for row in ran if row not in (START, PLAIN)]
    gains_PM = np.stack([rate_P[row] - rate_P[PLAIN] for row in others], 1) if others else np.zeros((1, 0))
    p_values = dict(zip(others, holm(sign_flip(gains_PM, RESAMPLES, seeding.generator(0, "online", "flips"))), strict=True))
    table = []
    for row, of_seeds in runs.items():
        if row not in ran:
            table.append({"row": row, "refused": next(run["refused"] for run in of_seeds if "refused" in run)})
            continue
        made: dict[str, Any] = {"row": row, "pass_at_1": [float(run["pass_at_1_P"].mean()) for run in of_seeds]}
        made["pass_at_8"] = [float(run["pass_at_8_P"].mean()) for run in of_seeds]
        if row != START:
            made |= {name: float(np.mean([run[name] for run in of_seeds])) for name in ("answers", "steps", "mixed", "own")}
            from_start = paired_difference(rate_P[row], rate_P[START], RESAMPLES, seeding.generator(0, "online", row, "start"))
            made["answers_a_point"] = made["answers"] / (100 * from_start.mean) if from_start.mean > 0 else None
            made["broken"] = from_start.high < 0 or not all(run["finite"] for run in of_seeds)
        if row in p_values:
            gain = paired_difference(rate_P[row], rate_P[PLAIN], RESAMPLES, seeding.generator(0, "online", row))
            made |= {"gain": [gain.mean, gain.low, gain.high], "p": p_values[row]}
        table.append(made)
    return table


COLUMNS = ("row", "pass@1", "pass@8", "gain on grpo [95 %]", "p (Holm)", "mixed", "steps", "answers a point", "own", "")


def line(made: dict[str, Any]) -> str:
    """A row of the table for people."""
    if "refused" in made:
        return f"| {made['row']} | refused: {made['refused']} |"

    def each(name: str) -> str:
        return " ".join(f"{value:.3f}" for value in made[name])

    def one(name: str, form: str) -> str:
        return format(made[name], form) if made.get(name) is not None else "-"

    gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*made["gain"]) if "gain" in made else "-"
    cells = [made["row"], each("pass_at_1"), each("pass_at_8"), gain, one("p", ".3f"), one("mixed", ".2f"), one("steps", ".0f")]
    cells += [one("answers_a_point", ".0f"), one("own", ".1%"), "BELOW THE COLD START" if made.get("broken") else ""]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
