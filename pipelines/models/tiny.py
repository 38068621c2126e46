"""A small decoder trained from scratch, so that the whole pipeline runs where no model hub can be reached.

It is an ordinary Llama or Qwen2 architecture (RMSNorm, rotary positions, SwiGLU, tied embeddings): whatever loads those
loads this.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from pipelines.config.training import ArchitectureSettings
from pipelines.seeding import key

FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}


def tiny_model(settings: ArchitectureSettings, tokenizer: PreTrainedTokenizerFast, seed: int, device: str = "cpu") -> Any:
    """A freshly initialised model in float32; equal seeds give equal weights."""
    config_class, model_class = FAMILIES[settings.family]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        initializer_range=0.02,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "initial weights") % 2**63)
        model = model_class(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model.to(device)
