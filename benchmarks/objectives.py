"""Does every recipe train, and what does its step cost: `python -m benchmarks.objectives [--rows grpo dapo ...] [--steps 20]`.

The pipeline's own stages make one SFT policy, its graded problems and a benchmark that no stage trains on (seed 1, params.yaml as
it is). Then each row of recipes.yaml trains that policy for the same steps on the same problems, and answers the benchmark:
pass@1 and pass@8 with the paired bootstrap against the SFT policy. A row whose interval lies below 0, or that ends in a
number that is not finite, is marked. `change` is of pass@1; `reward`, `entropy` and `length` are means over the last five steps.

Scoring: log-probabilities and entropies, with gradient, of 2,048 positions over 151,936 words, as the loop computes them and from whole
logits, each in a process of its own: seconds and peak memory above that of the model.

Cost: the same 128 rollouts go once through everything a row does between rollouts and new weights (`score`: other forward
passes, `update`), in turn with the same for grpo; the fastest of --repeats over grpo's fastest update.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import config, paths, seeding
from pipelines.config.rl import RlStage
from pipelines.errors import UserError
from pipelines.evaluation.benchmarks import judge
from pipelines.evaluation.metrics import pass_at_k
from pipelines.evaluation.scores import rows_by_problem
from pipelines.evaluation.statistics import paired_difference
from pipelines.generation import TorchGenerator, respond
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.loading import load_policy
from pipelines.models.optimisation import make_optimiser
from pipelines.progress import Journal
from pipelines.records import Problem
from pipelines.rl import RECIPES, route, with_advantages
from pipelines.rl.account import training
from pipelines.rl.actor import make_actor
from pipelines.rl.clock import Clock
from pipelines.rl.collate import judged, make_step, minibatches
from pipelines.rl.costs import needs
from pipelines.rl.demands import Need
from pipelines.rl.history import History
from pipelines.rl.roles import roles_of, untaught
from pipelines.rl.run import answerers
from pipelines.rl.score import fill
from pipelines.rl.train import train
from pipelines.rl.update import optimise
from pipelines.store import read_problems
from pipelines.verifiers import VerifierPool

ROOT = Path(__file__).parents[1]
REFERENCE = {"rto": "dpo", "npo": "grpo"}
"""Rows whose `reference` is the policy that another row has trained: RTO's preference policy, NPO's later checkpoint."""
ALONE = [name for name, row in RECIPES.items() if untaught(row, "") is None and Need.RUNS not in needs(row)]
"""Rows that need neither teachers nor other runs."""
SETTINGS: dict[str, dict[str, Any]] = {"remix": {"epochs": 2, "epochs_until": 50, "reset_reference": (50,)}}
"""Settings of the stage that belong to a method."""
BELOW = ("sdpo",)
"""Rows that end below the SFT policy here, and whose paper says so of such a policy."""
NOTES = {
    "rlcr": "the policy never learnt to state a confidence, so all rewards are equal and nothing trains",
    "sdpo": "below, as its paper finds of models that do not learn in context; this one was never shown a second text in its prompt",
    "geometric_rs": "the engines agree to rounding here, so nothing is rejected",
    "npo": "guided by the policy that grpo trained",
    "rto": "rewarded by the policy that dpo trained",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives", description=__doc__)
    parser.add_argument("--rows", nargs="+", default=ALONE, metavar="ROW", help="rows to train; default all")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5, help="measurements of the cost")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--keep", type=Path, help="folder for the SFT policy, made there unless it holds one; default: a temporary one")
    options = parser.parse_args()
    if unknown := sorted(set(options.rows) - set(ALONE)):
        sys.exit(f"no such row: {', '.join(unknown)}; known: {', '.join(ALONE)}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        prepare(root)
        bench = Bench(root, options.steps, options.lr)
        rows = [bench.sft_row(), *(bench.row(name) for name in options.rows)]
        costs = bench.costs(options.rows, options.repeats)
    for row in rows:
        row.update(costs.get(row["row"], {}))
    print_table(rows)
    scoring = {mode: run_scoring(mode) for mode in ("chunked", "whole")}
    for mode, (seconds, megabytes) in scoring.items():
        print(f"scoring, {mode}: {seconds:.1f} s, peak {megabytes:.0f} MB above the model")
    broken = [row["row"] for row in rows if row.get("broken")]
    print(f"\n{len(rows) - 1} rows, {options.steps} steps each, in {time.monotonic() - began:.0f} s; broken: {', '.join(broken) or 'none'}")
    print(json.dumps({"steps": options.steps, "lr": options.lr, "rows": rows, "broken": broken, "scoring": scoring}))


def prepare(root: Path) -> None:
    """Run the stages that make the SFT policy and the graded problems, unless they have run in `root`."""
    for stage in ("sources", "curation", "base", "sft", "difficulty"):
        if not (root / paths.manifest(stage)).exists():
            print(f"preparing: {stage}", flush=True)
            command = [sys.executable, "-m", "pipelines", stage, "--params", str(ROOT / paths.PARAMS), "--root", str(root)]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


class Bench:
    """One SFT policy, its problems, and what rows have been trained from it."""

    def __init__(self, root: Path, steps: int, lr: float) -> None:
        params = config.load(ROOT / paths.PARAMS)
        stage = params.stages["math"]
        self.settings = stage.model_copy(update={"steps": steps, "optimiser": stage.optimiser.model_copy(update={"lr": lr})})
        self.root, self.seed = root, params.seed
        self.problems = [p for p in read_problems(root / paths.rows("difficulty")) if p.domain == "math"]
        self.benchmark = read_problems(root / paths.BENCHMARKS / "math.parquet")[:120]
        self.sft, self.tokenizer = load_policy(root / paths.model("sft"))
        self.sft.eval().requires_grad_(False)
        self.trained: dict[str, Any] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.pass_at_1, pass_at_8 = self.answers(self.sft)
        self.sft_pass_at_8 = float(pass_at_8.mean())

    def answers(self, policy: Any) -> tuple[Any, Any]:
        """pass@1 and pass@8 of each benchmark problem from 8 samples."""
        with VerifierPool() as pool:
            groups = respond(TorchGenerator(policy, self.tokenizer, self.settings.generation), self.benchmark, 8, (self.seed, "benchmark"))
            rows, _ = rows_by_problem(judge(self.benchmark, groups, self.seed, pool))
        right = [sum(r.outcome == "correct" for r in rows[p.problem_id]) for p in self.benchmark]
        return tuple(np.array([pass_at_k(8, c, k) for c in right]) for k in (1, 8))

    def sft_row(self) -> dict[str, Any]:
        return {"row": "(SFT policy)", "pass_at_1": float(self.pass_at_1.mean()), "pass_at_8": self.sft_pass_at_8}

    def stage(self, name: str) -> RlStage:
        return self.settings.model_copy(update={"recipe": name, **SETTINGS.get(name, {})})

    def frozen(self, name: str) -> dict[str, Any]:
        """The frozen policies of a row; what another row has to train first is trained."""
        if (needed := REFERENCE.get(name)) and needed not in self.trained:
            self.row(needed)
        reference = self.trained[REFERENCE[name]] if name in REFERENCE else self.sft
        sources = {"reference": reference, "init": self.sft}
        return {name: copy.deepcopy(sources[role.source]) for name, role in roles_of(RECIPES[name]).items() if role.source != "copy"}

    def row(self, name: str) -> dict[str, Any]:
        """Train the row and answer the benchmark, once."""
        if name in self.rows:
            return self.rows[name]
        frozen = self.frozen(name)
        policy = copy.deepcopy(self.sft).requires_grad_(True)
        with tempfile.TemporaryDirectory() as work:
            journal = Journal(Path(work) / "journal.jsonl", name, io.StringIO())
            checkpoints = Checkpoints(Path(work) / "checkpoints", {})
            checkpoints.prepare()
            train(
                policy, self.tokenizer, self.problems, RECIPES[name], self.stage(name), stage="benchmark", seed=self.seed,
                journal=journal, checkpoints=checkpoints, rollout_folder=Path(work) / "rollouts", frozen=frozen,
            )  # fmt: skip
            steps = journal.rows()
        self.trained[name] = policy.requires_grad_(False)
        pass_at_1, pass_at_8 = self.answers(policy)
        change = paired_difference(pass_at_1, self.pass_at_1, 2000, seeding.generator(self.seed, "objectives"))
        last = {key: float(np.mean([step[key] for step in steps[-5:]])) for key in ("reward", "entropy", "length")}
        seconds = float(np.median([sum(v for k, v in step.items() if k.startswith("seconds_")) for step in steps]))
        finite = all(math.isfinite(step[key]) for step in steps for key in ("loss", "grad_norm")) and all(
            bool(p.isfinite().all()) for p in policy.parameters()
        )
        row = {
            "row": name, **last, "pass_at_1": float(pass_at_1.mean()), "pass_at_8": float(pass_at_8.mean()),
            "change": [change.mean, change.low, change.high], "seconds_per_step": seconds,
            "grad_norm": float(np.mean([step["grad_norm"] for step in steps])),
            "broken": not finite or (change.high < 0 and name not in BELOW), "note": NOTES.get(name, ""),
        }  # fmt: skip
        print(_line(row), flush=True)
        self.rows[name] = row
        return row

    def costs(self, names: list[str], repeats: int) -> dict[str, dict[str, float]]:
        """Row -> time of score and update, as a ratio to grpo's of the same run."""
        generator = TorchGenerator(self.sft, self.tokenizer, self.settings.generation)
        with VerifierPool() as pool:
            answering, _ = answerers(RECIPES["grpo"], generator, pool)
            tasks = [answering.task(p, slot, 8, (self.seed, "cost", "rollout")) for slot, p in enumerate(self.problems[:16])]
            made = [trajectory for of_task in answering.played(tasks, 1, "cost", Clock()) for trajectory in of_task]
        found: dict[str, dict[str, float]] = {}
        for name in names:
            pairs = [(self.cost("grpo", made), self.cost(name, made)) for _ in range(repeats)]
            base = min(grpo["update"] for grpo, _ in pairs)
            found[name] = {part: min(theirs[part] for _, theirs in pairs) / base for part in ("score", "update")}
        return found

    def cost(self, name: str, made: list[Any]) -> dict[str, float]:
        """Seconds of one step between rollouts and new weights."""
        recipe, settings = RECIPES[name], self.stage(name)
        policy = copy.deepcopy(self.sft).requires_grad_(True).eval()
        try:
            actor = make_actor(policy, self.tokenizer, recipe, settings, self.frozen(name))
        except UserError as error:
            sys.exit(str(error))
        optimiser = make_optimiser(policy, settings.optimiser)
        by_id: dict[str, Problem] = {p.problem_id: p for p in self.problems}
        history = History(Path())
        history.add(1, made)
        clock = Clock()
        kept = training(judged(made))
        now = make_step(actor, recipe, settings, kept, by_id, history, {}, (1, "cost"), 1)
        batch = with_advantages(recipe, route(recipe, fill(recipe, now)))
        clock.lap("score")
        groups = minibatches(kept, settings.minibatches)
        with tempfile.TemporaryDirectory() as folder:
            optimise(actor, optimiser, recipe, settings, 1.0, now.ids_BT, now.score_BT, batch, groups, Path(folder))
        clock.lap("update")
        return clock.seconds


SCORING = """
import resource, sys, time
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from pipelines.models.scoring import chosen, entropy_detached, token_scores

torch.manual_seed(0)
words, rows, tokens = 151_936, 8, 257
config = LlamaConfig(vocab_size=words, hidden_size=256, num_hidden_layers=1, num_attention_heads=4, intermediate_size=512, tie_word_embeddings=True)
model = LlamaForCausalLM(config)
ids = torch.randint(0, words, (rows, tokens))
score = torch.ones_like(ids, dtype=torch.bool)
score[:, 0] = False

def step(ids, score):
    if sys.argv[1] == "chunked":
        token_scores(model, ids, score, {"logp": chosen, "entropy": entropy_detached})["logp"].sum().backward()
    else:
        logp = torch.log_softmax(model(ids).logits[:, :-1].float(), -1)
        with torch.no_grad():
            -(logp.exp() * logp).sum(-1)
        logp.gather(-1, ids[:, 1:, None]).sum().backward()

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
step(ids[:1, :9], score[:1, :9])
before, began = peak(), time.monotonic()
step(ids, score)
print(time.monotonic() - began, peak() - before)
"""


def run_scoring(mode: str) -> list[float]:
    """Seconds and megabytes of one way to score."""
    child = subprocess.run([sys.executable, "-c", SCORING, mode], check=True, cwd=ROOT, capture_output=True, text=True)
    return [float(word) for word in child.stdout.split()]


COLUMNS = ("row", "reward", "pass@1", "change [95 %]", "pass@8", "entropy", "length", "s/step", "score x", "update x", "note")


def _line(row: dict[str, Any]) -> str:
    def number(key: str, digits: int = 3) -> str:
        return f"{row[key]:.{digits}f}" if key in row else "-"

    change = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["change"]) if "change" in row else "-"
    mark = "BROKEN " if row.get("broken") else ""
    cells = [row["row"], number("reward"), number("pass_at_1"), change, number("pass_at_8"), number("entropy"), number("length", 1)]
    cells += [number("seconds_per_step", 2), number("score", 2), number("update", 2), mark + row.get("note", "")]
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, (22, 6, 6, 23, 6, 7, 6, 6, 7, 8, 0), strict=True)) + " |"


def print_table(rows: list[dict[str, Any]]) -> None:
    print("\n| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in rows:
        print(_line(row))


if __name__ == "__main__":
    main()
