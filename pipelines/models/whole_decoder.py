"""Decoding of any causal language model by whole forward passes: every token runs the whole sequence again, slow and always right.

For architectures that `decoder.py` has no incremental pass for. The cache holds token ids, (B, 1, S, 1). Padding stands behind a row's
last token, where a causal model cannot see it. Shapes: B rows, P prompt positions, S cache positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

LOGITS = 1 << 26
"""Logits that one forward pass may make: 256 MB."""
Cache = list[tuple[Tensor, Tensor]]


class WholeDecoder:
    """Prefill and single-token steps of one model, with the methods of `Decoder`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model

    def new_cache(self, rows: int, length: int) -> Cache:
        """Room for token ids."""
        ids = torch.zeros((rows, 1, length, 1), dtype=torch.long, device=self._model.device)
        return [(ids, ids)]

    def prefill(self, ids_BP: Tensor, length_B: Tensor, cache: Cache) -> Tensor:
        """See `Decoder.prefill`."""
        cache[0][0][:, 0, : ids_BP.shape[1], 0] = ids_BP
        return self._logits(ids_BP, length_B - 1)

    def step(self, ids_B: Tensor, length_B: Tensor, cache: Cache) -> Tensor:
        """See `Decoder.step`."""
        ids_BS = cache[0][0][:, 0, :, 0]
        ids_BS[torch.arange(len(ids_B), device=ids_B.device), length_B] = ids_B
        return self._logits(ids_BS[:, : int(length_B.max()) + 1], length_B)

    def _logits(self, ids_BS: Tensor, last_B: Tensor) -> Tensor:
        """Logits (B, V) at position last_B of each row, without dropout, some rows at a time."""
        training = self._model.training
        self._model.eval()
        try:
            step = max(1, LOGITS // (ids_BS.shape[1] * self._model.config.get_text_config().vocab_size))
            found = []
            for ids, last in zip(ids_BS.split(step), last_B.split(step), strict=True):
                logits = self._model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
                found.append(logits[torch.arange(len(ids), device=ids.device), last])
            return torch.cat(found)
        finally:
            self._model.train(training)
