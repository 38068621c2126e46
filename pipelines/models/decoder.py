"""The Llama family's forward pass: incremental decoding with a static key-value cache, and packed sequences with gradient.

Reads the weights of the Hugging Face module it is given, in place, so that training steps are seen at once. In the cache rows
are left-aligned: row b keeps its keys at 0 .. length_b - 1, so no row attends to padding and positions need no shift.
Shapes: B rows, P prompt positions, S cache positions, H heads, K key-value heads, D head size, E hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from pipelines.errors import UserError
from pipelines.models.packing import Packing
from pipelines.models.sharding import within

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")


class Decoder:
    """Prefill, single-token steps and packed forward of one model. head: another module's in place of the model's own."""

    def __init__(self, model: PreTrainedModel, head: Any = None) -> None:
        if reason := unsupported(model):
            raise UserError(f"generation.engine torch {reason}")
        config: Any = model.config
        self.body: Any = model.base_model
        self.head: Any = model.get_output_embeddings() if head is None else head
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def new_cache(self, rows: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Uninitialised keys and values per layer, each (B, K, S, D)."""
        like = self.body.embed_tokens.weight
        shape = (rows, self.kv_heads, length, self.head_size)
        return [(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.body.layers]

    def prefill(self, ids_BP: Tensor, length_B: Tensor, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Run right-padded prompts, fill `cache`, return the logits (B, V) after each row's last token."""
        positions = torch.arange(ids_BP.shape[1], device=ids_BP.device)[None]
        x = self.body.embed_tokens(ids_BP)
        cos, sin = self.body.rotary_emb(x, positions)
        for layer, (keys, values) in zip(self.body.layers, cache, strict=True):
            q, k, v = (part.transpose(1, 2) for part in self._project(layer, x, cos, sin))
            keys[:, :, : k.shape[2]], values[:, :, : v.shape[2]] = k, v
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
            x = self._rest(layer, x, attended.transpose(1, 2).flatten(2))
        return self._logits(x[torch.arange(len(x), device=x.device), length_B - 1])

    def step(self, ids_B: Tensor, length_B: Tensor, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Append one token per row at position length_B, return logits (B, V). All of the cache is multiplied, so it should have little room."""
        x = self.body.embed_tokens(ids_B[:, None])
        cos, sin = self.body.rotary_emb(x, length_B[:, None])
        rows = torch.arange(len(ids_B), device=ids_B.device)
        hidden = torch.arange(cache[0][0].shape[2], device=ids_B.device) > length_B[:, None]
        unseen_BS = torch.zeros(hidden.shape, device=ids_B.device).masked_fill(hidden, float("-inf"))
        for layer, (keys, values) in zip(self.body.layers, cache, strict=True):
            q, k, v = self._project(layer, x, cos, sin)
            keys[rows, :, length_B], values[rows, :, length_B] = k[:, 0], v[:, 0]
            x = self._rest(layer, x, self._attend(q, keys, values, unseen_BS))
        return self._logits(x[:, 0])

    def _attend(self, q_B1HD: Tensor, keys_BKSD: Tensor, values_BKSD: Tensor, unseen_BS: Tensor) -> Tensor:
        """One query a row (B, 1, H * D). The queries that share keys meet them in one product, which on CPUs is up to ten times as fast as the
        library's attention, as long as keys and values are contiguous; scores are float32."""
        rows = len(q_B1HD)
        q = (q_B1HD * self.head_size**-0.5).view(rows * self.kv_heads, -1, self.head_size)
        scores = torch.bmm(q, keys_BKSD.flatten(0, 1).transpose(1, 2)).float().view(rows, self.heads, -1) + unseen_BS[:, None]
        chances = scores.softmax(-1).to(values_BKSD.dtype).view(rows * self.kv_heads, -1, scores.shape[-1])
        return torch.bmm(chances, values_BKSD.flatten(0, 1)).view(rows, 1, -1)

    def _logits(self, x_BE: Tensor) -> Tensor:
        return self.head(self.body.norm(x_BE).to(self.head.weight.dtype))

    def packed(self, packing: Packing, *, recompute: bool = False) -> Tensor:
        """Hidden states (N, E) that the head sees. With `recompute` a layer's activations are computed again in the backward pass."""
        x = self.body.embed_tokens(packing.ids_N)[None]
        cos, sin = self.body.rotary_emb(x, packing.position_N[None])
        for layer in self.body.layers:
            if recompute:
                x = checkpoint(within, layer, self._packed_layer, x, cos, sin, packing, use_reentrant=False)
            else:
                x = within(layer, self._packed_layer, x, cos, sin, packing)
        return self.body.norm(x)[0]

    def _packed_layer(self, layer: Any, x: Tensor, cos: Tensor, sin: Tensor, packing: Packing) -> Tensor:
        q, k, v = self._project(layer, x, cos, sin)
        return self._rest(layer, x, packing.attend(q[0], k[0], v[0])[None])

    def _project(self, layer: Any, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (B, P, H, D), rotated keys and values (B, P, K, D)."""
        attention = layer.self_attn
        normed = layer.input_layernorm(x)
        shape = (*x.shape[:2], -1, self.head_size)
        q, k, v = attention.q_proj(normed).view(shape), attention.k_proj(normed).view(shape), attention.v_proj(normed).view(shape)
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        return _rotate(q, cos, sin).to(v.dtype), _rotate(k, cos, sin).to(v.dtype), v

    def _rest(self, layer: Any, x: Tensor, attended: Tensor) -> Tensor:
        """Output projection and MLP, with their residuals; attended: (B, P, H * D)."""
        x = x + layer.self_attn.o_proj(attended)
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
    """Rotary position embedding (arXiv 2104.09864) of (B, P, H, D), half-split layout."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos[:, :, None] + turned * sin[:, :, None]
