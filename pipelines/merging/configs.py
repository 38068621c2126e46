"""What a merge is told, and the settings that follow from it for each tensor.

A parameter is a scalar, a gradient (a list that is interpolated linearly over the layers; tensors outside them take its first value), or
a list of {filter, value}, of which the first whose filter is part of the tensor's name counts. A model's own value counts before the
common one. The forms are mergekit's, whose files mergekit_files.py reads.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipelines.config.common import Count, Positive, Section
from pipelines.config.evaluation import TokenizerPolicy
from pipelines.errors import UserError
from pipelines.merging.methods import BASELESS, RULES, rule
from pipelines.merging.tensors import PerModel
from pipelines.methods import choose, settings_of

Dtype = Literal["float32", "bfloat16", "float16"]
LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
"""The number of a tensor's layer in its name."""
WITHOUT_EFFECT = ("int8_mask",)
"""Parameters of mergekit that change no result: the dtype of its masks."""


class MergeConfig(Section):
    """One merge."""

    base: Path | None = None
    """Model folder that deltas are taken from, and whose config and tokenizer the result gets; `linear` and `nuslerp` need none."""
    models: tuple[Path, ...] = Field(min_length=1)
    """Model folders to merge."""
    method: str = "ram"
    """A row of METHODS, or of TRAJECTORY."""
    settings: dict[str, Any] = Field(default={})
    """Keyword settings of the method, the same for all tensors."""
    parameters: dict[str, Any] = Field(default={})
    """Settings that may differ by layer (a list) or by tensor (a list of {filter, value}), as in mergekit."""
    model_parameters: tuple[dict[str, Any], ...] = ()
    """The same for each model; counts before `parameters`."""
    dtype: Dtype | None = "float32"
    """Stored dtype of the result; null keeps that of the base. Arithmetic is in fp32 whatever it is."""
    tokenizer: TokenizerPolicy | None = None
    """What becomes of vocabularies that differ; null refuses them."""
    chat_template: str | None = None
    """Jinja text that replaces the base's template."""
    seed: Count = 0
    """Keys the random methods, with the tensor's name and the model's number."""
    shard_bytes: Positive = 5_000_000_000
    """Largest weight file; a larger model gets several and an index."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """The donor first, then the models."""
        return (self.base or self.models[0], *self.models)

    @property
    def with_base(self) -> bool:
        """Whether the method reads the base."""
        return self.base is not None and self.method != "linear"

    def rule_for(self, layers: int) -> Callable[[str], Any]:
        """Tensor name -> the bound rule. layers: number of layers, which gradients run over.

        Raises:
            UserError: unknown methods, settings or parameters, values that do not fit, a base or models that the method needs.
        """
        function = choose("merge method", RULES, self.method)
        known, hints = settings_of(function), typing.get_type_hints(function)
        if self.base is None and self.method not in BASELESS:
            raise UserError(f"merge method '{self.method}': it needs a base model; only {', '.join(BASELESS)} do without")
        if self.model_parameters and len(self.model_parameters) != len(self.models):
            raise UserError(f"merging.model_parameters: {len(self.model_parameters)} entries for {len(self.models)} models")
        given = {key for own in (self.parameters, *self.model_parameters) for key in own} - set(WITHOUT_EFFECT)
        for key in (*self.settings, *sorted(given)):
            if _spelt(key) not in known:
                rule(self.method, {key: None})
        for own in self.model_parameters:
            for key in own:
                if key not in WITHOUT_EFFECT and hints[_spelt(key)] != PerModel:
                    raise UserError(f"merge method '{self.method}': '{key}' holds for all models; write it under the common parameters")

        def bound(name: str) -> Any:
            share = layer_share(name, layers)
            settings = dict(self.settings)
            for key in sorted(given):
                common = evaluate(self.parameters.get(key), name, share, key)
                if hints[_spelt(key)] == PerModel:
                    default = known[_spelt(key)].default if common is None else common
                    own = [evaluate(entry.get(key), name, share, key) for entry in self.model_parameters or ({},) * len(self.models)]
                    settings[key] = [default if value is None else value for value in own]
                elif common is not None:
                    settings[key] = common
            try:
                return rule(self.method, settings)
            except UserError as error:
                raise UserError(f"tensor '{name}': {error}" if given else str(error)) from None

        return bound


def _spelt(key: str) -> str:
    return "lambda_" if key == "lambda" else key


def layer_share(name: str, layers: int) -> float:
    """Where a tensor lies between the first layer (0) and the last (1); 0 outside them, 1 if there is but one."""
    found = LAYER.search(name)
    if not found or layers < 1:
        return 0.0
    return int(found[1]) / (layers - 1) if layers > 1 else 1.0


def evaluate(value: Any, name: str, share: float, key: str) -> Any:
    """A parameter's value for one tensor; None where nothing is said of it.

    Raises:
        UserError: neither a scalar, a gradient nor a list of {filter, value}.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return _number(value)
    if all(isinstance(entry, Mapping) for entry in value):
        for entry in value:
            if not entry.keys() <= {"filter", "value"} or "value" not in entry:
                raise UserError(f"parameter '{key}': expected {{filter, value}}, got {dict(entry)!r}")
            pattern = entry.get("filter")
            if pattern is None or pattern == "*" or pattern in name:
                return evaluate(entry["value"], name, share, key)
        return None
    points = [_number(entry) for entry in value]
    if any(isinstance(point, (Mapping, list)) for point in points):
        raise UserError(f"parameter '{key}': a list holds either numbers or {{filter, value}}, not both: {value!r}")
    place = share * (len(points) - 1)
    low = int(place)
    if not all(isinstance(point, (int, float)) and not isinstance(point, bool) for point in points):
        return points[low]
    return points[low] + (place - low) * (points[min(low + 1, len(points) - 1)] - points[low])


def _number(value: Any) -> Any:
    """YAML 1.1 takes 1e-5 for a string."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
