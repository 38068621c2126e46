"""What exactness costs: `python -m benchmarks.exactness [--repeats 15]`.

The gradient of one batch, as the loops take it, in turn three ways: as it is (deterministic algorithms, `index_select`), without
deterministic algorithms, and with advanced indexing in place of `index_select` besides, as it would be written without a thought of order. Two
shapes: the default's RL step (16 prompts with 8 answers, a vocabulary of 512), and a vocabulary of 49,152. Fastest of the repeats, in
milliseconds, and over the first way's; how many different gradients each way gave.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pipelines.config.training import ArchitectureSettings
from pipelines.models.exactness import deterministic
from pipelines.models.scoring import pad, token_logp
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer

SHAPES = {
    "default": (ArchitectureSettings(hidden_size=128, layers=4, heads=4, intermediate_size=384), 512, 16),
    "49,152 words": (ArchitectureSettings(hidden_size=256, layers=4, heads=4, intermediate_size=768), 49_152, 4),
}
"""Name -> architecture, words, prompts."""
WAYS = ("as it is", "no deterministic algorithms", "advanced indexing")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exactness", description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    for name, (architecture, words, prompts) in SHAPES.items():
        model = tiny_model(architecture, train_tokenizer(["a b c"], 300), 1)
        model.resize_token_embeddings(words, mean_resizing=False)
        ids_BT, score_BT = rows(words, prompts)
        found: dict[str, list[tuple[float, int]]] = {way: [] for way in WAYS}
        for _ in range(repeats):
            for way in WAYS:
                found[way].append(step(way, model, ids_BT, score_BT))
        fastest = {way: min(seconds for seconds, _ in steps) for way, steps in found.items()}
        for way in WAYS:
            different = len({gradient for _, gradient in found[way]})
            print(f"{name:14s} {way:28s} {1000 * fastest[way]:8.1f} ms  {fastest[way] / fastest[WAYS[0]]:.3f}  {different} gradients of {repeats}")


def rows(words: int, prompts: int) -> tuple[Tensor, Tensor]:
    """Token ids and the positions to score, of 8 answers to each prompt, in the order of their length as the loop sorts them: groups are mixed."""
    rng = random.Random(1)
    made = []
    for _ in range(prompts):
        prompt = [rng.randrange(5, words) for _ in range(rng.randrange(20, 40))]
        made += [(prompt, [rng.randrange(5, words) for _ in range(rng.randrange(4, 50))]) for _ in range(8)]
    made.sort(key=lambda row: len(row[1]))
    ids_BT = pad([prompt + response for prompt, response in made])
    score_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, (prompt, response) in enumerate(made):
        score_BT[row, len(prompt) : len(prompt) + len(response)] = True
    return ids_BT, score_BT


def step(way: str, model: Any, ids_BT: Tensor, score_BT: Tensor) -> tuple[float, int]:
    """Seconds, and a hash of the gradient."""
    model.zero_grad()
    began = time.perf_counter()
    with deterministic("cpu") if way == WAYS[0] else nullcontext(), indexing() if way == WAYS[2] else nullcontext():
        (token_logp(model, ids_BT, score_BT).sum() / 1000).backward()
    seconds = time.perf_counter() - began
    return seconds, hash(b"".join(p.grad.numpy().tobytes() for p in model.parameters()))


@contextmanager
def indexing() -> Iterator[None]:
    """`x[index]` wherever the code says `x.index_select(0, index)`."""
    select = Tensor.index_select
    Tensor.index_select = lambda self, dim, index: self[index] if dim == 0 else select(self, dim, index)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.index_select = select  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
