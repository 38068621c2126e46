"""A recipe: one row of recipes.yaml with every slot filled in, checked against the functions' signatures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipelines import methods
from pipelines.errors import UserError
from pipelines.rl import advantage, aggregation, mismatch, ratio, regularisers, reward, routing

SLOTS: dict[str, dict[str, Callable[..., Any]]] = {
    "reward": {"none": reward.none, "overlong": reward.overlong},
    "center": {
        "none": advantage.center_none,
        "const": advantage.center_const,
        "batch_mean": advantage.center_batch_mean,
        "group_mean": advantage.center_group_mean,
        "leave_one_out": advantage.center_leave_one_out,
    },
    "scale": {"none": advantage.scale_none, "group_std": advantage.scale_group_std, "batch_std": advantage.scale_batch_std},
    "ratio": {"token": ratio.ratio_token, "sequence": ratio.ratio_sequence},
    "clip": {"none": ratio.clip_none, "ppo": ratio.clip_ppo, "score": ratio.clip_score, "weight_cap": ratio.clip_weight_cap},
    "mismatch": {"none": mismatch.none, "token_truncated": mismatch.token_truncated, "token_window": mismatch.token_window},
    "aggregation": {
        "token_mean": aggregation.token_mean,
        "sequence_mean_token_mean": aggregation.sequence_mean_token_mean,
        "sequence_mean_token_sum": aggregation.sequence_mean_token_sum,
        "sequence_mean_token_sum_norm": aggregation.sequence_mean_token_sum_norm,
        "prompt_mean": aggregation.prompt_mean,
    },
    "routing": {"all_rows": routing.all_rows, "drop_zero_variance": routing.drop_zero_variance, "drop_truncated": routing.drop_truncated},
}
"""Slot -> name -> function; a new value is a function and its line here."""
REGULARISERS = {"kl_k1": regularisers.kl_k1, "kl_k2": regularisers.kl_k2, "kl_k3": regularisers.kl_k3}
_PROSE = ("paper", "formula")


@dataclass(frozen=True)
class Recipe:
    """A published method as the value of each slot: slot -> {name, settings...}; `regularisers` is a list with coefficients."""

    name: str
    paper: str
    formula: str
    slots: Mapping[str, Mapping[str, Any]]
    regularisers: tuple[Mapping[str, Any], ...] = ()
    bound: Mapping[str, Callable[..., Any]] = field(default_factory=dict, compare=False, repr=False)
    terms: tuple[tuple[float, Callable[..., Any]], ...] = field(default=(), compare=False, repr=False)

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen reference policy must score the rollouts."""
        return bool(self.regularisers)


@functools.cache
def _rows() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((Path(__file__).parent / "recipes.yaml").read_text())


def names() -> list[str]:
    """Every row, in the order of the file."""
    return [name for name in _rows() if name != "default"]


def recipe(name: str, **overrides: Any) -> Recipe:
    """The row called `name`; an override replaces one slot: `recipe("grpo", clip={"name": "ppo", "low": 0.1, "high": 0.1})`.

    Raises:
        UserError: no such row, slot, function or setting; names the nearest.
    """
    rows = _rows()
    row = methods.choose("recipe", {key: value for key, value in rows.items() if key != "default"}, name)
    for slot in overrides:
        methods.choose(f"recipe '{name}': slot", rows["default"], slot)
    filled = {**rows["default"], **{k: v for k, v in row.items() if k not in _PROSE}, **overrides}
    slots = {slot: _named(slot, value) for slot, value in filled.items() if slot != "regularisers"}
    terms = tuple(_named("regularisers", value) for value in filled["regularisers"])
    return Recipe(
        name=name,
        paper=row["paper"],
        formula=row["formula"],
        slots=slots,
        regularisers=terms,
        bound={slot: methods.bind(slot, SLOTS[slot], value["name"], _settings(value)) for slot, value in slots.items()},
        terms=tuple((float(t.get("coefficient", 1.0)), methods.bind("regularisers", REGULARISERS, t["name"], _settings(t))) for t in terms),
    )


def _named(slot: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or "name" not in value:
        raise UserError(f"recipe slot '{slot}': expected a mapping with a name, such as {{name: none}}, got {value!r}")
    return value


def _settings(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: setting for key, setting in value.items() if key not in ("name", "coefficient")}
