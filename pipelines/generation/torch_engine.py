"""Sampling in this process: prompts are prefilled once and shared by their samples, finished rows make room for waiting ones.

Every sample draws from its own stream of uniforms (inverse CDF), so what it says does not depend on its batch mates or on
the order of requests. Log-probabilities are those of the distribution sampled from: after temperature, top-k and top-p.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipelines import seeding
from pipelines.config.common import GenerationSettings
from pipelines.errors import UserError
from pipelines.generation.protocol import Progress, Request, Sample
from pipelines.generation.responses import Responses
from pipelines.models.adapters import plain_weights
from pipelines.models.decoder import Decoder, unsupported
from pipelines.models.precision import chosen
from pipelines.models.sharding import gathered
from pipelines.models.whole_decoder import WholeDecoder

FULL = 0.75
"""Share of rows that still run below which finished ones are replaced by waiting ones, or leave where none wait."""
BLOCK = 256
"""Entries of the vocabulary whose chances are summed together."""
ROOM = 24
"""Positions by which the cache grows: most responses are much shorter than they may be."""
Item = tuple[int, int]
"""Number of a request, and of its sample."""


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
        if chosen(self._device, settings.precision) == "bfloat16":
            if reason := unsupported(model):
                raise UserError(f"generation.precision bfloat16: engine torch {reason}; use float32")
            self._half = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16).to(self._device).requires_grad_(False)
        self.push(model, 0)
        self._responses = Responses.of(tokenizer, model.generation_config, settings)

    def push(self, model: Any, version: int) -> None:
        """See `Generator.push`. Float32 weights are read in place, so they must not change while samples are made."""
        self._model, self._version = model, version
        if self._half is not None:
            self._half.load_state_dict(plain_weights(model, everywhere=True))
            self._decoder = Decoder(self._half, head=model.get_output_embeddings())
        else:
            self._decoder = WholeDecoder(model) if unsupported(model) else Decoder(model)

    def close(self) -> None:
        """Nothing is held."""

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[list[Sample]]:
        """See `Generator.generate`.

        Raises:
            UserError: a prompt does not fit the model's context together with the response.
        """
        limit = getattr(self._model.config, "max_position_embeddings", None) or math.inf  # a recurrent model has none
        longest = self._responses.check_room(requests, limit)
        with gathered(self._model), torch.inference_mode():  # also where nothing is asked: all processes gather together
            return self._generate(requests, longest, progress) if requests else []

    def _generate(self, requests: Sequence[Request], longest: int, progress: Progress | None) -> list[list[Sample]]:
        results: list[list[Sample | None]] = [[None] * r.samples for r in requests]
        # Prompts of like length decode together, which wastes the least padding.
        items = ((i, s) for i, r in enumerate(requests) for s in range(r.samples))
        waiting = deque(sorted(items, key=lambda item: (len(requests[item[0]].prompt_ids), item)))
        total, done = len(waiting), 0
        rows = _Rows(self, requests, min(self.settings.batch_size, total), longest)
        rows.fill(waiting)
        while len(rows):
            rows.pick()
            if rows.running() < FULL * len(rows):
                for (i, s), sample in rows.finished():
                    results[i][s] = sample
                    done += 1
                if progress:
                    progress(done, total)
                rows.step()
                rows.fill(waiting)
            else:
                rows.step()
        return results  # type: ignore[return-value]  # every slot is filled above

    def sample_of(self, ids: list[int], logp: list[float]) -> Sample:
        """A response that ended."""
        return self._responses.sample(ids, logp, self._version)

    def stops(self, ids: list[int]) -> bool:
        """Whether the response so far holds a stop string; only its end can be new."""
        longest = max(map(len, self.settings.stop))
        tail = self.tokenizer.decode(ids[-longest - 1 :], skip_special_tokens=True)  # a token has at least one character, but for parts of one
        return any(stop in tail for stop in self.settings.stop)


class _Rows:
    """The samples that decode together, each in a row of the cache. A row whose sample ended (`alive` false) waits to be taken."""

    def __init__(self, engine: TorchGenerator, requests: Sequence[Request], rows: int, longest: int) -> None:
        self._engine, self._requests, self._settings = engine, requests, engine.settings
        self._decoder, device, budget = engine._decoder, engine._device, engine.settings.max_new_tokens
        self._ends = torch.tensor(engine._responses.ends, device=device)
        self._items: list[Item | None] = [None] * rows
        self._uniform_BT = torch.zeros((rows, budget), dtype=torch.float64, device=device)
        self._ids_BT = torch.zeros((rows, budget), dtype=torch.long, device=device)
        self._logp_BT = torch.zeros((rows, budget), device=device)
        self._count_B = torch.zeros(rows, dtype=torch.long, device=device)
        self._length_B = torch.zeros(rows, dtype=torch.long, device=device)
        self._alive_B = torch.zeros(rows, dtype=torch.bool, device=device)
        self._chosen_B = torch.zeros(rows, dtype=torch.long, device=device)
        self._logits_BV: Tensor = torch.zeros((rows, 0), device=device)
        self._longest = longest + budget
        self._cache = self._decoder.new_cache(rows, min(longest + ROOM, self._longest))

    def __len__(self) -> int:
        return len(self._items)

    def running(self) -> int:
        return int(self._alive_B.sum())

    def fill(self, waiting: deque[Item]) -> None:
        """Waiting samples into the rows that are free; free rows that are left over go."""
        free = (~self._alive_B).nonzero()[:, 0]
        items = [waiting.popleft() for _ in range(min(len(free), len(waiting)))]
        if items:
            self._start(free[: len(items)], items)
        if len(items) < len(free):
            self._keep(self._alive_B.nonzero()[:, 0])

    def pick(self) -> None:
        """One token for every row."""
        rows, count, settings = torch.arange(len(self), device=self._count_B.device), self._count_B, self._settings
        uniform = self._uniform_BT[rows, count.clamp(max=self._uniform_BT.shape[1] - 1)]
        self._chosen_B, logp_B = pick(self._logits_BV, uniform, settings.temperature, settings.top_p, settings.top_k)
        alive = self._alive_B.nonzero()[:, 0]
        self._ids_BT[alive, count[alive]], self._logp_BT[alive, count[alive]] = self._chosen_B[alive], logp_B[alive]
        self._count_B = count + self._alive_B
        self._alive_B = self._alive_B & ~torch.isin(self._chosen_B, self._ends) & (self._count_B < settings.max_new_tokens)
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

    def finished(self) -> list[tuple[Item, Sample]]:
        """The samples that ended since the last call."""
        found = []
        for row in (~self._alive_B).nonzero()[:, 0].tolist():
            item, count = self._items[row], int(self._count_B[row])
            if item is not None:
                self._items[row] = None
                found.append((item, self._engine.sample_of(self._ids_BT[row, :count].tolist(), self._logp_BT[row, :count].tolist())))
        return found

    def _start(self, rows: Tensor, items: list[Item]) -> None:
        """Put samples into rows: each distinct prompt runs once, and its cache and logits are copied to every sample of it."""
        requests = [self._requests[i] for i, _ in items]
        prompts = list({r.prompt_ids: None for r in requests})
        where = {prompt: place for place, prompt in enumerate(prompts)}
        source = torch.tensor([where[r.prompt_ids] for r in requests], device=rows.device)
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
        self._count_B[rows], self._alive_B[rows] = 0, True
        budget = self._settings.max_new_tokens
        drawn = [seeding.generator(*r.key, r.first + s).random(budget) for r, (_, s) in zip(requests, items, strict=True)]
        self._uniform_BT[rows] = torch.from_numpy(np.stack(drawn)).to(rows.device)
        for row, item in zip(rows.tolist(), items, strict=True):
            self._items[row] = item

    def _keep(self, rows: Tensor) -> None:
        self._items = [self._items[row] for row in rows.tolist()]
        for name in ("_uniform_BT", "_ids_BT", "_logp_BT", "_count_B", "_length_B", "_alive_B", "_chosen_B", "_logits_BV"):
            setattr(self, name, getattr(self, name).index_select(0, rows))
        self._cache = [(keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self._cache]


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
