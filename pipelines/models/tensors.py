"""The tensors of a Hugging Face folder by name, one at a time, from safetensors: no pickle, and never the whole model in memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pipelines.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """One tensor: its file, name, shape, and whether it is of floating point."""

    file: Path
    name: str
    shape: tuple[int, ...]
    floating: bool

    def read(self) -> torch.Tensor:
        """The tensor as stored."""
        with safe_open(self.file, "pt") as handle:
            return handle.get_tensor(self.name)


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint folder by name, from the headers alone.

    Raises:
        UserError: no safetensors there, a file that is none, or an index that names what no file holds.
    """
    if (folder / INDEX).is_file():
        placed = json.loads((folder / INDEX).read_text())["weight_map"]
        for file in sorted(set(placed.values())):
            if Path(file).name != file or not (folder / file).is_file():
                raise UserError(f"{folder / INDEX}: '{file}' is no file of this folder")
        found = {name: stored for file in sorted(set(placed.values())) for name, stored in _file(folder / file).items()}
        if missing := sorted(placed.keys() - found.keys()):
            raise UserError(f"{folder / INDEX}: tensor '{missing[0]}' is not in {placed[missing[0]]}")
        return {name: found[name] for name in placed}
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: expected {WEIGHTS} or {INDEX} (pickled weights are not read)")
    return _file(folder / WEIGHTS)


def _file(file: Path) -> dict[str, Stored]:
    try:
        with safe_open(file, "pt") as handle:
            parts = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            return {name: Stored(file, name, tuple(part.get_shape()), "F" in part.get_dtype()) for name, part in parts.items()}
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file: {error}") from None
