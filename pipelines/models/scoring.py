"""What a policy says of given tokens, computed only where it is needed: no padding, each shared prompt once.

Shapes: B sequences, T tokens of the padded sequence, N scored positions, E hidden size, V vocabulary. Only the N scored
positions meet the vocabulary, `CHUNK` logits at a time, so (B, T, V) never exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipelines.models.decoder import Decoder, unsupported
from pipelines.models.exactness import at_true
from pipelines.models.packing import pack
from pipelines.models.sharding import within

CHUNK = 2**24
"""Logits (positions x vocabulary) held at once; more are computed in chunks and recomputed in the backward pass."""

Score = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""(log-probabilities (N, V), what is known of each position (N, ...)) -> (N,) or (N, K)."""


def pad(rows: Sequence[Sequence[int]], value: int = 0, device: Any = None) -> Tensor:
    """Right-padded long tensor (B, T)."""
    width = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long, device=device)


def chosen(logp_NV: Tensor, at: Mapping[str, Tensor]) -> Tensor:
    """log p of the token that stands there."""
    return logp_NV.gather(-1, at["target"][:, None])[:, 0]


def entropy(logp_NV: Tensor, at: Mapping[str, Tensor]) -> Tensor:
    """Entropy, nats."""
    return -(logp_NV.exp() * logp_NV).sum(-1)


def entropy_detached(logp_NV: Tensor, at: Mapping[str, Tensor]) -> Tensor:
    """Entropy without gradient, for monitoring."""
    return entropy(logp_NV.detach(), at)


def token_scores(
    model: Any,
    ids_BT: Tensor,
    score_BT: Tensor,
    wanted: Mapping[str, Score],
    *,
    temperature: float | Tensor = 1.0,
    along: Mapping[str, Tensor] | None = None,
    on_hidden: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    after: tuple[str, int] | None = None,
) -> dict[str, Tensor]:
    """Scores of the tokens ids[b, t] given ids[b, :t] where `score_BT` is true, and 0 elsewhere: name -> (B, T, ...), float32.

    temperature divides the logits, one number or one a row (B,). along: tensors (B, T, ...) that a score reads at its
    position, beside `target`, the tokens themselves, or in place of it. on_hidden: functions of what the head sees, (N, E) -> (N, ...).
    after: (name, token): also the log-probability (B,) of that token right after the last scored one.

    Rows are right-padded and attention is causal, so padding needs no mask. `score_BT[:, 0]` must be false: nothing
    predicts the first token.
    """
    return within(model, _token_scores, ids_BT, score_BT, wanted, temperature, along or {}, on_hidden or {}, after)


def _token_scores(
    model: Any,
    ids_BT: Tensor,
    score_BT: Tensor,
    wanted: Mapping[str, Score],
    temperature: float | Tensor,
    along: Mapping[str, Tensor],
    on_hidden: Mapping[str, Callable[[Tensor], Tensor]],
    after: tuple[str, int] | None,
) -> dict[str, Tensor]:
    hidden_NE, ends_BE = hidden_states(model, ids_BT, score_BT, ends=after is not None)
    at = {"target": ids_BT[score_BT], **{name: value[score_BT] for name, value in along.items()}}
    if isinstance(temperature, Tensor):
        at["temperature"] = temperature[:, None].expand(score_BT.shape)[score_BT][:, None]
    else:
        at["temperature"] = torch.tensor(temperature, device=ids_BT.device).expand(len(hidden_NE), 1)
    head, step = model.get_output_embeddings(), max(1, CHUNK // model.get_output_embeddings().weight.shape[0])
    functions = tuple(wanted.values())
    if len(hidden_NE) <= step:
        columns: Sequence[Tensor] = _score(hidden_NE, at, head, functions)
    else:
        starts = range(0, len(hidden_NE), step)
        parts = [
            checkpoint(_score, hidden_NE[i : i + step], {k: v[i : i + step] for k, v in at.items()}, head, functions, use_reentrant=False)
            for i in starts
        ]
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    scores = dict(zip(wanted, columns, strict=True)) | {name: function(hidden_NE) for name, function in on_hidden.items()}
    made = {name: _scatter(value, score_BT) for name, value in scores.items()}
    if after and ends_BE is not None:
        made[after[0]] = torch.log_softmax(logits(head, ends_BE), -1)[:, after[1]]
    return made


def hidden_states(model: Any, ids_BT: Tensor, score_BT: Tensor, *, ends: bool = False) -> tuple[Tensor, Tensor | None]:
    """What the head sees where it predicts the scored tokens (N, E), and with `ends` after each row's last scored token (B, E).

    Runs packed, each prompt once where rows share it, on what `Decoder` supports. Other models run as they are, on padded rows.
    """
    if not score_BT.any(1).all() or unsupported(model) or (model.training and getattr(model.config, "attention_dropout", 0.0)):
        hidden_BTE = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        place_T = torch.arange(score_BT.shape[1], device=score_BT.device)
        last_B = (score_BT * place_T).amax(-1)
        at_end = at_true(hidden_BTE, place_T == last_B[:, None]) if ends else None
        return at_true(hidden_BTE[:, :-1], score_BT[:, 1:]), at_end
    packing = pack(ids_BT, score_BT, ends=ends)
    hidden_NE = Decoder(model).packed(packing, recompute=model.is_gradient_checkpointing and torch.is_grad_enabled())
    return hidden_NE.index_select(0, packing.read_M), None if packing.end_B is None else hidden_NE.index_select(0, packing.end_B)


def token_logp(model: Any, ids_BT: Tensor, score_BT: Tensor) -> Tensor:
    """log p of the scored tokens (B, T), nats."""
    return token_scores(model, ids_BT, score_BT, {"logp": chosen})["logp"]


def _score(hidden_NE: Tensor, at: Mapping[str, Tensor], head: Any, functions: Sequence[Score]) -> tuple[Tensor, ...]:
    if not functions:
        return ()
    logp_NV = torch.log_softmax(logits(head, hidden_NE) / at["temperature"], -1)
    return tuple(function(logp_NV, at) for function in functions)


def logits(head: Any, hidden_NE: Tensor) -> Tensor:
    """Float32 logits (N, V), computed in the precision of the head's weights whatever the body computes in."""
    with torch.autocast(hidden_NE.device.type, enabled=False):
        return head(hidden_NE.to(head.weight.dtype)).float()


def _scatter(value_N: Tensor, score_BT: Tensor) -> Tensor:
    blank = torch.zeros((*score_BT.shape, *value_N.shape[1:]), dtype=value_N.dtype, device=value_N.device)
    where = score_BT.reshape(*score_BT.shape, *[1] * (value_N.ndim - 1)).expand_as(blank)
    return blank.masked_scatter(where, value_N)
