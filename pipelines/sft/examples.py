"""Training examples for next-token prediction: token ids, and from where on the loss counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipelines import prompting, seeding
from pipelines.config.common import PromptSettings
from pipelines.records import Problem

MEGABATCH = 16
"""Batches that are sorted by length together: little padding, still a shuffled order."""


@dataclass(frozen=True, slots=True)
class Example:
    """`ids` with the loss on ids[start:]; start >= 1, since nothing predicts the first token."""

    ids: list[int]
    start: int


def document(problem: Problem) -> str:
    """A problem with its solution as plain text, the way a corpus has it: no chat turns."""
    return f"{problem.prompt}\n{prompting.response(problem)}"


def document_prompts(tokenizer: Any, problems: Sequence[Problem]) -> list[list[int]]:
    """Token ids of each document up to where the solution starts."""
    return tokenizer([f"{problem.prompt}\n" for problem in problems], add_special_tokens=False)["input_ids"] if problems else []


def corpus_examples(
    tokenizer: Any, problems: Sequence[Problem], max_tokens: int, loss: Literal["document", "solution"] = "document"
) -> tuple[list[Example], int]:
    """Base training: documents closed by the end token, loss everywhere or on the solution alone. Second value: documents too long to use."""
    worked = [problem for problem in problems if problem.solution is not None]
    solutions = tokenizer([prompting.response(problem) for problem in worked], add_special_tokens=False)["input_ids"] if worked else []
    examples = []
    for prompt, solution in zip(document_prompts(tokenizer, worked), solutions, strict=True):
        ids = [*prompt, *solution, tokenizer.eos_token_id]
        if len(ids) <= max_tokens:
            examples.append(Example(ids, len(prompt) if loss == "solution" else 1))
    return examples, len(worked) - len(examples)


def chat_examples(
    tokenizer: Any, problems: Sequence[Problem], max_tokens: int, template: PromptSettings = prompting.PLAIN
) -> tuple[list[Example], int]:
    """SFT: chat template, loss on the response only. Second value: examples too long to use."""
    examples = []
    worked = [problem for problem in problems if problem.solution is not None]
    for problem in worked:
        prompt = prompting.prompt_ids(tokenizer, problem, template)
        ids = prompt + prompting.response_ids(tokenizer, problem, template)
        if len(ids) <= max_tokens:
            examples.append(Example(ids, len(prompt)))
    return examples, len(worked) - len(examples)


def batches(examples: Sequence[Example], batch_size: int, seed: int, purpose: str, epoch: int) -> Iterator[list[Example]]:
    """One epoch in an order keyed by (seed, purpose, epoch); examples of like length share a batch. The last may be short."""
    rng = seeding.generator(seed, purpose, "epoch", epoch)
    order = rng.permutation(len(examples))
    groups: list[np.ndarray] = []
    for start in range(0, len(order), batch_size * MEGABATCH):
        mega = order[start : start + batch_size * MEGABATCH]
        mega = mega[np.argsort([len(examples[i].ids) for i in mega], kind="stable")]
        groups += [mega[i : i + batch_size] for i in range(0, len(mega), batch_size)]
    for group in rng.permutation(len(groups)):
        yield [examples[i] for i in groups[group]]
