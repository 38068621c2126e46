"""The checkpoints of one merge: headers read, and known to fit together before a byte is written.

What does not fit stops the merge: other names, shapes, architectures, tied against untied heads, vocabularies. Only another
vocabulary may be made to fit, by a policy that the config names (vocabulary.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipelines.config.evaluation import TokenizerPolicy
from pipelines.errors import UserError
from pipelines.merging.checkpoints import Slice, tensors
from pipelines.merging.tensors import CHUNK
from pipelines.merging.vocabulary import EMBEDDINGS, Rows, Vocabulary, plan_vocabulary, tokens_of

SAME = ("model_type", "architectures", "tie_word_embeddings", "num_hidden_layers")
"""Entries of config.json that must agree: equal names and shapes alone would let a tied and an untied head through."""


@dataclass(frozen=True)
class Inputs:
    """The checkpoints of one merge, known to fit together.

    donor: the folder that the result's config and tokenizer come from. sources: tensor name -> its place in every folder. alias: name of
    a tied copy -> the tensor that it is a copy of.
    """

    donor: Path
    folders: tuple[Path, ...]
    sources: dict[str, list[Slice | Rows]]
    config: dict[str, Any]
    vocabulary: Vocabulary | None = None
    alias: dict[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """Number of layers, as the config says."""
        return int(self.config.get("num_hidden_layers") or self.config.get("n_layer") or 0)

    def files(self) -> list[Path]:
        """Every weight file, once."""
        return sorted({place.file for places in self.sources.values() for place in places})


def open_inputs(folders: Sequence[Path], policy: TokenizerPolicy | None) -> Inputs:
    """Read all headers and check that the checkpoints fit together; the first folder is the donor and what the others are compared with.

    Raises:
        UserError: no models, or a checkpoint differs from the first in names, shapes, architecture or vocabulary.
    """
    donor, others = folders[0], tuple(dict.fromkeys(folders[1:]))
    config, reference = read_json(donor / "config.json"), tensors(donor)
    if not reference:
        raise UserError(f"{donor}: holds no tensors")
    configs, found = {donor: config}, {donor: reference}
    for model in others:
        configs[model], found[model] = read_json(model / "config.json"), tensors(model)
        for key in SAME if policy else (*SAME, "vocab_size"):
            if configs[model].get(key) != config.get(key):
                raise UserError(f"{model / 'config.json'}: {key} is {configs[model].get(key)!r}, expected {config.get(key)!r} as in {donor}")
        if policy is None and tokens_of(model) != tokens_of(donor):
            raise UserError(f"{model / 'tokenizer.json'}: the vocabulary differs from that of {donor}; a tokenizer policy could make them fit")
        for name in sorted(reference.keys() ^ found[model].keys()):
            has, lacks = (donor, model) if name in reference else (model, donor)
            raise UserError(f"{lacks}: tensor '{name}' is missing, {has} has it")
    vocabulary = plan_vocabulary(policy, folders, configs) if policy else None
    sources = {name: [_place(folder, found, name, vocabulary) for folder in folders] for name in reference}
    return Inputs(donor, tuple(folders), sources, config, vocabulary, _tied(config, found))


def _place(folder: Path, found: Mapping[Path, Mapping[str, Slice]], name: str, vocabulary: Vocabulary | None) -> Slice | Rows:
    """Where a folder holds one tensor, known to fit the first folder's."""
    place, (donor, reference) = found[folder][name], next(iter(found.items()))
    expected = reference[name]
    if place.dtype.is_floating_point != expected.dtype.is_floating_point:
        raise UserError(f"{folder}: tensor '{name}' is {place.dtype}, expected {expected.dtype} as in {donor}")
    if vocabulary and name.endswith(EMBEDDINGS):
        return vocabulary.rows(name, folder, {other: slices[name] for other, slices in found.items()})
    if place.shape != expected.shape:
        raise UserError(f"{folder}: tensor '{name}' has shape {list(place.shape)}, expected {list(expected.shape)} as in {donor}")
    return place


def _tied(config: Mapping[str, Any], found: Mapping[Path, Mapping[str, Slice]]) -> dict[str, str]:
    """Heads stored beside the embedding that config.json ties them to, which must then be equal to it.

    Raises:
        UserError: one is not, so that the tie would throw it away.
    """
    if not config.get("tie_word_embeddings"):
        return {}
    names = next(iter(found.values()))
    heads = [name for name in names if name.endswith(("lm_head.weight", "embed_out.weight"))]
    tables = [name for name in names if name.endswith(EMBEDDINGS) and name not in heads]
    alias = {}
    for head in heads:
        for table in tables[:1]:
            for folder, slices in found.items():
                if not equal(slices[head], slices[table]):
                    raise UserError(f"{folder}: '{head}' differs from '{table}' though config.json says that they are tied")
            alias[head] = table
    return alias


def equal(a: Slice | Rows, b: Slice | Rows) -> bool:
    """The same shape, dtype and values."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return all(torch.equal(a.read(i, min(i + CHUNK, a.elements)), b.read(i, min(i + CHUNK, b.elements))) for i in range(0, a.elements, CHUNK))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        UserError: no such file, or not JSON.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a Hugging Face model folder")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON: {error}") from None
