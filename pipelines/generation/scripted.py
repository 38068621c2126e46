"""An engine that says what it is told to: for tests of what listens to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pipelines.config.common import GenerationSettings
from pipelines.generation.protocol import Blocking, Progress, Request, Sample
from pipelines.models.scoring import chosen, pad, token_scores

Script = Callable[[Request, int], str]
"""(request, number of the sample) -> the response."""


class ScriptedGenerator(Blocking):
    """Responses of `script`, cut at `max_new_tokens`. Their log-probabilities are those of the model pushed last, at the temperature;
    without one, or at temperature 0, they are 0: the script is sure of what it says."""

    def __init__(self, tokenizer: Any, settings: GenerationSettings, script: Script) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.version = 0
        self._script = script
        self._policy: Any = None

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[list[Sample]]:
        """See `Generator.generate`."""
        samples = [[self._sample(r, number) for number in range(r.first, r.first + r.samples)] for r in requests]
        total = sum(map(len, samples))
        if progress:
            progress(total, total)
        return samples

    def push(self, model: Any, version: int) -> None:
        """See `Generator.push`."""
        self._policy, self.version = model, version

    def close(self) -> None:
        """Nothing is held."""

    def _sample(self, request: Request, number: int) -> Sample:
        whole = [*self.tokenizer(self._script(request, number), add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        ids = whole[: request.room(self.settings.max_new_tokens)]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        logp = [0.0] * len(ids) if request.greedy else self._logp(request.prompt_ids, ids)
        return Sample(ids, logp, "stop" if ids == whole else "length", text, self.version)

    @torch.no_grad()
    def _logp(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> list[float]:
        temperature = self.settings.temperature
        if self._policy is None or temperature == 0:
            return [0.0] * len(ids)
        row = pad([[*prompt_ids, *ids]], device=self._policy.device)
        score = torch.arange(row.shape[1], device=row.device)[None] >= len(prompt_ids)
        return token_scores(self._policy, row, score, {"logp": chosen}, temperature=temperature)["logp"][score].tolist()
