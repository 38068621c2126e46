"""Tiny GGUF files with random weights, written by llama.cpp's own package the way its converter writes them."""

from __future__ import annotations

import json

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipelines.models.tokenizer import train_tokenizer

TEXTS = ["one two three 12 1212 twelve", "def f(x):\n    return x + 12", "The cat isn't on the mat.  Two  spaces", "naïve café 😀 12,000"] * 5
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
WINDOW = 16
MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"num_hidden_layers": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"num_hidden_layers": 2, "tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"num_hidden_layers": 2, "head_dim": 128, "tie_word_embeddings": False}),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {"num_hidden_layers": 7, "head_dim": 32, "sliding_window": WINDOW, "query_pre_attn_scalar": 32}),
}
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
}  # fmt: skip
NORMS = {"post_attention_layernorm": "ffn_norm"}
GEMMA = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}


def tiny(architecture, **changes):
    """(model with random weights, tokenizer). changes: of its config."""
    tokenizer = train_tokenizer(TEXTS, 400)
    config_class, model_class, more = MODELS[architecture]
    torch.manual_seed(1)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = model_class(config_class(vocab_size=len(tokenizer), **SIZES, **more | ids | changes)).eval()
    with torch.no_grad():
        for _name, weight in model.named_parameters():
            weight.add_(torch.randn_like(weight) * (0.1 if weight.dim() == 1 else 0.05))
    return model, tokenizer


def permuted(weight, heads):
    """Rows as llama.cpp's converter puts them: pairs of a rotation side by side."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def tensors(architecture, model):
    """GGUF name -> array, of every parameter."""
    found = {}
    for name, weight in model.named_parameters():
        place, suffix = name.rpartition(".")[::2]
        head = ""
        if place.startswith("model.layers."):
            layer, place = place.removeprefix("model.layers.").split(".", 1)
            head = f"blk.{layer}."
        array = weight.detach().numpy().copy()
        names = NAMES | (GEMMA if architecture == "gemma3" else NORMS)
        if architecture == "llama" and names[place] in ("attn_q", "attn_k"):
            array = permuted(array, model.config.num_attention_heads if names[place] == "attn_q" else model.config.num_key_value_heads)
        if architecture == "gemma3" and names[place].endswith("norm"):
            array = array + 1
        found[f"{head}{names[place]}.{suffix}"] = array
    return found


def write(path, architecture, model, tokenizer, kind="F32", pre="gpt-2", leave_out=(), add=None, settings=None):
    """Write the file; matrices in the type `kind`. leave_out: keys and tensors. add: name -> array. settings: key -> integer, float or text."""
    writer = GGUFWriter(path, architecture)
    config = model.config
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    given = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size, "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size, "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads, "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope["rope_theta"]),
    }  # fmt: skip
    if architecture == "llama":
        given["rope.dimension_count"] = config.hidden_size // config.num_attention_heads
    if architecture in ("qwen3", "gemma3"):
        given |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if architecture == "gemma3":
        given["attention.sliding_window"] = config.sliding_window
    keyed = {f"{architecture}.{key}": value for key, value in given.items()} | (settings or {})
    add_value = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in keyed.items():
        if key not in leave_out:
            add_value[type(value)](key, value)
    if "tokenizer" not in leave_out:
        write_tokenizer(writer, tokenizer, pre, leave_out)
    for name, array in (tensors(architecture, model) | (add or {})).items():
        if name not in leave_out:
            wanted = GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
            writer.add_tensor(name, gguf.quantize(array.astype(np.float32), wanted), raw_dtype=wanted)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


def write_tokenizer(writer, tokenizer, pre, leave_out=()):
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = {entry["content"]: 3 if entry["special"] else 4 for entry in content["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([special.get(token, 1) for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    if "chat_template" not in leave_out:
        writer.add_chat_template(tokenizer.chat_template)
