"""Policies that answer: prompts as token ids in, samples with token ids and behaviour log-probabilities out.

`Generator` is the protocol; `create` makes the one that params name. `respond` asks a policy to answer problems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines import prompting
from pipelines.config.common import GenerationSettings
from pipelines.generation.protocol import Generator, Request, Sample
from pipelines.generation.torch_engine import TorchGenerator
from pipelines.models.loading import load_policy
from pipelines.records import Problem

__all__ = ["Generator", "Request", "Sample", "TorchGenerator", "create", "respond"]


def create(settings: GenerationSettings, model: Path | str, device: str = "cpu") -> Generator:
    """The engine that `settings` name, serving the Hugging Face folder or hub id `model`."""
    policy, tokenizer = load_policy(model, device, chat=False)
    return TorchGenerator(policy, tokenizer, settings)


def respond(
    generator: Generator,
    problems: Sequence[Problem],
    samples: int,
    seed: tuple[object, ...],
    progress: Callable[[int, int], None] | None = None,
    first: int = 0,
) -> list[list[Sample]]:
    """`samples` responses to each problem, numbered from `first` on, in the order of `problems`.

    The randomness of a response depends on (seed, problem, number) alone: not on the order or number of problems, nor on how
    many responses were asked for at once.
    """
    requests = [Request(tuple(prompting.prompt_ids(generator.tokenizer, p)), samples, (*seed, p.problem_id), first) for p in problems]
    return generator.generate(requests, progress)
