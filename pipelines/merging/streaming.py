"""The merge engine: headers first, then one tensor at a time from files to file, in fp32.

Why not load the models: three 7B models in fp32 are 84 GB, one tensor of them is not one. The output's headers are planned
from the inputs' headers, so every byte is written once and in order. What does not fit together stops the merge before
anything is written, and what is not finite stops it with the tensor's name; the output folder appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import UserError
from pipelines.merging.checkpoints import INDEX, Slice, header, plan, raw, tensors
from pipelines.merging.methods import overlap
from pipelines.store import replacing_folder

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "*.py",
)
"""Files beside the weights that make a folder a model; taken from the base."""
SAME = ("model_type", "architectures", "vocab_size", "tie_word_embeddings")
"""Entries of config.json that must agree: equal names and shapes alone would let a tied and an untied head through."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class MergeSummary:
    """What a merge saw. Per expert, in the order given: share of parameters it changed, and share that it alone changed."""

    tensors: int
    parameters: int
    changed: tuple[float, ...]
    alone: tuple[float, ...]


@dataclass(frozen=True)
class Inputs:
    """The checkpoints of one merge, known to fit together."""

    base: Path
    models: tuple[Path, ...]
    slices: dict[str, list[Slice]]
    """Tensor name -> its place in the base, then in each model."""

    def read(self, name: str) -> list[torch.Tensor]:
        """One tensor from every checkpoint, as stored.

        Raises:
            UserError: an input holds NaN or inf.
        """
        found = [place.read() for place in self.slices[name]]
        for tensor, folder in zip(found, (self.base, *self.models), strict=True):
            if tensor.is_floating_point() and not finite(tensor):
                raise UserError(f"{folder}: tensor '{name}' holds NaN or inf")
        return found

    def floating(self) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Every tensor that can be merged, in fp32: base, experts."""
        for name in sorted(self.slices):
            if self.slices[name][0].dtype.is_floating_point:
                base, *experts = (tensor.float() for tensor in self.read(name))
                yield base, experts


def finite(tensor: torch.Tensor) -> bool:
    """No NaN and no inf: both survive into the extremes, which cost one pass and no memory."""
    return tensor.numel() == 0 or all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


def open_inputs(base: Path, models: tuple[Path, ...]) -> Inputs:
    """Read all headers and check that the checkpoints fit together.

    Raises:
        UserError: no models, or a checkpoint differs from the base in names, shapes, architecture or vocabulary.
    """
    if not models:
        raise UserError("merging: there is no model to merge")
    reference = tensors(base)
    if not reference:
        raise UserError(f"{base}: holds no tensors")
    slices = {name: [place] for name, place in reference.items()}
    for model in models:
        _check_configs(base, model)
        found = tensors(model)
        for name in sorted(reference.keys() ^ found.keys()):
            has, lacks = (base, model) if name in reference else (model, base)
            raise UserError(f"{lacks}: tensor '{name}' is missing, {has} has it")
        for name, place in found.items():
            expected = reference[name]
            if place.shape != expected.shape:
                raise UserError(f"{model}: tensor '{name}' has shape {list(place.shape)}, expected {list(expected.shape)} as in {base}")
            if place.dtype.is_floating_point != expected.dtype.is_floating_point:
                raise UserError(f"{model}: tensor '{name}' is {place.dtype}, expected {expected.dtype} as in {base}")
            slices[name].append(place)
    return Inputs(base, models, slices)


def stream(
    inputs: Inputs, method: Callable[..., torch.Tensor], counts: torch.Tensor | None, dtype: torch.dtype, shard_bytes: int, out: Path
) -> MergeSummary:
    """Merge every tensor by `method` into the model folder `out`. `counts`: whole-model statistics, for methods that take them."""
    shapes = {name: places[0].shape for name, places in inputs.slices.items()}
    dtypes = {name: dtype if places[0].dtype.is_floating_point else places[0].dtype for name, places in inputs.slices.items()}
    sizes = {name: torch.Size(shape).numel() * dtypes[name].itemsize for name, shape in shapes.items()}
    shards = plan(sizes, shard_bytes)
    totals = torch.zeros(len(inputs.models), 2, dtype=torch.int64)
    with replacing_folder(out) as folder:
        _copy_companions(inputs.base, folder, dtype)
        for shard in shards:
            with (folder / shard.name).open("wb") as file:
                file.write(header(shard.names, shapes, dtypes))
                for name in shard.names:
                    merged, changes = _merge_one(inputs, name, method, counts, dtype)
                    file.write(raw(merged))
                    totals += changes
        if len(shards) > 1:
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": {name: s.name for s in shards for name in s.names}}
            (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    alone, changed = (totals[:, 0] / parameters).tolist(), (totals.sum(1) / parameters).tolist()
    return MergeSummary(len(shapes), parameters, tuple(changed), tuple(alone))


def _merge_one(
    inputs: Inputs, name: str, method: Callable[..., torch.Tensor], counts: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | int]:
    """One merged tensor in its stored dtype, and who changed how many of its entries."""
    found = inputs.read(name)
    if not found[0].is_floating_point():
        if any(not torch.equal(found[0], other) for other in found[1:]):
            raise UserError(f"merging: tensor '{name}' is {found[0].dtype} and differs between the models; only floating point can be merged")
        return found[0], 0
    base, *experts = (tensor.float() for tensor in found)
    merged = method(base, experts) if counts is None else method(base, experts, counts)
    stored = merged.to(dtype)
    if not finite(stored):
        raise UserError(f"merging: tensor '{name}' leaves the range of {dtype} once merged")
    return stored, overlap(base, experts)


def _check_configs(base: Path, model: Path) -> None:
    """Architecture and vocabulary must agree; token ids must mean the same."""
    ours, theirs = _json(base / "config.json"), _json(model / "config.json")
    for key in SAME:
        if ours.get(key) != theirs.get(key):
            raise UserError(f"{model / 'config.json'}: {key} is {theirs.get(key)!r}, expected {ours.get(key)!r} as in {base}")
    if _vocabulary(base) != _vocabulary(model):
        raise UserError(f"{model / 'tokenizer.json'}: the vocabulary differs from that of {base}")


def _vocabulary(folder: Path) -> Any:
    """Tokens and added tokens of a fast tokenizer; None for a model without one."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = _json(file)
    return tokenizer.get("model", {}).get("vocab"), [(token["id"], token["content"]) for token in tokenizer.get("added_tokens", [])]


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a Hugging Face model folder")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON: {error}") from None


def _copy_companions(base: Path, folder: Path, dtype: torch.dtype) -> None:
    """Config, generation config, tokenizer and chat template, with the stored dtype corrected."""
    for file in sorted({file for pattern in COPIED for file in base.glob(pattern) if file.is_file()}):
        shutil.copyfile(file, folder / file.name)
    config = _json(base / "config.json")
    named = {key: str(dtype).removeprefix("torch.") for key in ("dtype", "torch_dtype") if key in config}
    (folder / "config.json").write_text(json.dumps(config | named, indent=2, sort_keys=True) + "\n")
