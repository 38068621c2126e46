"""YAML files written for mergekit, as merges of ours.

`models` with parameters of their own, `base_model`, `parameters` for all, `merge_method`, `dtype`, `out_dtype`, `tokenizer_source` or
`tokenizer`, `chat_template`; `slices` where they are whole models. docs/MERGING.md says where results differ from mergekit's and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.config.checking import check
from pipelines.config.common import Section
from pipelines.config.evaluation import TokenizerPolicy
from pipelines.errors import UserError
from pipelines.merging.configs import Dtype, MergeConfig
from pipelines.merging.inputs import read_json
from pipelines.merging.methods import COUNTING, METHODS
from pipelines.methods import choose

EPSILON = 1e-5
"""What mergekit takes for a change, as a distance, where a file does not say."""


class ModelEntry(Section):
    """A model of a mergekit file."""

    model: Path
    parameters: dict[str, Any] = {}


class SourceEntry(ModelEntry):
    """A model of a slice."""

    layer_range: tuple[int, int]


class SliceEntry(Section):
    """A slice of the output."""

    sources: tuple[SourceEntry, ...]
    base_model: Path | None = None
    parameters: dict[str, Any] = {}


class MergekitFile(Section):
    """A file written for mergekit."""

    merge_method: str
    models: tuple[ModelEntry, ...] | None = None
    slices: tuple[SliceEntry, ...] | None = None
    modules: Any = None
    base_model: Path | None = None
    parameters: dict[str, Any] = {}
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: str | None = None
    tokenizer: TokenizerPolicy | None = None
    chat_template: str | None = None


def read_config(content: Mapping[str, Any], where: str) -> MergeConfig:
    """A merge from the content of a YAML file, in either form: `merge_method` tells mergekit's.

    Raises:
        UserError: a wrong key or value, or a feature of mergekit that is not taken.
    """
    if "merge_method" not in content:
        return check(MergeConfig, content, where)
    file = check(MergekitFile, content, where)
    choose(f"{where}: merge_method", METHODS, file.merge_method)
    if file.modules is not None or (file.models is None) == (file.slices is None):
        raise UserError(f"{where}: expected `models`, or `slices` that are whole models; `modules` are not taken")
    entries, base = file.models or (), file.base_model
    common = [file.parameters]
    if file.slices is not None:
        entries, base, common = _whole_models(file.slices, file.base_model, file.parameters, where)
    if file.tokenizer and file.tokenizer_source:
        raise UserError(f"{where}: tokenizer and tokenizer_source say the same thing; give one of them")
    policy = file.tokenizer or (TokenizerPolicy(source=file.tokenizer_source) if file.tokenizer_source else None)
    if file.chat_template is not None and "{" not in file.chat_template:
        raise UserError(f"{where}: chat_template: expected the text of a Jinja template, got {file.chat_template!r}; names are not taken")
    if file.merge_method != "linear":
        entries = tuple(entry for entry in entries if entry.model != base)
    elif base is not None and all(entry.model != base for entry in entries):
        if not any("weight" in own for own in common):
            raise UserError(f"{where}: linear averages the base_model too; list it under `models` with its weight, or leave base_model out")
        entries = (*entries, ModelEntry(model=base))
    if not entries:
        raise UserError(f"{where}: there is no model to merge beside the base_model")
    own = [entry.parameters for entry in entries]
    if file.merge_method in COUNTING:
        common, own = [*map(_distance, common), {"changed_above": EPSILON, "absolute": True}], [*map(_distance, own)]
    config = {
        "base": base,
        "models": tuple(entry.model for entry in entries),
        "method": file.merge_method,
        "parameters": _over(*common),
        "model_parameters": tuple(own),
        "dtype": file.out_dtype or file.dtype,
        "tokenizer": policy,
        "chat_template": file.chat_template,
    }
    return check(MergeConfig, config, where)


def _distance(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """mergekit's `epsilon` under the name that it has here."""
    return {"changed_above" if key == "epsilon" else key: value for key, value in parameters.items()}


def _over(*levels: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of several levels as one; the first that speaks of a tensor counts, so conditions are tried in turn."""
    merged: dict[str, Any] = {}
    for level in levels:
        for key, value in level.items():
            if key in merged:
                merged[key] = [*_conditions(merged[key]), *_conditions(value)]
            else:
                merged[key] = value
    return merged


def _conditions(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [value]
    if isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
        return value
    return [{"value": value}]


def _whole_models(
    slices: Sequence[SliceEntry], base: Path | None, parameters: dict[str, Any], where: str
) -> tuple[tuple[ModelEntry, ...], Path | None, list[dict[str, Any]]]:
    """The one slice of a file as models.

    Raises:
        UserError: it stacks layers: another model than any of the inputs, which no experts' weights say anything about.
    """
    if len(slices) != 1:
        raise UserError(f"{where}: slices: {len(slices)} slices would stack layers into another architecture; only whole models are merged")
    for source in slices[0].sources:
        layers = read_json(source.model / "config.json").get("num_hidden_layers")
        if source.layer_range != (0, layers):
            raise UserError(
                f"{where}: slices: layer_range {list(source.layer_range)} of {source.model} is not its {layers} layers; only whole models are merged"
            )
    entries = tuple(ModelEntry(model=source.model, parameters=source.parameters) for source in slices[0].sources)
    return entries, slices[0].base_model or base, [slices[0].parameters, parameters]
