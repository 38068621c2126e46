"""How fast is a step of RL, and where does its time go: `python -m benchmarks.rl [--steps 12] [--skip-trl]`.

Both sides get the same policy (the embedded model after a short cold start on word problems), prompts, group size, length limit, optimiser
and reward (the verifier `exact`), and run in processes of their own on the same cores, in turn:

    Hugging Face generate    the same batch sampled by `generate` and by the torch engine: tokens a second
    TRL's GRPOTrainer        release 1.16, in a virtual environment that this benchmark makes: trained tokens a second, largest resident set

then the phases of a step, and what group size and length do to both rates. Trained tokens are response tokens that an update saw; the first
steps warm up and do not count. The two sides take turns, three times; the median counts.
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
import venv
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import psutil

ROOT = Path(__file__).parents[1]
TRL = ("trl==1.16.0", "torch==2.13.0", "transformers==5.19.0", "datasets", "accelerate", "pydantic", "pyyaml", "numpy", "pyarrow")
PROMPTS, GROUP, LENGTH, LR = 16, 8, 64, 3e-4
WARM_UP = 2
ROUNDS = 3
GROWTH = [(4, 64), (8, 64), (16, 64), (32, 64), (8, 32), (8, 128), (8, 256)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rl", description=__doc__)
    parser.add_argument("--steps", type=int, default=12, help="steps of RL on each side")
    parser.add_argument("--skip-trl", action="store_true", help="do not install and run TRL")
    parser.add_argument("--environment", type=Path, default=ROOT / ".touchstone" / "trl", help="where TRL's virtual environment is or is made")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=int, nargs=2, default=(GROUP, LENGTH), metavar=("GROUP", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        side, folder = options.one
        print(json.dumps(SIDES[side](Path(folder), options.steps, *options.shape)))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        figures["generate"] = beside(folder, options.steps, (sys.executable, "engine"), (sys.executable, "library"))
        print(f"generation of {PROMPTS} x {GROUP} responses, Hugging Face generate: {told(figures['generate'])}")
        python = sys.executable if options.skip_trl else str(environment(options.environment))
        figures["train"] = beside(folder, options.steps, (sys.executable, "touchstone"), (python, "touchstone" if options.skip_trl else "trl"))
        other = "the loop again" if options.skip_trl else "TRL 1.16"
        print(f"training, {other}: {told(figures['train'])}; a step {shown(figures['train']['ours']['phases'])}")
        print(f"{'group':>6}{'length':>8}{'generated/s':>13}{'trained/s':>11}{'GB':>7}  phases")
        figures["growth"] = []
        for group, length in GROWTH:
            row = measured(sys.executable, "touchstone", folder, max(4, options.steps // 2), group, length)
            figures["growth"].append({"group": group, "length": length} | row)
            rates = f"{row['generated_per_second']:>13,.0f}{row['tokens_per_second']:>11,.0f}"
            print(f"{group:>6}{length:>8}{rates}{row['gigabytes']:>7.2f}  {shown(row['phases'])}")
    print(json.dumps(figures))


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


def measured(python: str, side: str, folder: Path, steps: int, group: int = GROUP, length: int = LENGTH) -> dict[str, Any]:
    """One side in a process of its own, with its largest resident set (children included)."""
    command = [python, "-m", "benchmarks.rl", "--one", side, str(folder), "--steps", str(steps), "--shape", str(group), str(length)]
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


def environment(folder: Path) -> Path:
    """A virtual environment with TRL, made once. Pip takes its index from its own settings."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"installing TRL in {folder}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *TRL, "psutil"], check=True)
        (folder / "ready").touch()
    return python


def prepare(folder: Path) -> None:
    """The policy, the problems and what both sides read."""
    from pipelines.config.common import OptimiserSettings
    from pipelines.config.sources import ArithmeticSource
    from pipelines.config.training import ArchitectureSettings, LanguageModellingSettings
    from pipelines.models.checkpoints import Checkpoints
    from pipelines.models.loading import save_policy
    from pipelines.models.tiny import tiny_model
    from pipelines.models.tokenizer import train_tokenizer
    from pipelines.progress import Journal
    from pipelines.sft.examples import chat_examples, document
    from pipelines.sft.train import train
    from pipelines.sources.arithmetic import problems as arithmetic
    from pipelines.store import write_problems

    problems = list(arithmetic(ArithmeticSource(kind="arithmetic", count=3000, levels={1: 1, 2: 1, 3: 1}), 1, "stories", Path()))
    tokenizer = train_tokenizer([document(problem) for problem in problems], 768)
    model = tiny_model(ArchitectureSettings(hidden_size=128, layers=4, heads=4, intermediate_size=384, vocab_size=768, context=512), tokenizer, 1)
    examples, _ = chat_examples(tokenizer, problems, 256)
    settings = LanguageModellingSettings(epochs=1.0, batch_size=32, optimiser=OptimiserSettings(name="muon", lr=3e-3))
    with open(os.devnull, "w") as nowhere:
        journal = Journal(folder / "journal.jsonl", "sft", nowhere)
        train(model, examples, settings, seed=1, purpose="bench", journal=journal, checkpoints=Checkpoints(folder / "sft", {}))
    save_policy(folder / "model", model, tokenizer)
    write_problems(folder / "problems.parquet", problems[:512])


def read(folder: Path) -> tuple[Any, Any, list[Any]]:
    from pipelines.models.loading import load_policy
    from pipelines.store import read_problems

    return (*load_policy(folder / "model"), read_problems(folder / "problems.parquet"))


def engine(folder: Path, steps: int, group: int, length: int) -> dict[str, float]:
    """The torch engine: tokens a second of sampling one batch, the median of `steps` times."""
    from pipelines.config.common import GenerationSettings
    from pipelines.generation import TorchGenerator, respond

    policy, tokenizer, problems = read(folder)
    generator = TorchGenerator(policy, tokenizer, GenerationSettings(max_new_tokens=length))
    speeds = []
    for step in range(steps):
        start = time.perf_counter()
        groups = respond(generator, problems[:PROMPTS], group, (step,))
        speeds.append(sum(len(sample.token_ids) for samples in groups for sample in samples) / (time.perf_counter() - start))
    return {"tokens_per_second": statistics.median(speeds)}


def library(folder: Path, steps: int, group: int, length: int) -> dict[str, float]:
    """Hugging Face `generate` on the same batch."""
    import torch

    from pipelines.prompting import prompt_ids

    policy, tokenizer, problems = read(folder)
    prompts = [prompt_ids(tokenizer, problem) for problem in problems[:PROMPTS]]
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[*[pad] * (longest - len(prompt)), *prompt] for prompt in prompts])
    mask = torch.tensor([[*[0] * (longest - len(prompt)), *[1] * len(prompt)] for prompt in prompts])
    speeds = []
    for step in range(steps):
        torch.manual_seed(step)
        start = time.perf_counter()
        out = policy.generate(ids, attention_mask=mask, max_new_tokens=length, do_sample=True, top_k=0, num_return_sequences=group, pad_token_id=pad)
        seconds = time.perf_counter() - start
        answers = out[:, longest:]
        ended = (answers == tokenizer.eos_token_id).int()
        before = ended.cumsum(1) - ended
        speeds.append(int((before == 0).sum()) / seconds)
    return {"tokens_per_second": statistics.median(speeds)}


def touchstone(folder: Path, steps: int, group: int, length: int) -> dict[str, Any]:
    """The loop of this project."""
    from dataclasses import replace

    from pipelines.config.common import GenerationSettings, OptimiserSettings
    from pipelines.config.rl import RlStage
    from pipelines.models.checkpoints import Checkpoints
    from pipelines.progress import Journal
    from pipelines.rl.recipe import recipe
    from pipelines.rl.train import train

    policy, tokenizer, problems = read(folder)
    settings = RlStage(
        init="sft", reference="sft", domains=("math",), steps=steps, prompts_per_step=PROMPTS, group_size=group, recipe="grpo",
        checkpoint_every=10**6, generation=GenerationSettings(max_new_tokens=length),
        optimiser=OptimiserSettings(lr=LR, schedule="constant", warmup=0.0, weight_decay=0.0),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary, open(os.devnull, "w") as nowhere:
        journal = Journal(Path(temporary) / "journal.jsonl", "rl", nowhere)
        exact = [replace(problem, verifier="exact", verifier_args="{}") for problem in problems]
        train(
            policy, tokenizer, exact, recipe("grpo"), settings, stage="rl@bench", seed=1, journal=journal,
            checkpoints=Checkpoints(Path(temporary) / "c", {}), rollout_folder=Path(temporary) / "rollouts",
        )  # fmt: skip
        rows = journal.rows()[WARM_UP:]
    phases = {name: sum(row[f"seconds_{name}"] for row in rows) for name in ("generate", "verify", "score", "update", "other")}
    total, tokens = sum(phases.values()), sum(row["length"] for row in rows) * PROMPTS * group
    shares = {name: seconds / total for name, seconds in phases.items()}
    return {"tokens_per_second": tokens / total, "generated_per_second": tokens / phases["generate"], "phases": shares}


def trl(folder: Path, steps: int, group: int, length: int) -> dict[str, Any]:
    """TRL's trainer; runs in its own environment."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from pipelines import prompting
    from pipelines.store import read_problems
    from pipelines.verifiers.answers import verify_exact
    from pipelines.verifiers.text import final_text

    problems = {problem.problem_id: problem for problem in read_problems(folder / "problems.parquet")}
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)

    def reward(prompts: list[str], completions: list[str], name: list[str], **_: Any) -> list[float]:
        return [float(verify_exact(problems[key], final_text(text) or "").correct) for key, text in zip(name, completions, strict=True)]  # type: ignore[union-attr]

    rows = [{"prompt": tokenizer.decode(prompting.prompt_ids(tokenizer, problem)), "name": key} for key, problem in problems.items()]
    times: list[float] = []
    lengths: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "completions/mean_length" in logs:
                lengths.append(logs["completions/mean_length"])

    with tempfile.TemporaryDirectory() as temporary:
        config = GRPOConfig(
            output_dir=temporary, use_cpu=True, bf16=False, report_to=[], logging_steps=1, save_strategy="no", disable_tqdm=True, seed=1,
            per_device_train_batch_size=PROMPTS * group, num_generations=group, max_completion_length=length, temperature=1.0, beta=0.0,
            learning_rate=LR, lr_scheduler_type="constant", weight_decay=0.0, max_steps=steps, gradient_checkpointing=False, loss_type="grpo",
        )  # fmt: skip
        GRPOTrainer(model, reward, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[Watch()]).train()
    seconds = times[-1] - times[WARM_UP - 1]
    return {"tokens_per_second": sum(lengths[WARM_UP : len(times)]) * PROMPTS * group / seconds}


SIDES = {"engine": engine, "library": library, "touchstone": touchstone, "trl": trl}

if __name__ == "__main__":
    main()
