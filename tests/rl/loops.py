"""The loop with real parts: a tiny policy that has learnt a little, the real verifier pool, real files."""

import json
from pathlib import Path

import torch
from killing import die_after

from pipelines import graph, paths, prompting
from pipelines.config.common import GenerationSettings, KeepSettings, OptimiserSettings
from pipelines.config.rl import RlStage, ScheduleSettings
from pipelines.config.sources import ArithmeticSource
from pipelines.config.training import ArchitectureSettings, LanguageModellingSettings
from pipelines.generation import TorchGenerator
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.loading import save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.models.value_head import add_value_head
from pipelines.progress import Journal
from pipelines.records import GUIDE, PROMPT, Outcome, Segment, Trajectory
from pipelines.rl import recipe
from pipelines.rl.inputs.step import Actor
from pipelines.rl.later import Later
from pipelines.rl.roles import roles_of
from pipelines.rl.teachers import Outputs, Teacher, Teachers
from pipelines.rl.train import train
from pipelines.sft import train as supervised
from pipelines.sft.examples import chat_examples, document
from pipelines.sources.arithmetic import problems as arithmetic
from pipelines.store import write_problems

PROBLEMS = list(arithmetic(ArithmeticSource(kind="arithmetic", count=200, levels={1: 1}, styles={"direct": 1}), 1, "a", Path()))
ONE_AHEAD, IN_FLIGHT = ScheduleSettings(kind="one_ahead"), ScheduleSettings(kind="in_flight")
TOKENIZER = train_tokenizer([document(p) for p in PROBLEMS], 400)
TINY = ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=64, context=128)


def response(problem, text: str, reward: float) -> Trajectory:
    """A stored one."""
    ids = [*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    segments = [Segment(PROMPT, prompting.prompt_ids(TOKENIZER, problem)), Segment(GUIDE, ids, [-0.7] * len(ids), [0] * len(ids), trains=True)]
    outcome = Outcome.CORRECT if reward > 0.5 else Outcome.WRONG
    return Trajectory(problem.problem_id, 0, 0, 0, "t", segments, "stop", response=text, outcome=outcome.value, reward=reward)


GROUPS = [[response(p, f"<think> </think>\\boxed{{{p.answer}}}", 1.0), response(p, f"<think> </think>\\boxed{{{p.answer}1}}", 0.0)] for p in PROBLEMS[:6]]


def cold_start(folder: Path, architecture: ArchitectureSettings = TINY):
    """A policy that answers in the right form and is sometimes right."""
    model = tiny_model(architecture, TOKENIZER, 1)
    settings = LanguageModellingSettings(epochs=20, batch_size=16, optimiser=OptimiserSettings(name="muon", lr=5e-3))
    examples, _ = chat_examples(TOKENIZER, PROBLEMS, 128)
    supervised.train(
        model, examples, settings, seed=1, purpose="t", journal=Journal(folder / "j.jsonl", "sft"), checkpoints=Checkpoints(folder, {})
    )  # fmt: skip
    return model


def project(root: Path, policy) -> None:
    """Give the stage t what it reads in `root`; given.json holds what it is given."""
    save_policy(root / paths.model("sft"), policy, TOKENIZER)
    write_problems(root / paths.rows("graded"), PROBLEMS[:12])
    write_problems(root / paths.rows("new"), PROBLEMS[12:14])
    keep = KeepSettings(every=1, most=3)
    stage = settings(data=["graded", "new"], steps=7, keep=keep, recipe="remix", generation=GenerationSettings(max_new_tokens=12, batch_size=6))
    (root / "given.json").write_text(json.dumps(graph.stage("t", "rl", stage).given(1)))


def settings(**changes) -> RlStage:
    return RlStage(**{
        "init": "sft", "data": "rows", "steps": 6, "prompts_per_step": 4, "group_size": 4, "checkpoint_every": 2, "micro_batch": 5,
        "generation": GenerationSettings(max_new_tokens=12), "optimiser": OptimiserSettings(lr=1e-3, schedule="constant"), **changes,
    })  # fmt: skip


def policy_of(weights):
    model = tiny_model(TINY, TOKENIZER, 1)
    model.load_state_dict(weights)
    return model


def prepared(folder: Path, stop_at: int | None = None) -> tuple[Journal, Checkpoints]:
    """The journal, which raises Killed after step `stop_at`, and the checkpoints of a run in `folder`."""
    journal = Journal(folder / "journal.jsonl", "rl")
    if stop_at:
        die_after(journal, stop_at)
    checkpoints = Checkpoints(folder / "checkpoints", {"a": 1})
    checkpoints.prepare()
    return journal, checkpoints


def trained(folder: Path, model, stop_at: int | None = None, row: str = "grpo", frozen=None, **changes):
    """What `train` gives of `model` on ten problems, and the rows of its journal without what the clock says."""
    journal, checkpoints = prepared(folder, stop_at)
    made = train(
        model, TOKENIZER, PROBLEMS[:10], recipe(row, **changes.get("overrides", {})), settings(**changes),
        stage="rl@t", seed=1, journal=journal, checkpoints=checkpoints, rollout_folder=folder / "rollouts", frozen=frozen,
    )  # fmt: skip
    return made, [json.loads(line) for line in journal.path.read_text().splitlines()]


def shaken(start, by: float, seed: int):
    """A policy a little off `start`."""
    policy = policy_of(start)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(by * torch.randn(weight.shape, generator=generator))
    return policy


def critic(weights, bias: float = 0.0) -> Actor:
    """One whose head says `bias` of everything."""
    policy = policy_of(weights)
    add_value_head(policy)
    torch.nn.init.constant_(policy.value_head.bias, bias)
    return Actor(policy.requires_grad_(False), TOKENIZER, value_head=policy.value_head)


def speaker(policy) -> TorchGenerator:
    return TorchGenerator(policy, TOKENIZER, GenerationSettings(max_new_tokens=12))


def beside(row: str, weights, **overrides):
    """What a recipe needs beside the policy that starts from `weights`."""
    given = {"teachers": Teachers({"*": Teacher(shaken(weights, 0.02, 1))}), "stored": Outputs({}), "critic": critic(weights)}
    given["later"] = Later({2: Path("2"), 4: Path("4"), 6: Path("6")}, lambda folder: speaker(shaken(weights, 0.01, int(folder.name))))
    given["solutions"] = {p.problem_id: ["", "1 + 1 = 2"] for p in PROBLEMS}
    return {name: given.get(name) or policy_of(weights) for name, role in roles_of(recipe(row, **overrides)).items() if role.source != "copy"}


def run(folder: Path, weights, stop_at: int | None = None, row: str = "grpo", **changes):
    """Weights, journal and rollout files of a run that starts from `weights`."""
    model = policy_of(weights)
    _, rows = trained(folder, model, stop_at, row, beside(row, weights, **changes.get("overrides", {})), **changes)
    return model.state_dict(), rows, {p.name: p.read_bytes() for p in sorted((folder / "rollouts").iterdir())}
