"""What the data half of RL does to learning, on the embedded model in minutes: `python -m benchmarks.data_half [--only tools ...] [--seeds 1 2 3]`.

    tools      word problems with numbers of three digits: a policy that may call a calculator against one that may not, after the same steps of RL
               from one cold start, in which one solution in three calls it: pass@1 with its paired interval, and the call rate over the steps
    guidance   problems that none of 8 answers solved: share of groups with both outcomes, and pass@1 after the same steps, where no answer of a group
               goes on from a prefix of the solution, where one of 8 does (a share of it from .05 to .95), and where half do (from .5)
    bandit     BOTS over graded problems against every problem once per epoch: share of groups with both outcomes, and pass@1
    adaptive   rounds until a group has both outcomes, with the baseline over those that train and over all (Reinforce-Ada), against groups of one
               size, at the same number of answers: likewise, and pass@1
    play       SvS against answering alone, at the same number of answers, from a cold start that has seen problems written for solutions: pass@1 and
               pass@8, share of variants that earn something in the first and the last fifth of the steps
    schedules  answers made before, beside and across updates, with lengths that differ much: tokens a second, how old tokens are, pass@1 after the
               same updates, share of the time in which the engine has nothing to do

Every figure is of held-out problems or of the journal; one JSON object of all stands on the last line.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.policies import journal, supervised
from pipelines import prompting, seeding
from pipelines.config.common import GenerationSettings, OptimiserSettings
from pipelines.config.rl import RlStage, ScheduleSettings
from pipelines.config.sources import ArithmeticSource
from pipelines.config.training import ArchitectureSettings, LanguageModellingSettings
from pipelines.evaluation.metrics import pass_at_k
from pipelines.evaluation.statistics import paired_difference
from pipelines.generation import TorchGenerator
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.records import Outcome, Problem, Trajectory
from pipelines.rl import recipe
from pipelines.rl.clock import Clock
from pipelines.rl.environments.calls import Results
from pipelines.rl.play.variational_synthesis import INSTRUCTION
from pipelines.rl.roles import roles_of
from pipelines.rl.run import answerers
from pipelines.rl.train import train
from pipelines.sft.examples import Example, chat_examples, document
from pipelines.sources.arithmetic import problems as arithmetic
from pipelines.store import read_trajectories
from pipelines.verifiers import VerifierPool

CALLS = 3
"""One cold-start solution in so many calls the calculator."""
WRITES = 3
"""For one cold-start solution in so many the problem is learnt too, as SvS asks for it."""
GRPO_STEP = 16 * 8
"""Answers of a step where the recipe does not say otherwise."""
TOOLS = {"name": "tools", "call": "function", "described": False, "turns": 3, "tokens": 96}
MIXED = {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
"""Levels of problems, in equal parts."""
EPOCHS = 0.6
"""With Muon, of a cold start that solves about two fifths of the problems of all levels."""
WORKED = 2000
"""Problems whose solutions the second half of a cold start learns again."""
RATE = 1e-4
"""Of Adam in RL: with 16 problems a step 3e-4 learns less."""
WARMUP = 10
"""Steps of RL in which the rate rises: as many as Adam averages gradients over. Its first update moves every weight by the whole rate, along the
noise of one batch: from a cold start of .52 the first step at 3e-4 leaves .45."""
ARCHITECTURE = ArchitectureSettings(hidden_size=128, layers=4, heads=4, intermediate_size=384, vocab_size=512, context=256)


Trained = tuple[Any, list[dict[str, Any]], list[list[Trajectory]]]
"""The policy, the rows of its journal, the trajectories by step."""


class Testbed:
    """One cold start, and what is trained from it. The problems are of `source`; `traces` turns a problem into what a cold start learns of it.

    It is made as the default makes its own: `epochs` with Muon, then `worked` with Adam over WORKED of the same problems.
    """

    def __init__(
        self, source: ArithmeticSource, seed: int, traces: Callable[[Any, Sequence[Problem]], list[Example]], epochs: float, worked: float = 3
    ) -> None:
        self.seed = seed
        every = list(arithmetic(source, seed, "stories", Path()))
        self.learnt, self.problems, self.held_out = every[:-600], every[-600:-200], every[-200:]
        self.tokenizer = train_tokenizer([document(problem) for problem in self.learnt], 512)
        self.policy = tiny_model(ARCHITECTURE, self.tokenizer, seed)
        halves = (self.learnt, epochs, OptimiserSettings(name="muon", lr=3e-3)), (self.learnt[-WORKED:], worked, OptimiserSettings(lr=1e-3))
        for problems, passes, optimiser in halves:
            settings = LanguageModellingSettings(epochs=passes, batch_size=32, optimiser=optimiser)
            with tempfile.TemporaryDirectory() as folder:
                supervised(Path(folder), self.policy, traces(self.tokenizer, problems), settings)

    def rl(self, steps: int, problems: Sequence[Problem] | None = None, row: str = "grpo", answers: int | None = None, **changes: Any) -> Trained:
        """16 problems a step, 8 answers each. answers: it ends after the step by which there are so many. changes: of the stage; `overrides` of the
        recipe. Frozen policies are the cold start."""
        policy = copy.deepcopy(self.policy).requires_grad_(True)
        overrides = changes.pop("overrides", {})
        stage = RlStage(**{
            "init": "sft", "data": "rows", "steps": steps, "checkpoint_every": 10**6,
            "generation": GenerationSettings(max_new_tokens=48), **changes,
            "optimiser": OptimiserSettings(lr=RATE, warmup=min(1.0, WARMUP / steps), schedule="constant", weight_decay=0.0),
        })  # fmt: skip
        method = recipe(row, **overrides)
        frozen = {name: copy.deepcopy(self.policy) for name, role in roles_of(method).items() if role.source != "copy"}
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            checkpoints = Checkpoints(folder / "checkpoints", {})
            checkpoints.prepare()
            with journal(folder / "rl", "rl", answers) as kept:
                train(
                    policy, self.tokenizer, problems or self.problems, method, stage, stage="rl@b", seed=self.seed, journal=kept,
                    checkpoints=checkpoints, rollout_folder=folder / "rollouts", frozen=frozen,
                )  # fmt: skip
            steps_told = [read_trajectories(path) for path in sorted((folder / "rollouts").glob("*.parquet"))]
            return policy, kept.rows(), steps_told

    def answers(self, policy: Any, problems: Sequence[Problem], samples: int = 8, **overrides: Any) -> list[list[Trajectory]]:
        """Groups of answers to problems in the environment of the overrides."""
        generator = TorchGenerator(policy, self.tokenizer, GenerationSettings(max_new_tokens=48))
        with VerifierPool() as pool:
            _, examining = answerers(recipe("grpo", **overrides), generator, pool)
            tasks = [examining.task(p, place, samples, (self.seed, "benchmark")) for place, p in enumerate(problems)]
            return examining.played(tasks, 0, "benchmark", Clock())

    def pass_rates(self, policy: Any, **overrides: Any) -> np.ndarray:
        """By held-out problem."""
        return rates(self.answers(policy, self.held_out, **overrides))

    def pass_at(self, k: int, policy: Any) -> float:
        """Of 16 answers to each held-out problem."""
        right = [sum(t.outcome == Outcome.CORRECT for t in group) for group in self.answers(policy, self.held_out, 16)]
        return float(np.mean([pass_at_k(16, count, k) for count in right]))


def rates(groups: Sequence[Sequence[Trajectory]]) -> np.ndarray:
    return np.array([np.mean([t.outcome == Outcome.CORRECT for t in group]) for group in groups])


def mixed(trajectories: Sequence[Trajectory]) -> float:
    """Share of groups with both outcomes."""
    groups: dict[int, set[bool]] = {}
    for t in trajectories:
        groups.setdefault(t.group_id, set()).add(t.outcome == Outcome.CORRECT)
    return float(np.mean([len(outcomes) == 2 for outcomes in groups.values()]))


def plain(tokenizer: Any, problems: Sequence[Problem]) -> list[Example]:
    return chat_examples(tokenizer, problems, 256)[0]


def with_calls(tokenizer: Any, problems: Sequence[Problem]) -> list[Example]:
    """Answers without working, but for one in CALLS, which calls the calculator: an example for each turn, with the loss on it alone."""
    results, examples = Results(tokenizer), []
    for place, problem in enumerate(problems):
        if place % CALLS:
            examples += plain(tokenizer, [replace(problem, solution="")])
            continue
        start = prompting.prompt_ids(tokenizer, problem)
        call = [*tokenizer(f"<tool_call>calculator({(problem.solution or '').partition(' =')[0]})</tool_call>")["input_ids"], tokenizer.eos_token_id]
        asked = [*start, *call, *results([problem.answer])]
        answer = prompting.response_ids(tokenizer, replace(problem, solution=""))
        examples += [Example.after([*start, *call], len(start)), Example.after([*asked, *answer], len(asked))]
    return examples


def tools(seed: int, steps: int = 60) -> dict[str, Any]:
    source = ArithmeticSource(kind="arithmetic", count=6600, levels={1: 1}, styles={"terse": 1}, largest=999)
    bed = Testbed(source, seed, with_calls, epochs=6)
    environment = {"environment": TOOLS}
    with_tool, rows, _ = bed.rl(steps, overrides=environment)
    without, _, _ = bed.rl(steps)
    first, second = bed.pass_rates(with_tool, **environment), bed.pass_rates(without)
    change = paired_difference(first, second, 10000, seeding.generator(seed, "tools"))
    return {
        "start": [float(bed.pass_rates(bed.policy, **environment).mean()), float(bed.pass_rates(bed.policy).mean())],
        "with": float(first.mean()), "without": float(second.mean()), "difference": [change.mean, change.low, change.high],
        "calls": [float(np.mean([row["reward_tool_calls"] for row in rows[place : place + 10]])) for place in range(0, steps, 10)],
    }  # fmt: skip


def guidance(seed: int, steps: int = 40) -> dict[str, Any]:
    bed = Testbed(stories({2: 1, 3: 1, 4: 1}, every_step=True), seed, plain, epochs=1)
    unsolved = [p for p, rate in zip(bed.problems, rates(bed.answers(bed.policy, bed.problems)), strict=True) if rate == 0]
    prefix = {"name": "solution_prefix"}
    kinds = {
        "without": {},
        "one of 8": {"guidance": {**prefix, "episodes": 1, "share": (0.05, 0.95)}},
        "half": {"guidance": {**prefix, "episodes": 4, "share": (0.5, 0.95)}},
    }
    found: dict[str, Any] = {"problems": len(unsolved), "start": float(bed.pass_rates(bed.policy).mean())}
    for name, overrides in kinds.items():
        policy, _, told = bed.rl(steps, unsolved, overrides=overrides)
        found[name] = {
            "mixed": float(np.mean([mixed(step) for step in told])),
            "pass_at_1": float(bed.pass_rates(policy).mean()),
            "trained_problems": float(rates(bed.answers(policy, unsolved)).mean()),
        }
    return found


def bandit(seed: int, steps: int = 40) -> dict[str, Any]:
    bed = Testbed(stories(MIXED), seed, plain, EPOCHS)
    found: dict[str, Any] = {}
    grades = rates(bed.answers(bed.policy, bed.problems))
    graded = [replace(problem, pass_rate=float(rate)) for problem, rate in zip(bed.problems, grades, strict=True)]
    found["graded"] = {"never": float(np.mean(grades == 0)), "always": float(np.mean(grades == 1))}
    for name, overrides in {"shuffle": {}, "bots": {"tasks": [{"name": "bots"}]}}.items():
        policy, _, told = bed.rl(steps, graded, overrides=overrides)
        found[name] = {"mixed": float(np.mean([mixed(step) for step in told])), "pass_at_1": float(bed.pass_rates(policy).mean())}
    return found


def adaptive(seed: int, answers: int = 5120) -> dict[str, Any]:
    bed = Testbed(stories(MIXED), seed, plain, EPOCHS)
    found: dict[str, Any] = {}
    rounds = {"explore": {"name": "adaptive", "rounds": 4, "per_round": 4}}
    kinds = {"fixed": {}, "rounds": {"overrides": rounds}, "rounds, baseline of all": {"row": "reinforce_ada", "overrides": rounds}}
    for name, changes in kinds.items():
        policy, rows, told = bed.rl(answers // GRPO_STEP, answers=answers, **changes)
        trained = [[t for t in step if not t.dropped] for step in told]
        found[name] = {
            "answers": int(sum(row["answered"] for row in rows)), "steps": len(rows), "mixed": float(np.mean([mixed(step) for step in trained])),
            "pass_at_1": float(bed.pass_rates(policy).mean()),
        }  # fmt: skip
    return found


def writing(tokenizer: Any, problems: Sequence[Problem]) -> list[Example]:
    """Worked solutions, and for one in WRITES the problem that it solves."""
    examples = plain(tokenizer, problems)
    for problem in problems[::WRITES]:
        asked = replace(problem, prompt=INSTRUCTION.replace("{response}", prompting.response(problem)))
        start = prompting.prompt_ids(tokenizer, asked)
        written = tokenizer(problem.prompt, add_special_tokens=False)["input_ids"]
        examples.append(Example.after([*start, *written, tokenizer.eos_token_id], len(start)))
    return examples


def play(seed: int, answers: int = 7680) -> dict[str, Any]:
    bed = Testbed(stories(MIXED, every_step=True), seed, writing, epochs=1)
    generation = GenerationSettings(max_new_tokens=80)
    variants = {"play": {"name": "variational_synthesis", "responses": 2, "variants": 4}}
    found: dict[str, Any] = {"start": [bed.pass_at(k, bed.policy) for k in (1, 8)]}
    rates_of = {}
    for name, changes in {"answer": {"row": "grpo"}, "svs": {"row": "svs", "overrides": variants}}.items():
        policy, rows, told = bed.rl(answers // GRPO_STEP, answers=answers, generation=generation, **changes)
        found[name] = {"answers": int(sum(row["answered"] for row in rows)), "steps": len(rows), "pass": [bed.pass_at(k, policy) for k in (1, 8)]}
        rates_of[name] = bed.pass_rates(policy)
        earned = [[t.reward_parts["variant"] for t in step if "variant" in t.reward_parts] for step in told]
        if any(earned):
            fifth = max(1, len(earned) // 5)
            found[name]["variants"] = sum(map(len, earned))
            found[name]["earned"] = [float(np.mean(np.concatenate(part))) for part in (earned[:fifth], earned[-fifth:])]
    change = paired_difference(rates_of["svs"], rates_of["answer"], 10000, seeding.generator(seed, "play"))
    return found | {"difference": [change.mean, change.low, change.high]}


def schedules(seed: int, steps: int = 20) -> dict[str, Any]:
    bed = Testbed(stories({1: 4, 2: 2, 3: 1, 4: 1}, every_step=True), seed, plain, epochs=2)
    kinds = {
        "synchronous": ScheduleSettings(),
        "one ahead": ScheduleSettings(kind="one_ahead"),
        **{f"in flight, bound {bound}": ScheduleSettings(kind="in_flight", bound=bound, groups=16 * bound) for bound in (1, 2, 4)},
    }
    found = {}
    for name, schedule in kinds.items():
        began = time.monotonic()
        policy, rows, told = bed.rl(steps, row="tis", schedule=schedule, generation=GenerationSettings(max_new_tokens=96, batch_size=512))
        seconds = time.monotonic() - began
        lags = Counter(step - 1 - version for step, answered in enumerate(told, 1) for t in answered for version in t.policy_version)
        tokens = lags.total()
        busy = sum(row.get("seconds_generate", 0.0) for row in rows)
        found[name] = {
            "tokens_per_second": tokens / seconds, "lags": {lag: count / tokens for lag, count in sorted(lags.items())},
            "pass_at_1": float(bed.pass_rates(policy).mean()), "engine_idle": 1 - busy / seconds,
            "given_up": float(sum(row.get("given_up", 0.0) for row in rows)),
        }  # fmt: skip
    return found


def stories(levels: dict[int, float], every_step: bool = False) -> ArithmeticSource:
    """Word problems. every_step: solutions write every step; else one in three does, and much of what RL learns is to write them."""
    styles = {"styles": {"steps": 1}} if every_step else {}
    return ArithmeticSource.model_validate({"kind": "arithmetic", "count": 12600, "levels": levels, **styles})


Part = Callable[[int], dict[str, Any]]
PARTS: dict[str, Part] = {"tools": tools, "guidance": guidance, "bandit": bandit, "adaptive": adaptive, "play": play, "schedules": schedules}


def lines(figures: Any, indent: str = "  ") -> Iterator[str]:
    """Nested figures for people."""
    for name, value in figures.items():
        if isinstance(value, dict) and any(isinstance(each, dict | list) for each in value.values()):
            yield f"{indent}{name}"
            yield from lines(value, indent + "  ")
        else:
            yield f"{indent}{name:<24}{shown(value)}"


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(shown(each) for each in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_half", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for part in options.only:
        for seed in options.seeds:
            began = time.monotonic()
            figures[f"{part}, seed {seed}"] = made = PARTS[part](seed)
            print(f"{part}, seed {seed} ({time.monotonic() - began:.0f} s)", *lines(made), sep="\n", flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
