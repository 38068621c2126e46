"""A small project whose checkpoints are real: a two-layer model that memorises sums, at three stages of learning."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines import paths
from pipelines.config.evaluation import EvaluationSettings
from pipelines.config.training import ArchitectureSettings
from pipelines.models.loading import load_tokenizer, save_policy, write_vocabulary
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.progress import Journal
from pipelines.prompting import prompt_ids, response, response_ids
from pipelines.records import Problem, Trajectory, one_turn, problem_id
from pipelines.stages import Context
from pipelines.stages import evaluation as stage
from pipelines.store import write_problems, write_trajectories

EPOCHS = {"base": 8, "sft": 40, "sums": 130}
SETTINGS = EvaluationSettings.model_validate(
    {
        "models": ["base", "sft", "sums", "merged"],
        "rollouts": ["sums"],
        "samples": 4,
        "ks": [1, 2, 4],
        "bootstrap": 400,
        "generation": {"max_new_tokens": 24, "temperature": 1.0, "batch_size": 64},
        "gate": {"candidate": "merged", "against": "sft", "improve": ["sums"], "tolerate": 0.2},
        "diagnostics": {"entropy_problems": 4, "entropy_samples": 2},
    }
)


def make_problems(sign: str, count: int) -> list[Problem]:
    """Sums or differences, with a worked solution."""
    rows = []
    for i in range(count):
        a, b = 3 + i % 6, 1 + i // 6
        answer = str(a + b if sign == "+" else a - b)
        prompt = f"What is {a} {sign} {b}?"
        topics = (f"level {1 + i % 2}", "sum" if sign == "+" else "difference")
        rows.append(Problem(problem_id(prompt, answer), "math", prompt, answer, "integer", "math", solution=f"{a}{sign}{b}={answer}", topics=topics))
    return rows


def train(problems: Sequence[Problem], folder: Path) -> None:
    """Memorise worked solutions; EPOCHS says when each checkpoint is saved."""
    tokenizer = train_tokenizer([p.prompt + response(p) for p in problems], 300)
    model = tiny_model(ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=64, vocab_size=300, context=96), tokenizer, 0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = [(prompt_ids(tokenizer, p), response_ids(tokenizer, p)) for p in problems]
    longest = max(len(q) + len(r) for q, r in rows)
    ids = torch.tensor([[*q, *r, *[0] * (longest - len(q) - len(r))] for q, r in rows])
    labels = torch.tensor([[*[-100] * len(q), *r, *[-100] * (longest - len(q) - len(r))] for q, r in rows])
    for epoch in range(1, max(EPOCHS.values()) + 1):
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        for name, last in EPOCHS.items():
            if epoch == last:
                save_policy(folder / paths.model(name), model, tokenizer)
    save_policy(folder / paths.model("merged"), model, tokenizer)


def made_rollouts(problems: Sequence[Problem]) -> list[Trajectory]:
    """Forty steps of one group of eight, more and more of them right; the last was not judged."""
    rows = []
    for step in range(1, 41):
        right = round(2 + 4 * step**2 / (step**2 + 100))
        for i in range(8):
            outcome = "infrastructure" if i == 7 else "correct" if i < right else "wrong"
            extracted = None if i == 7 else "7" if i < right else str(i)
            given = Trajectory(problems[step % 18].problem_id, step, i, step, "rl@sums", one_turn([1], [2], [0.0], [step]), "stop", outcome=outcome, extracted=extracted)
            rows.append(given)
    again = [replace(row, origin="replay") for row in rows[:8] * 3 + rows[-8:]]  # in a later step's batch, and nobody's answers there
    return [replace(row, dropped="uniform") if row.step % 2 else row for row in rows] + again


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project root with benchmarks and models, nothing evaluated; not to be written to."""
    root = tmp_path_factory.mktemp("project")
    sums, differences = make_problems("+", 18), make_problems("-", 12)
    write_problems(root / paths.BENCHMARKS / "sums.parquet", sums)
    write_problems(root / paths.BENCHMARKS / "differences.parquet", differences)
    train([*sums, *differences], root)
    write_trajectories(root / paths.ROLLOUTS / "sums" / "step-000001.parquet", made_rollouts(sums))
    write_vocabulary(root / paths.ROLLOUTS / "sums", load_tokenizer(root / paths.model("sums")))
    return root


def context_of(root: Path, settings: EvaluationSettings = SETTINGS, name: str = "evaluation") -> Context:
    work = root / paths.WORK / name
    work.mkdir(parents=True, exist_ok=True)
    return Context(name, root, 7, settings, work, Journal(work / "journal.jsonl", name))


@pytest.fixture(scope="session")
def evaluated(trained: Path) -> Path:
    """The same project after stage `evaluation`."""
    stage.run(context_of(trained))
    return trained


@pytest.fixture(scope="session")
def settings() -> EvaluationSettings:
    return SETTINGS


@pytest.fixture(scope="session")
def context() -> Callable[..., Context]:
    """(root, settings) -> what the stage is given."""
    return context_of


@pytest.fixture(scope="session")
def sums() -> list[Problem]:
    """Problems of the benchmark of that name."""
    return make_problems("+", 18)
