"""Sampling in this process: prompts are prefilled once and shared by their samples, finished rows make room for waiting ones.

Every sample draws from its own stream of uniforms (inverse CDF), so what it says does not depend on its batch mates or on
the order of requests. Log-probabilities are those of the distribution sampled from: after temperature, top-k and top-p.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipelines import seeding
from pipelines.config.common import GenerationSettings
from pipelines.errors import UserError
from pipelines.generation.action_set import ActionSet, Restricted
from pipelines.generation.protocol import Progress, Request, Sample
from pipelines.generation.responses import Responses
from pipelines.models.adapters import plain_weights
from pipelines.models.decoder import Decoder, unsupported
from pipelines.models.precision import chosen
from pipelines.models.sharding import gathered
from pipelines.models.whole_decoder import Cache, WholeDecoder

FULL = 0.75
"""Share of rows that still run below which finished ones are replaced by waiting ones, or leave where none wait."""
BLOCK = 256
"""Entries of the vocabulary whose chances are summed together."""
ROOM = 24
"""Positions by which the cache grows: most responses are much shorter than they may be."""
BY_ROW = ("_uniform_BT", "_ids_BT", "_logp_BT", "_count_B", "_limit_B", "_length_B", "_alive_B", "_chosen_B", "_greedy_B", "_logits_BV")
"""Tensors with a row for each sample that decodes."""


class TorchGenerator:
    """Samples from a causal Hugging Face module, whose weights may change between calls; the Llama family decodes with a cache."""

    def __init__(self, model: Any, tokenizer: Any, settings: GenerationSettings) -> None:
        """
        Raises:
            UserError: this device has no units for the precision, or the model is one that no copy is decoded of.
        """
        self.tokenizer = tokenizer
        self.settings = settings
        self._device = model.device
        self._half: Any = None
        self._restriction: tuple[Any, ActionSet] | None = None
        if chosen(self._device, settings.precision) == "bfloat16":
            if reason := unsupported(model):
                raise UserError(f"generation.precision bfloat16: engine torch {reason}; use float32")
            self._half = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16).to(self._device).requires_grad_(False)
        self.push(model, 0)
        self._responses = Responses.of(tokenizer, model.generation_config, settings)

    @property
    def context(self) -> float:
        """See `Generator.context`."""
        return getattr(self._model.config, "max_position_embeddings", None) or math.inf  # a recurrent model has none

    def push(self, model: Any, version: int) -> None:
        """See `Generator.push`. Float32 weights are read in place, so they must not change while samples are made."""
        self._model, self.version = model, version
        if self._half is not None:
            self._half.load_state_dict(plain_weights(model, everywhere=True))
            self._decoder = Decoder(self._half, head=model.get_output_embeddings())
        else:
            self._decoder = _decoder_of(model)
        if self._restriction is not None:
            lagged, actions = self._restriction
            self._decoder = Restricted(self._decoder, _decoder_of(lagged), actions, self.settings.temperature)

    def restrict(self, lagged: Any, **settings: Any) -> None:
        """Say from now on only what an `ActionSet` with these settings and all special tokens allows of `lagged`, a policy of the same kind whose
        weights are read in place."""
        always = sorted({*self.tokenizer.all_special_ids, *self._responses.ends})
        self._restriction = lagged, ActionSet(**settings, always=tuple(always))
        self.push(self._model, self.version)

    @property
    def restricted(self) -> bool:
        """Whether it may not say every token."""
        return self._restriction is not None

    def close(self) -> None:
        """Nothing is held."""

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[list[Sample]]:
        """See `Generator.generate`.

        Raises:
            UserError: a prompt does not fit the model's context together with the response.
        """
        single = [replace(r, samples=1, first=r.first + number) for r in requests for number in range(r.samples)]
        results: list[Sample | None] = [None] * len(single)
        done = 0
        with self.open() as stream:
            finished = stream.answer(single)
            while finished:
                for number, sample in finished:
                    results[number] = sample
                done += len(finished)
                if progress:
                    progress(done, len(single))
                finished = stream.answer()
        each = iter(results)
        return [[next(each) for _ in range(r.samples)] for r in requests]  # type: ignore[misc]  # every one is filled above

    @contextmanager
    def open(self) -> Iterator[_Rows]:
        """See `Generator.open`. Where the policy is sharded, all processes must open one together, also those that ask nothing."""
        with gathered(self._model):
            yield _Rows(self)

    def sample_of(self, ids: list[int], logp: list[float], allowed: list[bytes]) -> Sample:
        """A response that ended."""
        return self._responses.sample(ids, logp, self.version, allowed)

    def stops(self, ids: list[int]) -> bool:
        """Whether the response so far holds a stop string; only its end can be new."""
        longest = max(map(len, self.settings.stop))
        tail = self.tokenizer.decode(ids[-longest - 1 :], skip_special_tokens=True)  # a token has at least one character, but for parts of one
        return any(stop in tail for stop in self.settings.stop)


class _Rows:
    """The samples that decode together, each in a row of the cache. A row whose sample ended (`alive` false) waits to be taken."""

    def __init__(self, engine: TorchGenerator) -> None:
        self._engine, self._settings, self._decoder = engine, engine.settings, engine._decoder
        device, budget = engine._device, engine.settings.max_new_tokens
        self._ends = torch.tensor(engine._responses.ends, device=device)
        self._banned = torch.tensor(engine._responses.banned, dtype=torch.long, device=device)
        self._requests: list[Request] = []
        self._waiting: deque[int] = deque()
        self._numbers: list[int | None] = []
        """For each row the number of its request, None where it was taken."""
        self._uniform_BT = torch.zeros((0, budget), dtype=torch.float64, device=device)
        self._ids_BT = torch.zeros((0, budget), dtype=torch.long, device=device)
        self._logp_BT = torch.zeros((0, budget), device=device)
        self._count_B = torch.zeros(0, dtype=torch.long, device=device)
        self._limit_B = torch.zeros(0, dtype=torch.long, device=device)
        self._length_B = torch.zeros(0, dtype=torch.long, device=device)
        self._alive_B = torch.zeros(0, dtype=torch.bool, device=device)
        self._chosen_B = torch.zeros(0, dtype=torch.long, device=device)
        self._greedy_B = torch.zeros(0, dtype=torch.bool, device=device)
        self._logits_BV: Tensor = torch.zeros((0, 0), device=device)
        self._allowed: dict[int | None, list[bytes]] = defaultdict(list)
        """By number of the request, see `Sample.allowed`."""
        self._longest = 0
        self._cache: Cache = []

    def __len__(self) -> int:
        return len(self._numbers)

    @torch.inference_mode()
    def answer(self, requests: Sequence[Request] = ()) -> list[tuple[int, Sample]]:
        """See `Stream.answer`."""
        if requests:
            self._ask(requests)
        while len(self):
            self.pick()
            if self.running() >= FULL * len(self):
                self.step()
                continue
            finished = self.finished()
            self.step()
            self.fill()
            return finished
        return []

    def interrupt(self) -> dict[int, tuple[list[int], list[float]]]:
        """See `Stream.interrupt`."""
        open_ones = {number: (list(self._requests[number].said), list(self._requests[number].said_logp)) for number in self._waiting}
        for row, number in enumerate(self._numbers):
            if number is not None:
                count = int(self._count_B[row])
                open_ones[number] = self._ids_BT[row, :count].tolist(), self._logp_BT[row, :count].tolist()
        self._waiting.clear()
        self._keep(self._alive_B.new_zeros(0, dtype=torch.long))
        return open_ones

    def _ask(self, requests: Sequence[Request]) -> None:
        """Room for more, and into the rows what fits."""
        longest = self._engine._responses.check_room(requests, self._engine.context)
        first = len(self._requests)
        self._requests += requests
        waiting = [*self._waiting, *range(first, len(self._requests))]
        self._waiting = deque(sorted(waiting, key=self._turn))
        self._longest = max(self._longest, longest)
        self._grow(min(self._settings.batch_size, self.running() + len(self._waiting)), max(len(r.start) for r in requests))
        self.fill()

    def _turn(self, number: int) -> tuple[int, bool, int, int]:
        """What begins first: what has begun before, then prompts of like length together, which wastes the least padding."""
        request = self._requests[number]
        return request.order, not request.said, len(request.start), number

    def _grow(self, rows: int, longest: int) -> None:
        """So many rows, all of whose samples still run, and room for prompts of so many tokens."""
        more = rows - len(self)
        width = min(longest + ROOM, self._longest)
        if not self._cache:
            self._cache = self._decoder.new_cache(rows, width)
        else:
            wider = max(width - self._cache[0][0].shape[2], 0)
            self._cache = [tuple(F.pad(part, (0, 0, 0, wider, 0, 0, 0, more)) for part in layer) for layer in self._cache]  # type: ignore[misc]
        for name in BY_ROW:
            tensor = getattr(self, name)
            setattr(self, name, F.pad(tensor, (*[0] * (2 * tensor.ndim - 1), more)))
        self._numbers += [None] * more

    def running(self) -> int:
        return int(self._alive_B.sum())

    def fill(self) -> None:
        """Waiting samples into the rows that are free; free rows that are left over go."""
        free = (~self._alive_B).nonzero()[:, 0]
        numbers = [self._waiting.popleft() for _ in range(min(len(free), len(self._waiting)))]
        if numbers:
            self._start(free[: len(numbers)], numbers)
        if len(numbers) < len(free):
            self._keep(self._alive_B.nonzero()[:, 0])

    def pick(self) -> None:
        """One token for every row."""
        rows, count, settings = torch.arange(len(self), device=self._count_B.device), self._count_B, self._settings
        uniform = self._uniform_BT[rows, count.clamp(max=self._uniform_BT.shape[1] - 1)]
        if len(self._banned):
            self._logits_BV = self._logits_BV.index_fill(1, self._banned, -math.inf)
        self._chosen_B, logp_B = pick(self._logits_BV, uniform, settings.temperature, settings.top_p, settings.top_k)
        if self._greedy_B.any():
            self._chosen_B = torch.where(self._greedy_B, self._logits_BV.argmax(-1), self._chosen_B)
            logp_B = logp_B.masked_fill(self._greedy_B, 0.0)
        alive = self._alive_B.nonzero()[:, 0]
        self._ids_BT[alive, count[alive]], self._logp_BT[alive, count[alive]] = self._chosen_B[alive], logp_B[alive]
        if self._engine.restricted:
            sets = np.packbits((self._logits_BV[alive] > -torch.inf).cpu().numpy(), axis=-1)
            for row, bits in zip(alive.tolist(), sets, strict=True):
                self._allowed[self._numbers[row]].append(bits.tobytes())
        self._count_B = count + self._alive_B
        self._alive_B = self._alive_B & ~torch.isin(self._chosen_B, self._ends) & (self._count_B < self._limit_B)
        if settings.stop:
            for row in self._alive_B.nonzero()[:, 0].tolist():
                if self._engine.stops(self._ids_BT[row, : self._count_B[row]].tolist()):
                    self._alive_B[row] = False

    def step(self) -> None:
        """Run the picked tokens of the rows that go on; the others are computed along and not looked at."""
        if self.running():
            span = int(self._length_B.max()) + 1
            if span > self._cache[0][0].shape[2]:
                more = (0, 0, 0, min(span + ROOM, self._longest) - self._cache[0][0].shape[2])
                self._cache = [(F.pad(keys, more), F.pad(values, more)) for keys, values in self._cache]
            self._logits_BV = self._decoder.step(self._chosen_B, self._length_B, self._cache)
            self._length_B = self._length_B + self._alive_B

    def finished(self) -> list[tuple[int, Sample]]:
        """The samples that ended since the last call, each with the number of its request."""
        found = []
        for row in (~self._alive_B).nonzero()[:, 0].tolist():
            number, count = self._numbers[row], int(self._count_B[row])
            if number is not None:
                self._numbers[row] = None
                said = self._ids_BT[row, :count].tolist(), self._logp_BT[row, :count].tolist()
                found.append((number, self._engine.sample_of(*said, self._allowed.pop(number, []))))
        return found

    def _start(self, rows: Tensor, numbers: list[int]) -> None:
        """Put samples into rows: each distinct prompt runs once, and its cache and logits are copied to every sample of it."""
        requests = [self._requests[number] for number in numbers]
        prompts = list({r.start: None for r in requests})
        where = {prompt: place for place, prompt in enumerate(prompts)}
        source = torch.tensor([where[r.start] for r in requests], device=rows.device)
        longest = max(map(len, prompts))
        ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts], device=rows.device)
        length = torch.tensor([len(p) for p in prompts], device=rows.device)
        cache = self._decoder.new_cache(len(prompts), longest)
        logits = self._decoder.prefill(ids, length, cache)
        for (keys, values), (new_keys, new_values) in zip(self._cache, cache, strict=True):
            keys[:, :, :longest].index_copy_(0, rows, new_keys.index_select(0, source))
            values[:, :, :longest].index_copy_(0, rows, new_values.index_select(0, source))
        if not self._logits_BV.shape[1]:
            self._logits_BV = logits.new_zeros((len(self), logits.shape[1]))
        self._logits_BV[rows], self._length_B[rows] = logits[source], length[source]
        self._count_B[rows] = torch.tensor([len(r.said) for r in requests], device=rows.device)
        self._alive_B[rows] = True
        self._greedy_B[rows] = torch.tensor([r.greedy for r in requests], device=rows.device)
        for row, request in zip(rows.tolist(), requests, strict=True):
            if request.said:
                self._ids_BT[row, : len(request.said)] = torch.tensor(request.said, device=rows.device)
                self._logp_BT[row, : len(request.said)] = torch.tensor(request.said_logp, device=rows.device)
        budget = self._settings.max_new_tokens
        self._limit_B[rows] = torch.tensor([r.room(budget) for r in requests], device=rows.device)
        drawn = [seeding.generator(*r.key, r.first).random(budget) for r in requests]
        self._uniform_BT[rows] = torch.from_numpy(np.stack(drawn)).to(rows.device)
        for row, number in zip(rows.tolist(), numbers, strict=True):
            self._numbers[row] = number

    def _keep(self, rows: Tensor) -> None:
        self._numbers = [self._numbers[row] for row in rows.tolist()]
        for name in BY_ROW:
            setattr(self, name, getattr(self, name).index_select(0, rows))
        self._cache = [(keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self._cache]


def _decoder_of(model: Any) -> Decoder | WholeDecoder:
    return WholeDecoder(model) if unsupported(model) else Decoder(model)


def pick(logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_p: float, top_k: int = 0) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF, and its log-probability under the distribution sampled from.

    temperature 0 takes the likeliest token, with log-probability 0. top_k keeps the so many likeliest (and what ties with the last), 0 all;
    then top_p keeps the smallest set of likeliest tokens whose mass reaches it (the token that crosses is kept). What is kept is renormalised.
    """
    if temperature == 0:
        return logits_BV.argmax(-1), logits_BV.new_zeros(len(logits_BV), dtype=torch.float32)
    logp = torch.log_softmax(logits_BV.float() / temperature, -1)
    if 0 < top_k < logp.shape[-1]:
        least = logp.topk(top_k, -1).values[:, -1:]
        logp = torch.log_softmax(logp.masked_fill(logp < least, float("-inf")), -1)
    if top_p < 1:
        ordered, index = logp.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        kept = torch.empty_like(logp, dtype=torch.bool).scatter(-1, index, before < top_p)
        logp = torch.log_softmax(logp.masked_fill(~kept, float("-inf")), -1)
    token_B = _inverse_cdf(logp.exp(), uniform_B)
    return token_B, logp.gather(-1, token_B[:, None])[:, 0]


def _inverse_cdf(chance_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The entry (B,) at which the running sum exceeds the uniform share of the whole; it has a chance. First the block of entries is found, then
    the one in it: a running sum over a large vocabulary in float64 takes longer than all else here."""
    blocks = F.pad(chance_BV, (0, -chance_BV.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    until = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    aim = _below(uniform_B[:, None] * until[:, -1:], until[:, -1:])
    block = torch.searchsorted(until, aim, right=True)
    before = F.pad(until, (1, 0)).gather(-1, block)
    inside = blocks[torch.arange(len(blocks), device=block.device), block[:, 0]].cumsum(-1, dtype=torch.float64)
    return (block * BLOCK + torch.searchsorted(inside, _below(aim - before, inside[:, -1:]), right=True))[:, 0]


def _below(value: Tensor, limit: Tensor) -> Tensor:
    """A uniform of nearly 1 may reach the limit by rounding."""
    return torch.minimum(value, torch.nextafter(limit, torch.zeros_like(limit)))
