"""Log-probabilities of given tokens under a policy, computed only where they are needed.

Shapes: B sequences, T tokens of the padded sequence, N scored positions, E hidden size, V vocabulary. Only the N scored
positions meet the vocabulary, `CHUNK` logits at a time, so (B, T, V) never exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 2**24
"""Logits (positions x vocabulary) held at once; more are computed in chunks and recomputed in the backward pass."""


def pad(rows: Sequence[Sequence[int]], value: int = 0, device: Any = None) -> Tensor:
    """Right-padded long tensor (B, T)."""
    width = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long, device=device)


def token_logp(model: Any, ids_BT: Tensor, score_BT: Tensor, temperature: float = 1.0, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
    """log p(ids[b, t] | ids[b, :t]) where `score_BT` is true and 0 elsewhere, in nats; and the entropy of those positions.

    Rows are right-padded and attention is causal, so padding needs no mask. `score_BT[:, 0]` must be false: nothing
    predicts the first token. Entropies are detached.
    """
    hidden_BTE = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    wanted = score_BT[:, 1:]
    hidden_NE, targets_N = hidden_BTE[:, :-1][wanted], ids_BT[:, 1:][wanted]
    head = model.get_output_embeddings()
    step = max(1, CHUNK // head.weight.shape[0])
    if len(hidden_NE) <= step:
        logp_N, entropy_N = _score(hidden_NE, targets_N, head, temperature, with_entropy)
    else:
        parts = [
            checkpoint(_score, h, t, head, temperature, with_entropy, use_reentrant=False)
            for h, t in zip(hidden_NE.split(step), targets_N.split(step), strict=True)
        ]
        logp_N, entropy_N = (torch.cat(column) for column in zip(*parts, strict=True))
    blank = torch.zeros(ids_BT.shape, dtype=torch.float32, device=ids_BT.device)
    logp_BT = blank.masked_scatter(score_BT, logp_N)
    return logp_BT, blank.masked_scatter(score_BT, entropy_N) if with_entropy else None


def _score(hidden_NE: Tensor, targets_N: Tensor, head: Any, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor]:
    """log p of the targets and the entropies (empty unless wanted) of N positions."""
    all_logp_NV = torch.log_softmax(head(hidden_NE).float() / temperature, -1)
    chosen_N = all_logp_NV.gather(-1, targets_N[:, None])[:, 0]
    if not with_entropy:
        return chosen_N, chosen_N.new_zeros(0)
    detached = all_logp_NV.detach()
    return chosen_N, -(detached.exp() * detached).sum(-1)
