"""Does the default pipeline learn, how long does it take, how much memory: `python -m benchmarks.pipeline --seeds 1 2 3`.

Each seed runs in a clone of the committed tree of its own, through `touchstone run`, with nothing changed but `seed`. The clone
starts without data, models or cache. Wall time is of `touchstone run` alone; memory is the largest sum of resident sets over the
process tree, sampled every half second (pages shared by processes count once per process, so it is an upper bound).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--keep", type=Path, help="folder for the clones; default: a temporary one that is removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = [run(seed, (options.keep or Path(temporary)) / f"seed-{seed}") for seed in options.seeds]
    print_table(runs)
    print(json.dumps({"runs": runs}))


def run(seed: int, folder: Path) -> dict[str, Any]:
    """One whole run of a fresh clone with this seed."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    params = folder / "params.yaml"
    lines = [f"seed: {seed}" if line.startswith("seed:") else line for line in params.read_text().splitlines()]
    params.write_text("\n".join(lines) + "\n")
    environment = {**os.environ, "TOUCHSTONE_ROOT": str(folder), "PYTHONPATH": str(folder)}
    log = (folder / "run.log").open("w")
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "flows.cli", "run"], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.5)
    seconds = time.monotonic() - began
    if process.returncode:
        sys.exit(f"seed {seed}: touchstone run ended with {process.returncode}; see {folder / 'run.log'}")
    scores = json.loads((folder / "data/evaluation/scores.json").read_text())
    return {"seed": seed, "seconds": round(seconds, 1), "peak_gb": round(peak / 1e9, 2), **figures(scores)}


def resident(pid: int) -> int:
    """Sum of resident sets of a process and all below it, in bytes."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] if psutil.pid_exists(pid) else []:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


def figures(scores: dict[str, Any]) -> dict[str, Any]:
    """Gains of each expert on its domain, pass@8, and what merging costs."""
    found: dict[str, Any] = {"gate": scores["gate"]["passed"]}
    for name in ("math", "code"):
        for model in ("sft", name, "merged"):
            for k in ("1", "8"):
                found[f"{name}_{model}_pass_at_{k}"] = round(scores["models"][model][name]["pass_at_k"][k]["mean"], 4)
        gain = next(d for d in scores["differences"] if (d["model"], d["against"], d["benchmark"], d["k"]) == (name, "sft", name, 1))
        found[f"{name}_gain"] = [round(gain[key], 4) for key in ("mean", "low", "high")]
        found[f"{name}_merged_minus_expert"] = round(found[f"{name}_merged_pass_at_1"] - found[f"{name}_{name}_pass_at_1"], 4)
        found[f"{name}_pass_at_8_change"] = round(found[f"{name}_{name}_pass_at_8"] - found[f"{name}_sft_pass_at_8"], 4)
    return found


def print_table(runs: list[dict[str, Any]]) -> None:
    print(f"{'':34}" + "".join(f"{'seed ' + str(r['seed']):>28}" for r in runs))
    for key in (key for key in runs[0] if key != "seed"):
        print(f"{key:34}" + "".join(f"{r[key]!s:>28}" for r in runs))


if __name__ == "__main__":
    main()
