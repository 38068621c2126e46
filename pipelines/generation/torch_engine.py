"""Sampling in this process: prompts are prefilled once and shared by their samples, finished rows leave the batch.

Every sample draws from its own stream of uniforms (inverse CDF), so what it says does not depend on its batch mates or on
the order of requests. Log-probabilities are those of the distribution sampled from: after temperature and top-p.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines import seeding
from pipelines.config.common import GenerationSettings
from pipelines.errors import UserError
from pipelines.generation.protocol import Request, Sample
from pipelines.models.decoder import Decoder

COMPACT = 0.75
"""Rows are compacted when the share still running falls below this."""


class TorchGenerator:
    """Samples from a Hugging Face module of the Llama family, whose weights may change between calls."""

    def __init__(self, model: Any, tokenizer: Any, settings: GenerationSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.version = 0
        self._model = model
        self._decoder = Decoder(model)
        self._device = model.device
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self._ends = sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None})

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None) -> list[list[Sample]]:
        """See `Generator.generate`.

        Raises:
            UserError: a prompt does not fit the model's context together with the response.
        """
        limit = self._model.config.max_position_embeddings
        longest = max((len(r.prompt_ids) for r in requests), default=0)
        if longest + self.settings.max_new_tokens > limit:
            raise UserError(f"a prompt of {longest} tokens and max_new_tokens {self.settings.max_new_tokens} exceed the model's context of {limit}")
        results: list[list[Sample | None]] = [[None] * r.samples for r in requests]
        # Prompts of like length decode together, which wastes the least padding.
        todo = sorted(((i, s) for i, r in enumerate(requests) for s in range(r.samples)), key=lambda item: (len(requests[item[0]].prompt_ids), item))
        done = 0
        for start in range(0, len(todo), self.settings.batch_size):
            wave = todo[start : start + self.settings.batch_size]
            for (i, s), sample in zip(wave, self._wave([requests[i] for i, _ in wave], [s for _, s in wave]), strict=True):
                results[i][s] = sample
            done += len(wave)
            if progress:
                progress(done, len(todo))
        return results  # type: ignore[return-value]  # every slot is filled above

    def _wave(self, requests: Sequence[Request], indices: Sequence[int]) -> list[Sample]:
        """Decode one batch of samples to their ends."""
        settings, device = self.settings, self._device
        budget = settings.max_new_tokens
        uniform = torch.from_numpy(
            np.stack([seeding.generator(*r.key, r.first + i).random(budget) for r, i in zip(requests, indices, strict=True)])
        ).to(device)
        logits, length, cache = self._prefill(requests)
        rows = torch.arange(len(requests), device=device)
        ends = torch.tensor(self._ends, device=device)
        tokens = torch.full((len(requests), budget), -1, device=device)
        logps = torch.zeros((len(requests), budget), device=device)
        alive = torch.ones(len(requests), dtype=torch.bool, device=device)
        for t in range(budget):
            chosen, logp = pick(logits, uniform[rows, t], settings.temperature, settings.top_p)
            tokens[rows[alive], t], logps[rows[alive], t] = chosen[alive], logp[alive]
            alive = alive & ~torch.isin(chosen, ends)
            running = int(alive.sum())
            if running == 0 or t == budget - 1:
                break
            if running < COMPACT * len(rows):
                keep = alive.nonzero()[:, 0]
                rows, chosen, length, alive = rows[keep], chosen[keep], length[keep], alive[keep]
                cache = [(k[keep], v[keep]) for k, v in cache]
            logits = self._decoder.step(chosen, length, cache, span=int(length.max()) + 1)
            length = length + 1
        return self._samples(tokens.tolist(), logps.tolist())

    def _prefill(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Each distinct prompt once, then its cache and logits copied to every sample of it."""
        distinct = list({r.prompt_ids: None for r in requests})
        where = {prompt: i for i, prompt in enumerate(distinct)}
        source = torch.tensor([where[r.prompt_ids] for r in requests], device=self._device)
        longest = max(map(len, distinct))
        ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in distinct], device=self._device)
        length = torch.tensor([len(p) for p in distinct], device=self._device)
        cache = self._decoder.new_cache(len(distinct), longest + self.settings.max_new_tokens)
        logits = self._decoder.prefill(ids, length, cache)
        return logits[source], length[source], [(k[source], v[source]) for k, v in cache]

    def _samples(self, tokens: list[list[int]], logps: list[list[float]]) -> list[Sample]:
        samples = []
        for row, logp in zip(tokens, logps, strict=True):
            ids = [token for token in row if token >= 0]
            stopped = ids[-1] in self._ends
            text = self.tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True)
            samples.append(Sample(ids, logp[: len(ids)], "stop" if stopped else "length", text, self.version))
        return samples


def pick(logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF, and its log-probability under the distribution sampled from.

    temperature 0 takes the likeliest token, with log-probability 0. top_p keeps the smallest set of likeliest tokens whose
    mass reaches it (the token that crosses is kept) and renormalises.
    """
    if temperature == 0:
        return logits_BV.argmax(-1), logits_BV.new_zeros(len(logits_BV), dtype=torch.float32)
    logp = torch.log_softmax(logits_BV.float() / temperature, -1)
    if top_p < 1:
        ordered, index = logp.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        kept = torch.empty_like(logp, dtype=torch.bool).scatter(-1, index, before < top_p)
        logp = torch.log_softmax(logp.masked_fill(~kept, float("-inf")), -1)
    cumulative = logp.double().exp().cumsum(-1)
    # Scaling by the last entry keeps a uniform near 1 from falling past the end by rounding.
    chosen = torch.searchsorted(cumulative, (uniform_B * cumulative[:, -1])[:, None], right=True)[:, 0].clamp(max=logits_BV.shape[-1] - 1)
    return chosen, logp.gather(-1, chosen[:, None])[:, 0]
