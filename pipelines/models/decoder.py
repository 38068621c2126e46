"""Incremental decoding for the Llama family with a static key-value cache.

Reads the weights of the Hugging Face module it is given, in place, so that training steps are seen at once. Rows are
left-aligned: row b keeps its keys at 0 .. length_b - 1, so no row attends to padding and positions need no shift.
Shapes: B rows, P prompt positions, S cache positions, H heads, K key-value heads, D head size, E hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from pipelines.errors import UserError

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")


class Decoder:
    """Prefill and single-token steps of one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        if reason := unsupported(model):
            raise UserError(f"generation.engine torch {reason}")
        config: Any = model.config
        self.body: Any = model.model
        self.head: Any = model.lm_head
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def new_cache(self, rows: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Uninitialised keys and values per layer, each (B, K, S, D)."""
        like = self.head.weight
        shape = (rows, self.kv_heads, length, self.head_size)
        return [(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.body.layers]

    def prefill(self, ids_BP: Tensor, length_B: Tensor, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Run right-padded prompts, fill `cache`, return the logits (B, V) after each row's last token."""
        positions = torch.arange(ids_BP.shape[1], device=ids_BP.device)[None]
        x = self.body.embed_tokens(ids_BP)
        cos, sin = self.body.rotary_emb(x, positions)
        for layer, (keys, values) in zip(self.body.layers, cache, strict=True):
            q, k, v = self._project(layer, x, cos, sin)
            keys[:, :, : k.shape[2]], values[:, :, : v.shape[2]] = k, v
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
            x = self._rest(layer, x, attended)
        last = x[torch.arange(len(x), device=x.device), length_B - 1]
        return self.head(self.body.norm(last))

    def step(self, ids_B: Tensor, length_B: Tensor, cache: list[tuple[Tensor, Tensor]], span: int) -> Tensor:
        """Append one token per row at position length_B, return logits (B, V). `span` > every length bounds the keys looked at."""
        x = self.body.embed_tokens(ids_B[:, None])
        cos, sin = self.body.rotary_emb(x, length_B[:, None])
        rows = torch.arange(len(ids_B), device=ids_B.device)
        visible = (torch.arange(span, device=ids_B.device) <= length_B[:, None])[:, None, None]
        for layer, (keys, values) in zip(self.body.layers, cache, strict=True):
            q, k, v = self._project(layer, x, cos, sin)
            keys[rows, :, length_B], values[rows, :, length_B] = k[:, :, 0], v[:, :, 0]
            attended = F.scaled_dot_product_attention(
                q, keys[:, :, :span], values[:, :, :span], attn_mask=visible, enable_gqa=self.heads != self.kv_heads
            )
            x = self._rest(layer, x, attended)
        return self.head(self.body.norm(x[:, 0]))

    def _project(self, layer: Any, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (B, H, P, D), rotated keys and values (B, K, P, D)."""
        attention = layer.self_attn
        normed = layer.input_layernorm(x)
        shape = (*x.shape[:2], -1, self.head_size)
        q, k = attention.q_proj(normed).view(shape), attention.k_proj(normed).view(shape)
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        v = attention.v_proj(normed).view(shape).transpose(1, 2)
        return _rotate(q.transpose(1, 2), cos, sin), _rotate(k.transpose(1, 2), cos, sin), v

    def _rest(self, layer: Any, x: Tensor, attended: Tensor) -> Tensor:
        """Output projection and MLP, with their residuals."""
        x = x + layer.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
        return x + layer.mlp(layer.post_attention_layernorm(x))


def unsupported(model: PreTrainedModel) -> str:
    """Why `Decoder` cannot run the model; '' where it can."""
    config: Any = model.config
    if config.model_type not in SUPPORTED:
        return f"decodes {', '.join(SUPPORTED)} models, got '{config.model_type}'"
    if getattr(config, "use_sliding_window", False) or (config.model_type == "mistral" and config.sliding_window):
        return "has no sliding-window attention, which this model's config asks for"
    return ""


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864), half-split layout."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos[:, None] + turned * sin[:, None]
