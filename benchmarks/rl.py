"""How fast is a step of RL, and where does its time go: `python -m benchmarks.rl [--model smollm2-135m-instruct] [--steps 12] [--skip-trl]`.

Both sides get the same policy (the embedded model after a short cold start on word problems; or a known model after one on those of
data/examples; or, named as a folder, one that has had it), prompts, group size, length limit, optimiser and reward, and run in processes of their
own on the same cores, in turn:

    Hugging Face generate    the same batch sampled by `generate` and by the torch engine: tokens a second
    TRL's GRPOTrainer        release 1.16, in a virtual environment that this benchmark makes: trained tokens a second, largest resident set,
                             mean reward of the first and last third of the steps, minutes

then the phases of a step, and, for the embedded model, what group size and length do to both rates. Trained tokens are response tokens that an
update saw; the first steps warm up and do not count. The two sides take turns, three times; the median counts. Where the CPU computes in bfloat16,
a known model's sides do too (`--precision float32` says otherwise).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import psutil

from benchmarks.environments import environment
from benchmarks.policies import PROMPT, cold_started, embedded, examples, journal

ROOT = Path(__file__).parents[1]
TRL = ("trl==1.16.0", "torch==2.13.0", "transformers==5.19.0", "datasets", "accelerate", "pydantic", "pyyaml", "numpy", "pyarrow", "psutil")
WARM_UP = 2
ROUNDS = 3
GROWTH = [(4, 64), (8, 64), (16, 64), (32, 64), (8, 32), (8, 128), (8, 256)]
PHASES = ("generate", "verify", "score", "update", "other")


@dataclass(frozen=True)
class Case:
    """What both sides do. micro: rows of one forward pass. prompt: PromptSettings as a mapping."""

    prompts: int = 16
    group: int = 8
    length: int = 64
    micro: int = 64
    lr: float = 3e-4
    precision: str = "float32"
    prompt: dict[str, Any] | None = None

    @property
    def rows(self) -> int:
        """Responses of one step."""
        return self.prompts * self.group


PRETRAINED = Case(prompts=8, lr=2e-5, prompt=PROMPT)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rl", description=__doc__)
    parser.add_argument("--model", help="a known model, or a folder in Hugging Face format that has had a cold start; the embedded one without")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of a named model's training and sampling")
    parser.add_argument("--steps", type=int, default=12, help="steps of RL on each side")
    parser.add_argument("--skip-trl", action="store_true", help="do not install and run TRL")
    parser.add_argument("--environment", type=Path, default=ROOT / ".touchstone" / "trl", help="where TRL's virtual environment is or is made")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=int, nargs=2, metavar=("GROUP", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        side, folder = options.one[0], Path(options.one[1])
        case = Case(**json.loads((folder / "case.json").read_text()))
        if options.shape:
            case = replace(case, group=options.shape[0], length=options.shape[1])
        print(json.dumps(SIDES[side](folder, options.steps, case)))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        case = prepared(folder, options.model, options.precision)
        (folder / "case.json").write_text(json.dumps(asdict(case)))
        figures["case"] = asdict(case) | {"model": options.model}
        figures["generate"] = beside(folder, options.steps, (sys.executable, "engine"), (sys.executable, "library"))
        batch = f"{case.prompts} x {case.group} responses in {case.precision}"
        print(f"generation of {batch}, Hugging Face generate: {told(figures['generate'])}", flush=True)
        python = sys.executable if options.skip_trl else str(environment(options.environment, TRL))
        figures["train"] = beside(folder, options.steps, (sys.executable, "touchstone"), (python, "touchstone" if options.skip_trl else "trl"))
        other = "the loop again" if options.skip_trl else "TRL 1.16"
        print(f"training, {other}: {told(figures['train'])}", flush=True)
        for name, side in (("touchstone", "ours"), (other, "theirs")):
            row = figures["train"][side]
            print(f"  {name}: reward {row['reward'][0]:.3f} -> {row['reward'][1]:.3f} in {row['minutes']:.1f} min; a step {shown(row['phases'])}")
        if options.model is None:
            figures["growth"] = list(growth(folder, options.steps))
    print(json.dumps(figures))


def growth(folder: Path, steps: int) -> Iterator[dict[str, Any]]:
    """What group size and length do to the rates."""
    print(f"{'group':>6}{'length':>8}{'generated/s':>13}{'trained/s':>11}{'GB':>7}  phases")
    for group, length in GROWTH:
        row = measured(sys.executable, "touchstone", folder, max(4, steps // 2), (group, length))
        rates = f"{row['generated_per_second']:>13,.0f}{row['tokens_per_second']:>11,.0f}"
        print(f"{group:>6}{length:>8}{rates}{row['gigabytes']:>7.2f}  {shown(row['phases'])}", flush=True)
        yield {"group": group, "length": length} | row


def beside(folder: Path, steps: int, ours: tuple[str, str], theirs: tuple[str, str]) -> dict[str, Any]:
    """Both sides (python, side) in turn, ROUNDS times: the round whose ratio is the median, and all ratios. The machine's speed drifts."""
    rounds = [(measured(*ours, folder, steps), measured(*theirs, folder, steps)) for _ in range(ROUNDS)]
    rounds.sort(key=lambda pair: pair[0]["tokens_per_second"] / pair[1]["tokens_per_second"])
    mine, other = rounds[ROUNDS // 2]
    return {"ours": mine, "theirs": other, "times": [a["tokens_per_second"] / b["tokens_per_second"] for a, b in rounds]}


def told(pair: dict[str, Any]) -> str:
    """Rates and memory of the median round, and the ratios of all."""
    ours, theirs = (f"{pair[side]['tokens_per_second']:,.0f} tokens/s in {pair[side]['gigabytes']:.2f} GB" for side in ("ours", "theirs"))
    return f"{ours} against {theirs}, {', '.join(f'{times:.1f}' for times in pair['times'])} times"


def shown(phases: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in phases.items())


def measured(python: str, side: str, folder: Path, steps: int, shape: tuple[int, int] | None = None) -> dict[str, Any]:
    """One side in a process of its own, with its largest resident set (children included)."""
    command = [python, "-m", "benchmarks.rl", "--one", side, str(folder), "--steps", str(steps)]
    if shape:
        command += ["--shape", *map(str, shape)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=said, text=True)
        watched, most = psutil.Process(process.pid), 0
        while process.poll() is None:
            try:
                most = max(most, sum(part.memory_info().rss for part in (watched, *watched.children(recursive=True))))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.25)  # looking at the processes costs both sides time
        assert process.stdout is not None
        out = process.stdout.read().strip().splitlines()
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{side} failed:\n{said.read()[-3000:]}")
    return json.loads(out[-1]) | {"gigabytes": most / 1e9}


def prepared(folder: Path, model: str | None, precision: str) -> Case:
    """Write the policy and the problems that both sides read, and say what they do."""
    if model is None:
        embedded(folder)
        return Case()
    from pipelines.models.loading import load_policy, save_policy
    from pipelines.models.precision import chosen
    from pipelines.store import write_problems

    case = replace(PRETRAINED, precision=chosen("cpu", precision))  # type: ignore[arg-type]
    if Path(model).is_dir():
        save_policy(folder / "model", *load_policy(model))
    else:
        cold_started(folder, model)
    write_problems(folder / "problems.parquet", list(examples("mawps_train"))[:512])
    return case


def read(folder: Path) -> tuple[Any, Any, list[Any]]:
    from pipelines.models.loading import load_policy
    from pipelines.store import read_problems

    return (*load_policy(folder / "model"), read_problems(folder / "problems.parquet"))


def sampling(case: Case) -> Any:
    from pipelines.config.common import GenerationSettings

    settings = {"max_new_tokens": case.length, "precision": case.precision, "prompt": case.prompt or {}}
    return GenerationSettings.model_validate(settings)


def engine(folder: Path, steps: int, case: Case) -> dict[str, float]:
    """The torch engine: tokens a second of sampling one batch, the median of `steps` times."""
    from pipelines.generation import TorchGenerator, respond

    policy, tokenizer, problems = read(folder)
    generator = TorchGenerator(policy, tokenizer, sampling(case))
    speeds = []
    for step in range(steps):
        start = time.perf_counter()
        groups = respond(generator, problems[: case.prompts], case.group, (step,))
        speeds.append(sum(len(sample.token_ids) for samples in groups for sample in samples) / (time.perf_counter() - start))
    return {"tokens_per_second": statistics.median(speeds)}


def library(folder: Path, steps: int, case: Case) -> dict[str, float]:
    """Hugging Face `generate` on the same batch, in the same precision: a bfloat16 model where that is asked for."""
    import torch

    from pipelines.prompting import prompt_ids

    policy, tokenizer, problems = read(folder)
    policy.to(getattr(torch, case.precision))
    prompts = [prompt_ids(tokenizer, problem, sampling(case).prompt) for problem in problems[: case.prompts]]
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[*[pad] * (longest - len(prompt)), *prompt] for prompt in prompts])
    mask = torch.tensor([[*[0] * (longest - len(prompt)), *[1] * len(prompt)] for prompt in prompts])
    drawn = {"do_sample": True, "top_k": 0, "num_return_sequences": case.group, "pad_token_id": pad}
    speeds = []
    for step in range(steps):
        torch.manual_seed(step)
        start = time.perf_counter()
        out = policy.generate(ids, attention_mask=mask, max_new_tokens=case.length, **drawn)
        seconds = time.perf_counter() - start
        answers = out[:, longest:]
        ended = (answers == tokenizer.eos_token_id).int()
        before = ended.cumsum(1) - ended
        speeds.append(int((before == 0).sum()) / seconds)
    return {"tokens_per_second": statistics.median(speeds)}


def touchstone(folder: Path, steps: int, case: Case) -> dict[str, Any]:
    """The loop of this project."""
    from pipelines.config.common import OptimiserSettings
    from pipelines.config.rl import RlStage
    from pipelines.models.checkpoints import Checkpoints
    from pipelines.rl.recipe import recipe
    from pipelines.rl.train import train

    policy, tokenizer, problems = read(folder)
    settings = RlStage.model_validate({
        "init": "sft", "data": "rows", "steps": steps, "prompts_per_step": case.prompts, "group_size": case.group,
        "micro_batch": case.micro, "precision": case.precision, "checkpoint_every": 10**6, "checkpoint_minutes": 10**6, "generation": sampling(case),
        "optimiser": OptimiserSettings(lr=case.lr, schedule="constant", warmup=0.0, weight_decay=0.0),
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary, journal(Path(temporary) / "rl", "rl") as kept:
        train(
            policy, tokenizer, problems, recipe("grpo"), settings, stage="rl@bench", seed=1, journal=kept,
            checkpoints=Checkpoints(Path(temporary) / "c", {}), rollout_folder=Path(temporary) / "rollouts",
        )  # fmt: skip
        rows = kept.rows()[WARM_UP:]
    phases = {name: sum(row[f"seconds_{name}"] for row in rows) for name in PHASES}
    tokens = sum(row["length"] for row in rows) * case.rows
    return account(tokens, phases, [row["reward"] for row in rows])


def account(tokens: float, phases: dict[str, float], rewards: list[float]) -> dict[str, Any]:
    """Rates, shares of the phases, and the mean reward of the first and last third of the steps."""
    total, third = sum(phases.values()), max(1, len(rewards) // 3)
    return {
        "tokens_per_second": tokens / total,
        "generated_per_second": tokens / phases["generate"],
        "phases": {name: seconds / total for name, seconds in phases.items()},
        "reward": [statistics.fmean(rewards[:third]), statistics.fmean(rewards[-third:])],
        "minutes": total / 60,
    }


def trl(folder: Path, steps: int, case: Case) -> dict[str, Any]:
    """TRL's trainer; runs in its own environment."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from pipelines import prompting
    from pipelines.store import read_problems
    from pipelines.verifiers import VerifierPool

    problems = {problem.problem_id: problem for problem in read_problems(folder / "problems.parquet")}
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    pool = VerifierPool()
    clock: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    def reward(prompts: list[str], completions: list[str], name: list[str], **_: Any) -> list[float]:
        return [float(verdict.correct) for verdict in pool.verify_batch([(problems[key], text) for key, text in zip(name, completions, strict=True)])]

    class Timed(GRPOTrainer):
        """Its phases by the clock."""

        def _generate(self, *arguments: Any, **named: Any) -> Any:
            with lap("generate"):
                return super()._generate(*arguments, **named)

        def _calculate_rewards(self, *arguments: Any, **named: Any) -> Any:
            with lap("verify"):
                return super()._calculate_rewards(*arguments, **named)

        def _generate_and_score_completions(self, *arguments: Any, **named: Any) -> Any:
            before = clock["generate"] + clock["verify"]
            with lap("score"):
                made = super()._generate_and_score_completions(*arguments, **named)
            clock["score"] -= clock["generate"] + clock["verify"] - before
            return made

    @contextmanager
    def lap(phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        clock[phase] += time.perf_counter() - start

    rows = [{"prompt": tokenizer.decode(prompting.prompt_ids(tokenizer, p, sampling(case).prompt)), "name": key} for key, p in problems.items()]
    steps_seen: list[tuple[float, dict[str, float]]] = []
    lengths: list[float] = []
    rewards: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps_seen.append((time.perf_counter(), dict(clock)))

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "completions/mean_length" in logs:
                lengths.append(logs["completions/mean_length"])
                rewards.append(logs["reward"])

    with tempfile.TemporaryDirectory() as temporary:
        config = GRPOConfig(
            output_dir=temporary, use_cpu=True, bf16=case.precision == "bfloat16", report_to=[], logging_steps=1, save_strategy="no",
            disable_tqdm=True, seed=1, per_device_train_batch_size=min(case.micro, case.rows), num_generations=case.group,
            gradient_accumulation_steps=max(1, case.rows // case.micro), max_completion_length=case.length, temperature=1.0, beta=0.0,
            learning_rate=case.lr, lr_scheduler_type="constant", weight_decay=0.0, max_steps=steps, gradient_checkpointing=False, loss_type="grpo",
        )  # fmt: skip
        Timed(model, reward, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[Watch()]).train()
    (start, before), (end, after) = steps_seen[WARM_UP - 1], steps_seen[-1]
    phases = {name: after[name] - before[name] for name in PHASES}
    phases["update"] = end - start - sum(phases.values())
    return account(sum(lengths[WARM_UP : len(steps_seen)]) * case.rows, phases, rewards[WARM_UP : len(steps_seen)])


SIDES = {"engine": engine, "library": library, "touchstone": touchstone, "trl": trl}

if __name__ == "__main__":
    main()
