"""The table of merge rules: name -> generator over one tensor (tensors.py), whose keyword-only arguments are its settings."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from pipelines.errors import UserError
from pipelines.merging import lookahead, ram, soups, sparse, spherical, trajectory, widen
from pipelines.merging.tensors import Group, collect, loaded
from pipelines.methods import bind
from pipelines.models.changes import SHARE

Rule = Callable[..., Iterator[Tensor]]

METHODS: dict[str, Rule] = {
    "linear": soups.linear,
    "task_arithmetic": soups.task_arithmetic,
    "ties": sparse.ties,
    "dare_linear": sparse.dare_linear,
    "dare_ties": sparse.dare_ties,
    "della": sparse.della,
    "della_linear": sparse.della_linear,
    "breadcrumbs": sparse.breadcrumbs,
    "breadcrumbs_ties": sparse.breadcrumbs_ties,
    "slerp": spherical.slerp,
    "nuslerp": spherical.nuslerp,
    "model_stock": soups.model_stock,
    "widen": widen.widen,
    "ram": ram.ram,
    "ram_plus": ram.ram_plus,
    "ramplus_tl": ram.ramplus_tl,
}
TRAJECTORY: dict[str, Rule] = {"relex": trajectory.relex, "line": trajectory.line, "next": lookahead.lookahead}
"""Rules whose models are the steps of one training, in order, and whose base is what it started from."""
RULES = METHODS | TRAJECTORY
LEARNING = {"next": lookahead.learn}
"""Rules that must have learnt something of all tensors first: (groups, each, settings) -> tensor -> its `Group.learnt`."""
COUNTING = ("ram", "ram_plus", "ramplus_tl")
"""Methods whose `changed_above` says which deltas count as changes."""
BASELESS = ("linear", "nuslerp")
"""Methods that need no base."""


def rule(method: str, settings: Mapping[str, Any]) -> Rule:
    """The rule called `method` with its settings, which files write without the underscore that Python's own words need.

    Raises:
        UserError: no such method or setting, or a value of another type.
    """
    if method in COUNTING and "epsilon" in settings:
        raise UserError(
            f"merge method '{method}': setting 'epsilon', a distance, has become 'changed_above', a share of the weight ({SHARE:g} if left out); "
            "leave it out, or give the distance as changed_above with absolute: true"
        )
    return bind("merge method", RULES, method, {f"{name}_" if keyword.iskeyword(name) else name: value for name, value in settings.items()})


def merge_tensors(method: str, base: Tensor | None, experts: Sequence[Tensor], *, name: str = "", seed: int = 0, **settings: Any) -> Tensor:
    """Merge tensors that are in memory; fp32. name and seed key random methods."""
    group: Group = loaded(base, experts, name, seed)
    return collect(group, rule(method, settings)(group))
