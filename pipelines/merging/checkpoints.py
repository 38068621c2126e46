"""Hugging Face checkpoints as named slices of files: safetensors headers read first, tensors one at a time, no pickle.

A safetensors file is 8 bytes of little-endian length N, N bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the
data. Tensors are read with plain reads, not through a memory map, so that the memory in use is what one tensor needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Slice:
    """Where one tensor lies: bytes `start` to `start + size` of `file`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def read(self, start: int, stop: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Elements `start` to `stop` as stored, flat; in `out` if it is given and of the stored dtype.

        Raises:
            UserError: the file ends before them.
        """
        if start >= stop:
            return torch.empty(0, dtype=self.dtype)
        buffer = out if out is not None and out.dtype == self.dtype else torch.empty(stop - start, dtype=self.dtype)
        view, done = buffer.view(torch.uint8).numpy().data, 0
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start + start * self.dtype.itemsize)
            while done < len(view) and (got := file.readinto(view[done:])):
                done += got
        if done < len(view):
            raise UserError(f"{self.file}: it ends within tensor data that its header promises")
        return buffer


def tensors(folder: Path) -> dict[str, Slice]:
    """Every tensor of a checkpoint folder by name, from the headers alone.

    Raises:
        UserError: no safetensors, a header that does not fit its file, an index that names what no shard holds.
    """
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: expected {WEIGHTS} or {INDEX} (pickled weights are not read)")
    return _header(folder / WEIGHTS)


def _indexed(folder: Path) -> dict[str, Slice]:
    """All tensors that a sharded checkpoint's index names."""
    where = json.loads((folder / INDEX).read_text()).get("weight_map", {})
    shards: dict[str, dict[str, Slice]] = {}
    for shard in sorted(set(where.values())):
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise UserError(f"{folder / INDEX}: shard '{shard}' is not a file of this folder")
        shards[shard] = _header(folder / shard)
    for name, shard in where.items():
        if name not in shards[shard]:
            raise UserError(f"{folder / INDEX}: tensor '{name}' is not in {shard}")
    return {name: shards[shard][name] for name, shard in where.items()}


def _header(file: Path) -> dict[str, Slice]:
    """The tensors of one safetensors file, each checked to lie inside it and to be as long as its shape says."""
    total = file.stat().st_size
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if total < 8 or length > total - 8:
                raise ValueError("the header is longer than the file")
            header: dict[str, Any] = json.loads(handle.read(length))
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            if entry["dtype"] not in DTYPES:
                raise UserError(f"{file}: tensor '{name}' is {entry['dtype']}; weights that are quantised cannot be merged")
            dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
            if end - begin != math.prod(shape) * dtype.itemsize or begin < 0 or 8 + length + end > total:
                raise ValueError(f"tensor '{name}' does not fit")
            found[name] = Slice(file, dtype, shape, 8 + length + begin, end - begin)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a whole safetensors file: {error}") from None
    return found


@dataclass(frozen=True)
class Shard:
    """An output file and the tensors it will hold, in order."""

    name: str
    names: tuple[str, ...]


def plan(sizes: Mapping[str, int], limit: int) -> list[Shard]:
    """Tensors in order of name, filled into files of at most `limit` bytes (a larger tensor gets its own)."""
    groups: list[list[str]] = [[]]
    held = 0
    for name in sorted(sizes):
        if groups[-1] and held + sizes[name] > limit:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += sizes[name]
    if len(groups) == 1:
        return [Shard(WEIGHTS, tuple(groups[0]))]
    return [Shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", tuple(names)) for i, names in enumerate(groups, 1)]


def header(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype]) -> bytes:
    """Length and JSON of an output file, known before any tensor is: padded so that the data starts at a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        end = offset + math.prod(shapes[name]) * dtypes[name].itemsize
        entries[name] = {"dtype": NAMES[dtypes[name]], "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in memory order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")
