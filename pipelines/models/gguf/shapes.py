"""What a GGUF file's settings mean for each architecture: the config, and the tensors with their shapes that the file must hold.

A setting or a tensor that is not named here is refused and not passed over: scaled rotary positions, experts or a soft cap change what a model
computes, and a file that is read without them gives another model and no error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import Gemma3TextConfig, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from pipelines.errors import UserError
from pipelines.models.gguf.header import Header
from pipelines.models.gguf.tokenizer import ends

CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig
}  # fmt: skip
"""`general.architecture` -> the class of its config."""
SETTINGS = {"context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size", "rope.dimension_count", "rope.freq_base"}
SETTINGS |= {f"attention.{name}" for name in ("head_count", "head_count_kv", "key_length", "value_length", "layer_norm_rms_epsilon")}
"""Settings `ARCHITECTURE.*` that all four have."""
OWN = {"gemma3": {"attention.sliding_window"}}
HARMLESS = {"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "expert_count": 0, "expert_used_count": 0, "attention.causal": True}
"""Settings that say nothing as long as they have this value."""
GEMMA3_PATTERN, GEMMA3_LOCAL_THETA, GEMMA3_27B_LAYERS = 6, 10_000.0, 62
"""Every sixth layer sees the whole text, the others a window, with rotary positions of their own; the 27B scales attention otherwise. Constants in
llama.cpp and not in the file."""


def read_config(header: Header) -> PreTrainedConfig:
    """The config of the model, its special tokens included.

    Raises:
        UserError: an architecture or a setting that is not read, or one that is missing.
    """
    architecture = header.architecture
    if architecture not in CONFIGS:
        known = ", ".join(CONFIGS)
        raise UserError(f"{header.path}: is a model of the architecture '{architecture}', which is not read from GGUF; {known} are")
    given = {key.partition(".")[2]: value for key, value in header.settings.items() if key.startswith(f"{architecture}.")}
    for key, value in given.items():
        if key not in SETTINGS | OWN.get(architecture, set()) and (key not in HARMLESS or HARMLESS[key] != value):
            raise UserError(f"{header.path}: has {architecture}.{key} = {str(value)[:40]}, which is not read; without it the model would be another")
    try:
        config = CONFIGS[architecture](**_sizes(header, given), **_tokens(header))
    except KeyError as error:
        raise UserError(f"{header.path}: the GGUF file is damaged: it has no setting {architecture}.{error.args[0]}") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{header.path}: the GGUF file is damaged: its settings make no {architecture} model: {str(error).splitlines()[0]}") from None
    _hold(header, config)
    return config


def _sizes(header: Header, given: dict[str, Any]) -> dict[str, Any]:
    heads, hidden = given["attention.head_count"], given["embedding_length"]
    head_dim = given.get("attention.key_length", hidden // heads)
    if {given.get("rope.dimension_count", head_dim), given.get("attention.value_length", head_dim)} != {head_dim}:
        raise ValueError("keys, values and rotary positions of different sizes")
    theta = _decimal(given.get("rope.freq_base", 10_000.0))
    sizes = {
        "vocab_size": len(header.settings["tokenizer.ggml.tokens"]),
        "hidden_size": hidden,
        "intermediate_size": given["feed_forward_length"],
        "num_hidden_layers": given["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": given["attention.head_count_kv"],
        "head_dim": head_dim,
        "max_position_embeddings": given["context_length"],
        "rms_norm_eps": _decimal(given["attention.layer_norm_rms_epsilon"]),
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    if header.architecture == "gemma3":
        local = {"rope_type": "default", "rope_theta": GEMMA3_LOCAL_THETA}
        layers = range(1, given["block_count"] + 1)
        sizes |= {
            "rope_parameters": {"full_attention": sizes["rope_parameters"], "sliding_attention": local},
            "sliding_window": given["attention.sliding_window"],
            "layer_types": ["sliding_attention" if layer % GEMMA3_PATTERN else "full_attention" for layer in layers],
            "query_pre_attn_scalar": hidden // heads if given["block_count"] == GEMMA3_27B_LAYERS else head_dim,
        }
    elif header.architecture == "qwen2" and head_dim != hidden // heads:
        raise ValueError("heads that are not a share of the hidden size")
    elif header.architecture != "qwen2":
        sizes["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    return sizes


def _tokens(header: Header) -> dict[str, Any]:
    """Ids of special tokens; the first end is the tokenizer's own, and all of them stand in the generation config."""
    settings, stop = header.settings, ends(header)
    named = {"bos_token_id": settings.get("tokenizer.ggml.bos_token_id"), "pad_token_id": settings.get("tokenizer.ggml.padding_token_id")}
    return named | {"eos_token_id": stop[0] if stop else None, "dtype": "bfloat16"}


def _decimal(value: float) -> float:
    """A float32 of the file as the number that was meant: 1e-05, not 9.999999747378752e-06. Both are the same in float32."""
    return float(str(np.float32(value)))


def _hold(header: Header, config: PreTrainedConfig) -> None:
    """Is each tensor there that the config asks for, with its shape, and no other?"""
    expected = _expected(header.architecture, config, header.tensors.keys())
    for name, shape in expected.items():
        if name not in header.tensors:
            raise UserError(f"{header.path}: the GGUF file is damaged: it has no tensor {name}")
        if (found := tuple(reversed(header.tensors[name].shape))) != shape:
            raise UserError(f"{header.path}: the GGUF file is damaged: {name} has the shape {found}, expected {shape}")
    if strange := sorted(header.tensors.keys() - expected.keys()):
        raise UserError(f"{header.path}: has the tensor {strange[0]}, which is not read; without it the model would be another")


def _expected(architecture: str, config: Any, there: Any) -> dict[str, tuple[int, ...]]:
    """Tensor -> its shape, slowest dimension first."""
    hidden, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    block: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hidden,), "ffn_norm.weight": (hidden,),
        "attn_q.weight": (queries, hidden), "attn_k.weight": (keys, hidden), "attn_v.weight": (keys, hidden), "attn_output.weight": (hidden, queries),
        "ffn_gate.weight": (inner, hidden), "ffn_up.weight": (inner, hidden), "ffn_down.weight": (hidden, inner),
    }  # fmt: skip
    if architecture in ("qwen3", "gemma3"):
        block |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
    if architecture == "gemma3":
        block |= {"post_attention_norm.weight": (hidden,), "post_ffw_norm.weight": (hidden,)}
    if architecture == "qwen2" or "blk.0.attn_q.bias" in there:
        block |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    if architecture != "qwen2" and "blk.0.attn_output.bias" in there:
        block |= {"attn_output.bias": (hidden,)}
    whole = {"token_embd.weight": (config.vocab_size, hidden), "output_norm.weight": (hidden,)}
    if "output.weight" in there:
        whole |= {"output.weight": (config.vocab_size, hidden)}
    return whole | {f"blk.{layer}.{name}": shape for layer in range(config.num_hidden_layers) for name, shape in block.items()}
