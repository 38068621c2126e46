"""out/model: a Hugging Face folder of config.json and safetensors, checked against the model that the program started from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.errors import UserError
from pipelines.interrupted import differences
from pipelines.models.loading import load_tokenizer
from pipelines.models.tensors import INDEX, WEIGHTS, Stored, stored_tensors
from pipelines.store import replacing_folder

ADAPTER = "adapter_model.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
BESIDE = ("config.json", "generation_config.json")
NEUTRAL = {
    "transformers_version", "dtype", "torch_dtype", "use_cache", "_name_or_path", "architectures", "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip
"""Keys of a config that say nothing of what the weights compute."""
TOLD = 3
"""Differences that are named."""


@dataclass(frozen=True)
class Checked:
    """A model that may be taken. parameters: their number. tokenizer: the one that it is to have."""

    parameters: int
    tokenizer: Any
    _folder: Path
    _files: frozenset[Path]

    def write(self, target: Path) -> None:
        """Make it the model at `target`, whole or absent."""
        with replacing_folder(target) as folder:
            for file in sorted({*self._files, *(self._folder / name for name in (*BESIDE, INDEX))}):
                if file.is_file():
                    _link(file, folder / file.name)
            self.tokenizer.save_pretrained(folder)


def check(left: Path, init: Path, allow: Sequence[str]) -> Checked:
    """The model that the program left in the folder `left`.

    The tokenizer is that of `init`, from which the program's may not differ in vocabulary, unless `allow` names it.

    Raises:
        UserError: there is no model, it is malformed, holds what is no number, or is another than `allow` says; one sentence.
    """
    stored = _stored(left)
    if "architecture" not in allow and (changed := differences(_config(init), _config(left))):
        raise _wrong(f"it is of another architecture than the model it started from: {'; '.join(changed[:TOLD])} (`allow: [architecture]` takes it)")
    parameters = _loads(left)
    for name, tensor in stored.items():
        if tensor.floating and not torch.isfinite(tensor.read()).all():
            raise _wrong(f"tensor {name} holds values that are not finite")
    tokenizer = load_tokenizer(init, chat=False)
    if any((left / name).is_file() for name in TOKENIZER):
        theirs = load_tokenizer(left, chat=False)
        if "tokenizer" in allow:
            tokenizer = theirs
        elif theirs.get_vocab() != tokenizer.get_vocab():
            raise _wrong("its tokenizer has another vocabulary than that of the model it started from (`allow: [tokenizer]` takes it)")
    return Checked(parameters, tokenizer, left, frozenset(tensor.file for tensor in stored.values()))


def _stored(left: Path) -> dict[str, Stored]:
    if not left.is_dir():
        raise _wrong("is missing: the program left no model")
    if not (left / BESIDE[0]).is_file():
        raise _wrong(f"{BESIDE[0]} is missing")
    if not any((left / name).is_file() for name in (WEIGHTS, INDEX)):
        adapter = "; it holds an adapter, which is to be merged into the model" if (left / ADAPTER).is_file() else " (pickled weights are not read)"
        raise _wrong(f"{WEIGHTS} is missing{adapter}")
    try:
        return stored_tensors(left)
    except UserError as error:
        raise _wrong(str(error).removeprefix(f"{left}/")) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _wrong(f"{INDEX} is malformed") from None


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise _wrong(f"config.json cannot be used: {_line(error)}") from None
    return {name: value for name, value in config.to_dict().items() if name not in NEUTRAL}


def _loads(left: Path) -> int:
    """Load it whole, with a value for each of its weights and for nothing else."""
    loader: Any = AutoModelForCausalLM
    try:
        model, told = loader.from_pretrained(left, use_safetensors=True, trust_remote_code=False, dtype="auto", output_loading_info=True)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise _wrong(f"it cannot be loaded as a causal language model: {_line(error)}") from None
    for key, what in (("missing_keys", "has no tensor"), ("unexpected_keys", "has a tensor too many,"), ("mismatched_keys", "has another shape of")):
        if names := sorted(map(str, told[key])):
            raise _wrong(f"it {what} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
    return model.num_parameters()


def _link(source: Path, target: Path) -> None:
    """The same file by another name, a copy where the disk is another."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _wrong(why: str) -> UserError:
    return UserError(f"out/model: {why}")


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
