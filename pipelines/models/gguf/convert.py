"""A GGUF file -> a Hugging Face folder: weights taken out of their blocks and rounded to bfloat16, config, generation config, tokenizer, template.

Weights are as transformers reads them from GGUF (rotary pairs put back for Llama, norms for Gemma), with numbers of the package `gguf`; config and
tokenizer are our own (`shapes.py`, `tokenizer.py`), for transformers' leave out settings and split some texts otherwise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.models.gguf.header import Header, read_header

HELD, UNPACKING = 2, 16
"""Bytes that a conversion holds for each weight, in bfloat16; and for each of the largest tensor, in float32 while it is taken out of its blocks.
Measured in all: 3.5 GB for 268 million weights with an embedding of 168 million, 5.8 GB for 1,777 million with one of 233 million."""


def examined(source: Path, *, chat: bool = True) -> Header:
    """The head of a GGUF file that can be converted on this machine. chat: a chat template is needed.

    Raises:
        UserError: why it cannot.
    """
    from pipelines.models.gguf.shapes import CONFIGS, read_config

    header = read_header(source)
    if header.architecture not in CONFIGS:
        known = ", ".join(CONFIGS)
        raise UserError(f"{source}: is a model of the architecture '{header.architecture}', which is not read from GGUF; {known} are")
    if not header.settings.get("tokenizer.ggml.tokens"):
        raise UserError(f"{source}: the tokenizer is missing from the GGUF file (tokenizer.ggml.tokens)")
    read_config(header)
    for kind in header.kinds():
        if not _readable(kind):
            raise UserError(f"{source}: its weights are stored as {kind}, which the package gguf {metadata.version('gguf')} cannot read")
    largest = max((tensor.elements for tensor in header.tensors.values()), default=0)
    needed, there = header.elements * HELD + largest * UNPACKING, available_memory()
    if needed > there:
        gigabytes = f"{needed / 1e9:.1f} GB of memory to convert its {header.elements / 1e9:.2f} billion weights, and {there / 1e9:.1f} GB are free"
        raise UserError(f"{source}: is too large for this machine: it needs {gigabytes}")
    if chat and not header.settings.get("tokenizer.chat_template"):
        raise UserError(f"{source}: its tokenizer has no chat template; choose an instruction-tuned model")
    return header


def convert(source: Path, folder: Path, *, chat: bool = True, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Write the model of a GGUF file into `folder`, which is there. chat: a chat template is needed. say: told what is being done.

    Returns:
        Number of parameters, and what the manifest says of it: quantisation types, and by what they were turned into bfloat16.

    Raises:
        UserError: the file cannot be converted; why.
    """
    from transformers import GenerationConfig

    from pipelines.models.gguf.shapes import read_config
    from pipelines.models.gguf.tokenizer import ends, read_tokenizer

    header = examined(source, chat=chat)
    say(f"{source.name}: {header.architecture}, {header.elements:,} weights in {', '.join(header.kinds())}, converted to bfloat16")
    tokenizer = read_tokenizer(header)
    model = _weights(header, read_config(header))
    special = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(eos_token_id=ends(header) or None, **special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    converted = {"to": "bfloat16", "by": {name: metadata.version(name) for name in ("gguf", "transformers")}}
    return {"parameters": header.elements, "architecture": header.architecture, "quantisation": header.kinds(), "converted": converted}


def available_memory() -> int:
    """Bytes of memory that are free for a process, within the limit of its control group where there is one."""
    if sys.platform != "linux":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return free


def _readable(kind: str) -> bool:
    """Can the package turn blocks of this type into numbers?"""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    known = GGMLQuantizationType[kind]
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[known][1]), np.uint8), known)
    except NotImplementedError:
        return False
    return True


def _weights(header: Header, config: Any) -> Any:
    """The model in bfloat16, every one of its weights from the file and a finite number."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig, modeling_gguf_pytorch_utils
    from transformers.utils import logging

    source = header.path
    logging.disable_progress_bar()  # a command has a line of its own
    modeling_gguf_pytorch_utils.tqdm = lambda rows, **_: rows  # which that does not reach
    settings = {"gguf_file": source.name, "config": config, "dtype": torch.bfloat16, "quantization_config": GgufConfig(dequantize=True)}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(source.parent, output_loading_info=True, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{source}: the GGUF file cannot be converted: {str(error).strip().splitlines()[0]}") from error
    model, told = loaded
    if missing := sorted(told["missing_keys"]):
        raise UserError(f"{source}: the GGUF file is damaged: it has no weights for {missing[0]}")
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"{source}: the GGUF file is damaged: {name} has weights that are not finite")
    return model
