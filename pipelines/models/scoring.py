"""What a policy says of given tokens, computed only where it is needed.

Shapes: B sequences, T tokens of the padded sequence, N scored positions, E hidden size, V vocabulary. Only the N scored
positions meet the vocabulary, `CHUNK` logits at a time, so (B, T, V) never exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

CHUNK = 2**24
"""Logits (positions x vocabulary) held at once; more are computed in chunks and recomputed in the backward pass."""

SHARING = 1.25
"""Tokens of whole rows over tokens with shared prompts from which on prompts are shared."""

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
    position, beside `target`. on_hidden: functions of what the head sees, (N, E) -> (N, ...). after: (name, token): also the
    log-probability (B,) of that token right after the last scored one.

    Rows are right-padded and attention is causal, so padding needs no mask. `score_BT[:, 0]` must be false: nothing
    predicts the first token.
    """
    hidden_BTE = hidden_states(model, ids_BT, score_BT)
    at_BT = score_BT[:, 1:]
    hidden_NE = hidden_BTE[:, :-1][at_BT]
    at = {"target": ids_BT[score_BT], **{name: value[score_BT] for name, value in (along or {}).items()}}
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
    scores = dict(zip(wanted, columns, strict=True)) | {name: function(hidden_NE) for name, function in (on_hidden or {}).items()}
    made = {name: _scatter(value, score_BT) for name, value in scores.items()}
    if after:
        last_B = (score_BT * torch.arange(score_BT.shape[1], device=score_BT.device)).amax(-1)
        ends_BE = hidden_BTE[torch.arange(len(last_B), device=last_B.device), last_B]
        made[after[0]] = torch.log_softmax(head(ends_BE).float(), -1)[:, after[1]]
    return made


def hidden_states(model: Any, ids_BT: Tensor, score_BT: Tensor) -> Tensor:
    """What the head sees at every position up to the last scored one of its row (B, T, E).

    What stands before the first scored token of a row is its prompt; where rows share prompts and that saves enough, each prompt runs once
    and the responses attend to its keys and values, gradients included.
    """
    shared = _shared(model, ids_BT, score_BT) if score_BT.any(1).all() else None
    if shared is None:
        return model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    prompt_UP, of_B, prompt_length_B, most = shared
    rows, width = torch.arange(len(ids_BT), device=ids_BT.device), ids_BT.shape[1]
    cache = DynamicCache(config=model.config)
    first_UPE = model.base_model(input_ids=prompt_UP, past_key_values=cache, use_cache=True).last_hidden_state
    cache.batch_select_indices(of_B)
    longest = prompt_UP.shape[1]
    place_BR = prompt_length_B[:, None] + torch.arange(most, device=ids_BT.device)
    response_BR = ids_BT[rows[:, None], place_BR.clamp(max=width - 1)]
    seen_BS = torch.ones((len(rows), longest + most), dtype=torch.long, device=ids_BT.device)
    seen_BS[:, :longest] = torch.arange(longest, device=ids_BT.device) < prompt_length_B[:, None]
    rest_BRE = model.base_model(
        input_ids=response_BR, past_key_values=cache, use_cache=True, attention_mask=seen_BS, position_ids=place_BR
    ).last_hidden_state  # fmt: skip
    both = torch.cat([first_UPE.flatten(0, 1), rest_BRE.flatten(0, 1)])
    position_BT = torch.arange(width, device=ids_BT.device).expand_as(ids_BT)
    in_prompt = of_B[:, None] * longest + position_BT
    in_response = first_UPE.shape[0] * longest + rows[:, None] * most + (position_BT - prompt_length_B[:, None]).clamp(max=most - 1)
    return both[torch.where(position_BT < prompt_length_B[:, None], in_prompt, in_response)]


def _shared(model: Any, ids_BT: Tensor, score_BT: Tensor) -> tuple[Tensor, Tensor, Tensor, int] | None:
    """(distinct prompts (U, P) right-padded, which is each row's (B,), its length by row (B,), longest stretch from the first to the last scored
    token), None where running rows whole is as good."""
    config = model.config
    if getattr(config, "use_sliding_window", False) or (config.model_type == "mistral" and config.sliding_window):
        return None
    length_B = score_BT.int().argmax(1)
    longest = int(length_B.max())
    most = int(((score_BT * torch.arange(1, score_BT.shape[1] + 1, device=ids_BT.device)).amax(1) - length_B).max())
    prompt_BP = ids_BT[:, :longest].masked_fill(torch.arange(longest, device=ids_BT.device) >= length_B[:, None], -1)
    prompt_UP, of_B = prompt_BP.unique(dim=0, return_inverse=True)
    apart = len(prompt_UP) * longest + len(ids_BT) * most
    return (prompt_UP.clamp(min=0), of_B, length_B, most) if apart * SHARING <= ids_BT.numel() else None


def token_logp(model: Any, ids_BT: Tensor, score_BT: Tensor) -> Tensor:
    """log p of the scored tokens (B, T), nats."""
    return token_scores(model, ids_BT, score_BT, {"logp": chosen})["logp"]


def _score(hidden_NE: Tensor, at: Mapping[str, Tensor], head: Any, functions: Sequence[Score]) -> tuple[Tensor, ...]:
    if not functions:
        return ()
    logp_NV = torch.log_softmax(head(hidden_NE).float() / at["temperature"], -1)
    return tuple(function(logp_NV, at) for function in functions)


def _scatter(value_N: Tensor, score_BT: Tensor) -> Tensor:
    blank = torch.zeros((*score_BT.shape, *value_N.shape[1:]), dtype=value_N.dtype, device=value_N.device)
    where = score_BT.reshape(*score_BT.shape, *[1] * (value_N.ndim - 1)).expand_as(blank)
    return blank.masked_scatter(where, value_N)
