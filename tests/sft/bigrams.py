"""A language model whose every log-probability is chosen: the next token depends on the last one alone, by a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Bigrams(nn.Module):
    """table: token -> the next one -> its log-probability; what is left of a row's mass stands evenly on the others. There are `size` tokens."""

    def __init__(self, size: int, table: Mapping[int, Mapping[int, float]]) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="bigrams", hidden_size=size)
        self.device = torch.device("cpu")
        self.head = nn.Linear(size, size, bias=False)
        logp = torch.full((size, size), -math.log(size))
        for token, following in table.items():
            rest = 1 - sum(map(math.exp, following.values()))
            logp[token] = math.log(max(rest, 1e-30) / (size - len(following)))
            for other, value in following.items():
                logp[token, other] = value
        self.head.weight = nn.Parameter(logp.T.contiguous())

    def base_model(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=nn.functional.one_hot(input_ids, self.config.hidden_size).float())

    def get_output_embeddings(self) -> nn.Linear:
        return self.head
