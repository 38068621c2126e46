"""Policies and problems that several benchmarks start from: the embedded model or a known one after a short cold start."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from pipelines.progress import Journal

EXAMPLES = Path(__file__).parents[1] / "data" / "examples"
COLD_START = 300
"""Worked solutions of each of two files that a known model learns first."""
PROMPT = {"system": "Solve the problem. End with #### and the answer.", "response": "{solution}\n#### {answer}"}
"""PromptSettings of overlays/smollm2.yaml."""


def examples(name: str) -> Iterator[Any]:
    """Problems of a file of data/examples, without its malformed rows."""
    from pipelines.config.sources import FileSource
    from pipelines.records import Problem
    from pipelines.sources import files

    fields = {"prompt": "question", "answer": "answer", "solution": "steps", "source_id": "id"}
    has = json.loads((EXAMPLES / f"{name}.jsonl").open().readline())
    source = FileSource(kind="file", path=f"{name}.jsonl", fields={key: value for key, value in fields.items() if value in has}, licence="MIT")
    yield from (row for row in files.problems(source, 1, name, EXAMPLES) if isinstance(row, Problem))


def brought(folder: Path, model: str) -> tuple[Any, Any]:
    """A known model as it is, and its tokenizer; `folder` gets it."""
    from pipelines.models.bringing import bring_in
    from pipelines.models.known import known_model
    from pipelines.models.loading import load_policy

    folder.mkdir()
    bring_in(known_model(model), folder, None)
    return load_policy(folder)


def cold_started(folder: Path, model: str) -> None:
    """folder/model: a known model after one pass over worked solutions, as overlays/smollm2.yaml does it."""
    from pipelines.models.loading import save_policy

    policy, tokenizer = brought(folder / "base", model)
    worked = [problem for name in ("gsm8k_short", "svamp_train") for problem in list(examples(name))[:COLD_START] if problem.solution]
    taught(folder, policy, tokenizer, worked)
    save_policy(folder / "model", policy, tokenizer)


def taught(folder: Path, policy: Any, tokenizer: Any, worked: list[Any], epochs: float = 1.0) -> None:
    """SFT on worked solutions in the overlay's form."""
    from pipelines.config.common import OptimiserSettings, PromptSettings
    from pipelines.config.training import LanguageModellingSettings
    from pipelines.sft.examples import chat_examples

    rows, _ = chat_examples(tokenizer, worked, 256, PromptSettings.model_validate(PROMPT))
    settings = LanguageModellingSettings(epochs=epochs, batch_size=16, micro_batch=8, precision="auto", optimiser=OptimiserSettings(lr=1e-4))
    supervised(folder, policy, rows, settings)


def embedded(folder: Path) -> None:
    """The embedded model after a short cold start, with problems of its kind."""
    from pipelines.config.common import OptimiserSettings
    from pipelines.config.sources import ArithmeticSource
    from pipelines.config.training import ArchitectureSettings, LanguageModellingSettings
    from pipelines.models.loading import save_policy
    from pipelines.models.tiny import tiny_model
    from pipelines.models.tokenizer import train_tokenizer
    from pipelines.sft.examples import chat_examples, document
    from pipelines.sources.arithmetic import problems as arithmetic
    from pipelines.store import write_problems

    problems = list(arithmetic(ArithmeticSource(kind="arithmetic", count=3000, levels={1: 1, 2: 1, 3: 1}), 1, "stories", Path()))
    exact = [replace(problem, verifier="exact", verifier_args="{}") for problem in problems[:512]]
    tokenizer = train_tokenizer([document(problem) for problem in problems], 768)
    model = tiny_model(ArchitectureSettings(hidden_size=128, layers=4, heads=4, intermediate_size=384, vocab_size=768, context=512), tokenizer, 1)
    rows, _ = chat_examples(tokenizer, problems, 256)
    supervised(folder, model, rows, LanguageModellingSettings(batch_size=32, optimiser=OptimiserSettings(name="muon", lr=3e-3)))
    save_policy(folder / "model", model, tokenizer)
    write_problems(folder / "problems.parquet", exact)


def supervised(folder: Path, policy: Any, rows: list[Any], settings: Any) -> None:
    """Supervised training."""
    from pipelines.models.checkpoints import Checkpoints
    from pipelines.sft.train import train

    with journal(folder / "cold start", "sft") as kept:
        train(policy, rows, settings, seed=1, purpose="bench", journal=kept, checkpoints=Checkpoints(folder / "cold start" / "c", {}))


@contextmanager
def journal(folder: Path, name: str, answers: int | None = None) -> Iterator[Any]:
    """A journal that shows nothing. answers: the block ends after the step by which so many are answered."""
    folder.mkdir()
    with open(os.devnull, "w") as nowhere, suppress(_Answered):
        yield _Counted(folder / "journal.jsonl", name, nowhere, answers)


class _Answered(Exception):
    """There are as many answers as were wanted."""


class _Counted(Journal):
    def __init__(self, path: Path, name: str, out: TextIO, most: int | None) -> None:
        super().__init__(path, name, out)
        self._left = float("inf") if most is None else most

    def record(self, step: int, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        super().record(step, metrics, clock)
        self._left -= metrics.get("answered", 0.0)
        if self._left <= 0:
            raise _Answered
