"""Policies from and to Hugging Face folders. Weights are safetensors only: no pickle is ever read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import CONFIG_NAME, cached_file, extract_commit_hash, logging

from pipelines import paths
from pipelines.errors import UserError
from pipelines.store import read_json, replacing_folder, write_json

GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes of tokenizers that are what their tokenizer.json says. AutoTokenizer would take the class of the model in their place where that is a
Qwen2, and split text by its rule."""

logging.disable_progress_bar()  # a stage has a bar of its own


def load_policy(
    source: str | Path, device: str = "cpu", revision: str | None = None, dtype: str = "float32", *, chat: bool = True
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Model and tokenizer from a folder or hub id. `dtype` auto keeps the stored one. chat: a chat template is needed.

    Training needs float32: at the rates of RL most updates are smaller than a step of bfloat16 and would vanish.

    Raises:
        UserError: not a model, a reward model, no chat template, or the hub cannot be reached.
    """
    if (Path(source) / paths.REWARD_MODEL).is_file():
        raise UserError(f"{source}: is a reward model, which says what a response is worth and is no policy")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: cannot be loaded as a causal language model: {str(error).strip().splitlines()[0]}") from error
    return model.to(device), load_tokenizer(source, revision, chat=chat)


def hub_commit(repository: str, revision: str | None) -> str | None:
    """The commit that `revision` (default: the main branch) of a hub's model is now; without the hub, of what it left on this machine.

    Raises:
        UserError: not a model, or the hub cannot be reached.
    """
    try:
        return extract_commit_hash(cached_file(repository, CONFIG_NAME, revision=revision), None)
    except (OSError, ValueError) as error:
        raise UserError(f"{repository}: cannot be loaded as a causal language model: {str(error).strip().splitlines()[0]}") from error


def load_tokenizer(source: str | Path, revision: str | None = None, *, chat: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id. chat: it must have a chat template.

    Raises:
        UserError: there is none, it has no chat template, or the hub cannot be reached.
    """
    try:
        generic = get_tokenizer_config(source, revision=revision).get("tokenizer_class") in GENERIC
        kind: Any = PreTrainedTokenizerFast if generic else AutoTokenizer
        tokenizer = kind.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: its tokenizer cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    if chat and tokenizer.chat_template is None:
        raise UserError(f"{source}: its tokenizer has no chat template; choose an instruction-tuned model or add chat_template.jinja")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_policy(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A complete Hugging Face folder (safetensors, config, tokenizer, chat template), whole or absent."""
    with replacing_folder(path) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def write_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write down which vocabulary the token ids in a folder of rollouts are of."""
    write_json(folder / paths.VOCABULARY, {"sha256": _vocabulary(tokenizer)})


def same_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the token ids in a folder of rollouts mean the same text to this tokenizer."""
    return read_json(folder / paths.VOCABULARY)["sha256"] == _vocabulary(tokenizer)


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()
