"""vLLM (arXiv 2309.06180), release 0.32, beside this process: token ids in, token ids and `processed_logprobs` out, new weights without a restart.

How it differs from the torch engine:
1. A sample's seed depends on (key, number) alone, and its log-probabilities are again those of the distribution sampled from. But which
   sequences share a matrix product changes the last bits of the logits, so a batch mate can turn a draw that is nearly a tie.
2. Weights are copies. `push` writes the policy as safetensors and has every worker read them in place (`reload_weights`), which leaves the
   prefix cache as it was: it is emptied after each update, else prompts would go on from keys and values of the old weights.
3. vLLM attaches to each response the label of the weights that sampled it; one that does not bear the label of the last push is refused.
"""

from __future__ import annotations

import copy
import os
import secrets
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_file

from pipelines import extras, seeding
from pipelines.config.common import GenerationSettings
from pipelines.errors import InfrastructureError
from pipelines.generation.protocol import Blocking, Progress, Request, Sample
from pipelines.generation.responses import Responses
from pipelines.guard import Guard
from pipelines.models.adapters import plain_weights
from pipelines.store import replacing

UNFINISHED = "unfinished"
"""Label of weights that are being replaced."""
WHOLE = ("stop", "length")
"""Finish reasons of responses that were not broken off."""
NEVER = -100.0
"""The lowest that vLLM adds to a logit."""
SPAWN = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
"""A forked process would keep the guard's pipe open, and none of its new environment would show."""
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True)
class Answer:
    """What vLLM says to one prompt. labels: of the weights that sampled its tokens."""

    ids: list[int]
    logp: list[float]
    finish_reason: str
    labels: tuple[str, ...]


class Backend(Protocol):
    """A running vLLM. context: longest prompt and response together, in tokens."""

    context: int

    def answer(self, prompts: Sequence[tuple[int, ...]], sampling: Sequence[dict[str, Any]], progress: Progress | None) -> list[Answer]: ...
    def update(self, folder: Path, label: str) -> None:
        """Read the weights in `folder`, forget what was computed with others, and label from now on with `label`."""
        ...

    def relabel(self, label: str) -> None: ...
    def close(self) -> None: ...


class VllmGenerator(Blocking):
    """Samples from a model that a vLLM holds. folder: where pushed weights are written, none where there will be no push."""

    def __init__(self, backend: Backend, responses: Responses, folder: Path | None = None) -> None:
        self.tokenizer, self.settings = responses.tokenizer, responses.settings
        self.version = 0
        self._backend, self._responses, self._folder = backend, responses, folder
        self._run = secrets.token_hex(8)  # a server may have been given a version of the same number by another run
        self.close = weakref.finalize(self, backend.close)  # once, and also when nobody holds this any more
        backend.relabel(self._label)

    @property
    def _label(self) -> str:
        return f"{self._run}-{self.version}"

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[list[Sample]]:
        """See `Generator.generate`.

        Raises:
            UserError: a prompt does not fit the model's context together with the response.
            InfrastructureError: vLLM did not answer, or with other weights than those pushed last.
        """
        self._responses.check_room(requests, self.context)
        prompts = [r.start for r in requests for _ in range(r.samples)]
        most = self._responses.settings.max_new_tokens
        sampling = [self._sampling(_seed(r, i), r.room(most) - len(r.said), r.greedy) for r in requests for i in range(r.samples)]
        answers = iter(self._backend.answer(prompts, sampling, progress))
        return [[self._sample(next(answers), r) for _ in range(r.samples)] for r in requests]

    @property
    def context(self) -> float:  # type: ignore[override]  # it is what vLLM was started with
        """See `Generator.context`."""
        return self._backend.context

    def push(self, model: Any, version: int) -> None:
        """See `Generator.push`."""
        if self._folder is None:
            raise ValueError("this generator serves a model that does not change")
        write_weights(self._folder, model)
        self.reload(version)

    def reload(self, version: int) -> None:
        """Serve what lies in the folder."""
        assert self._folder is not None
        self.version = version
        self._backend.update(self._folder, self._label)

    def _sampling(self, seed: int, room: int, greedy: bool) -> dict[str, Any]:
        settings = self._responses.settings
        return {
            "temperature": 0.0 if greedy else settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "max_tokens": room,
            "stop": list(settings.stop),
            "stop_token_ids": list(self._responses.ends),
            "logprobs": 0,  # the sampled token's and no other
            "seed": seed >> 1,  # vLLM's seeds are signed
            **({"logit_bias": dict.fromkeys(self._responses.banned, NEVER)} if self._responses.banned else {}),
        }

    def _sample(self, answer: Answer, request: Request) -> Sample:
        if set(answer.labels) != {self._label}:
            raise InfrastructureError(f"vLLM sampled with weights {list(answer.labels)}, not {self._label}: does another run push weights to it?")
        if answer.finish_reason not in WHOLE:
            raise InfrastructureError(f"vLLM broke off a response: {answer.finish_reason}")
        greedy = request.greedy or self._responses.settings.temperature == 0  # all mass is on the token, whatever the logits say of it
        logp = [0.0] * len(answer.ids) if greedy else answer.logp
        return self._responses.sample([*request.said, *answer.ids], [*request.said_logp, *logp], self.version)


def _seed(request: Request, number: int) -> int:
    """vLLM's own streams begin with a request, so what goes on from an interrupted one has another."""
    parts = (*request.key, request.first + number)
    return seeding.key(*parts, "after", len(request.said)) if request.said else seeding.key(*parts)


class LocalVllm:
    """vLLM in processes of this program's own."""

    def __init__(self, model: Path | str, settings: GenerationSettings, device: str) -> None:
        require_vllm(settings.engine)
        self._guard = Guard()
        with _environment(self._guard.environment):
            from vllm import LLM  # pyright: ignore[reportMissingImports]

            try:
                self._llm: Any = LLM(str(model), **engine_arguments(settings, device))
            except BaseException:
                self._guard.close()
                raise
        self.context = self._llm.model_config.max_model_len
        self._sleeps, self._asleep = sleeps(settings, device), False

    def answer(self, prompts: Sequence[tuple[int, ...]], sampling: Sequence[dict[str, Any]], progress: Progress | None) -> list[Answer]:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        self._wake()
        engine, found = self._llm.llm_engine, {}
        for place, (prompt, given) in enumerate(zip(prompts, sampling, strict=True)):
            engine.add_request(str(place), {"prompt_token_ids": list(prompt)}, SamplingParams(**given))
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        found[int(output.request_id)] = _answer(output.outputs[0])
                        if progress:
                            progress(len(found), len(prompts))
        except BaseException:  # what is still under way must not turn up in the next answers
            engine.abort_request([str(place) for place in range(len(prompts)) if place not in found])
            raise
        if self._sleeps:
            self._llm.sleep(level=1)
            self._asleep = True
        return [found[place] for place in range(len(prompts))]

    def update(self, folder: Path, label: str) -> None:
        self._wake()
        self.relabel(UNFINISHED)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        if not self._llm.reset_prefix_cache():
            raise InfrastructureError("vLLM did not empty its prefix cache after an update of the weights")
        self.relabel(label)

    def relabel(self, label: str) -> None:
        self._llm.update_weight_version(label)

    def close(self) -> None:
        self._guard.close()  # first: vLLM itself waits for workers that wait for it
        self._llm.llm_engine.engine_core.shutdown()

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False


def engine_arguments(settings: GenerationSettings, device: str) -> dict[str, Any]:
    """vLLM's `EngineArgs`, the same for both engines."""
    given, cpu = settings.vllm, device == "cpu"
    cache_gib = given.kv_cache_gib or (1.0 if cpu else None)
    arguments = {
        "dtype": ("float32" if cpu else "bfloat16") if given.dtype == "auto" else given.dtype,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # no sampling defaults from the model's folder
        "seed": 0,
        "max_num_seqs": settings.batch_size,
        "tensor_parallel_size": given.tensor_parallel_size,
        "gpu_memory_utilization": given.gpu_memory_utilization,
        "enforce_eager": given.enforce_eager,
        "enable_prefix_caching": True,
        "kv_cache_memory_bytes": None if cache_gib is None else int(cache_gib * 2**30),
        "max_model_len": given.max_model_len,
        # The draw of a seeded request whose prompt is split has to be taken back, at which 0.32 fails on CPUs.
        "enable_chunked_prefill": False if cpu else None,
        "block_size": 32 if cpu else None,  # 128 else: the samples of a prompt share whole blocks only
        "enable_sleep_mode": sleeps(settings, device),
        "use_tqdm_on_load": False,
    }
    return {name: value for name, value in arguments.items() if value is not None}


def sleeps(settings: GenerationSettings, device: str) -> bool:
    """Whether the engine leaves its memory between generations."""
    return settings.vllm.sleep and device != "cpu"


def require_vllm(engine: str) -> None:
    """Raises UserError where vLLM is not installed."""
    extras.require("vllm", f"generation.engine {engine}")


def write_model(folder: Path, policy: Any, tokenizer: Any) -> None:
    """A folder from which vLLM can start and whose weights `write_weights` replaces.

    The head gets weights of its own where the policy ties it to the embedding: on CPUs vLLM packs the head when it starts, and
    `reload_weights` does not pack again what is tied (seen in 0.32: the new body with the old head).
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(policy.config)
    config.tie_word_embeddings = False
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_weights(folder, policy)


def write_weights(folder: Path, policy: Any) -> None:
    """The weights of `policy` as `model.safetensors`, whole: a reader of the file before keeps that one. Every process of torchrun must ask."""
    tensors = {name: value.cpu().contiguous() for name, value in plain_weights(policy).items()}
    head = "lm_head.weight"
    tensors[head] = tensors[head].clone()
    with replacing(folder / "model.safetensors") as file:
        save_file(tensors, file, metadata={"format": "pt"})


def _answer(output: Any) -> Answer:
    ids = list(output.token_ids)
    logp = [entry[token].logprob for token, entry in zip(ids, output.logprobs, strict=True)]
    return Answer(ids, logp, output.finish_reason, tuple(span.version for span in output.weight_versions or ()))


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """Variables that the processes started meanwhile inherit. What vLLM sets besides (LD_PRELOAD among it) is no business of other processes."""
    resource_tracker.ensure_running()  # this process's own, which goes when it goes and removes its shared memory
    before = dict(os.environ)
    os.environ.update({**QUIET, **before, **SPAWN, **more})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
