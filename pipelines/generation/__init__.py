"""Policies that answer: prompts as token ids in, samples with token ids and behaviour log-probabilities out.

`Generator` is the protocol. `create` makes the engine that params name for a model on disk, `serving` the one for a policy that is
being trained. `respond` asks a policy to answer problems.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from pipelines import prompting
from pipelines.config.common import GenerationSettings
from pipelines.endpoint import GENERATION_URL
from pipelines.errors import UserError
from pipelines.generation.chat_engine import ChatGenerator
from pipelines.generation.engine import Engine, Said, Turn
from pipelines.generation.protocol import Blocking, Generator, Key, Progress, Request, Sample
from pipelines.generation.responses import Responses
from pipelines.generation.scripted import Script, ScriptedGenerator
from pipelines.generation.torch_engine import TorchGenerator
from pipelines.generation.vllm_engine import Backend, LocalVllm, VllmGenerator, write_model
from pipelines.generation.vllm_server import ServedVllm
from pipelines.models.loading import load_policy, load_tokenizer
from pipelines.records import Problem

__all__ = [
    "Blocking",
    "ChatGenerator",
    "Engine",
    "Generator",
    "Key",
    "Progress",
    "Request",
    "Said",
    "Sample",
    "ScriptedGenerator",
    "TorchGenerator",
    "Turn",
    "VllmGenerator",
    "create",
    "respond",
    "serving",
]


def create(settings: GenerationSettings, model: Path | str, device: str = "cpu", replies: Path | None = None) -> Generator:
    """The engine that `settings` name, serving the Hugging Face folder or hub id `model`; engine `server` takes its tokenizer alone.

    replies: a file in which engine `server` keeps what it was told.
    """
    if settings.engine == "torch":
        return TorchGenerator(*load_policy(model, device, chat=False), settings)
    if settings.engine == "vllm_server" and os.environ.get(GENERATION_URL):
        policy, tokenizer = load_policy(model, chat=False)
        with tempfile.TemporaryDirectory() as folder:
            return serving(settings, policy, tokenizer, Path(folder))
    tokenizer = load_tokenizer(model, chat=False)
    if settings.engine == "server":
        return ChatGenerator(tokenizer, settings, replies)
    if settings.engine == "scripted":
        return ScriptedGenerator(tokenizer, settings, _script(settings.script))
    return VllmGenerator(_backend(settings, model, device), Responses.of(tokenizer, _generation_config(model), settings))


def serving(settings: GenerationSettings, policy: Any, tokenizer: Any, folder: Path) -> Generator:
    """The engine that `settings` name, sampling from `policy` as it is now; after a change of its weights, `push` them.

    folder: for weights on their way to an engine that holds a copy; a server elsewhere must see it too. Where `policy` is sharded such an
    engine gathers it once here, and once in each `push`.

    Raises:
        UserError: the engine gives no log-probabilities of what it samples.
    """
    if settings.engine == "server":
        raise UserError(
            "generation.engine 'server' gives no log-probabilities of the tokens it samples, and RL trains on them; choose torch, vllm or vllm_server"
        )
    if settings.engine == "torch":
        return TorchGenerator(policy, tokenizer, settings)
    if settings.engine == "scripted":
        generator = ScriptedGenerator(tokenizer, settings, _script(settings.script))
        generator.push(policy, 0)
        return generator
    write_model(folder, policy, tokenizer)
    generator = VllmGenerator(_backend(settings, folder, policy.device.type), Responses.of(tokenizer, policy.generation_config, settings), folder)
    if settings.engine == "vllm_server" and os.environ.get(GENERATION_URL):
        generator.reload(0)  # it has another model's weights
    return generator


def respond(
    generator: Generator,
    problems: Sequence[Problem],
    samples: int,
    seed: tuple[object, ...],
    progress: Progress | None = None,
    first: int = 0,
    slots: Sequence[int] | None = None,
) -> list[list[Sample]]:
    """`samples` responses to each problem, numbered from `first` on, in the order of `problems`.

    The randomness of a response depends on (seed, problem, number) alone: not on the order or number of problems, nor on how
    many responses were asked for at once. slots: a number for each problem that tells apart those that stand there twice; it is
    part of what the randomness depends on.
    """
    requests = []
    for place, problem in enumerate(problems):
        said = (generator.tokenizer, problem, generator.settings.prompt)
        ids, turns = tuple(prompting.prompt_ids(*said)), tuple(prompting.conversation(*said))
        key = (*seed, problem.problem_id) if slots is None else (*seed, slots[place], problem.problem_id)
        requests.append(Request(ids, samples, key, first, turns))
    return generator.generate(requests, progress)


def _backend(settings: GenerationSettings, model: Path | str, device: str) -> Backend:
    if settings.engine == "vllm":
        return LocalVllm(model, settings, device)
    if url := os.environ.get(GENERATION_URL):
        return ServedVllm.at(url, settings)
    return ServedVllm.started(model, settings, device)


def _generation_config(model: Path | str) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:  # it has none
        return GenerationConfig()


def _script(path: str) -> Script:
    """The script in a JSON file."""
    try:
        table = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"generation.script '{path}' must be a JSON file of prompts and their responses: {error}") from None

    def script(request: Request, number: int) -> str:
        prompt = request.messages[-1]["content"]
        if not table.get(prompt):
            raise UserError(f"generation.script '{path}' has no response to the prompt {prompt!r}")
        return table[prompt][number % len(table[prompt])]

    return script
