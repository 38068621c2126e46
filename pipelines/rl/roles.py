"""Policies beside the one that trains, and what such have said: where each comes from, and how it follows, if it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipelines import methods
from pipelines.rl.recipe import Recipe, inputs_of
from pipelines.rl.tensors import SETTABLE, TENSORS

Source = Literal["init", "reference", "copy", "teachers", "stored", "demonstrations", "critic", "later"]
Follow = Callable[[Any, Mapping[str, Any], Recipe, int], None]
"""follow(policy of the role, the trained policy's weights, recipe, number of the step)."""


def become(theirs: Any, weights: Mapping[str, Any], recipe: Recipe, step: int) -> None:
    """It is the policy as it stands."""
    theirs.load_state_dict(weights, strict=False)  # a value head is no part of it


def lag(theirs: Any, weights: Mapping[str, Any], recipe: Recipe, step: int) -> None:
    """It is the policy as it stood before the update of the last step whose number `every` divides."""
    if step % recipe.setting("allowed_BTK", "every") == 0:
        become(theirs, weights, recipe, step)


def drift(theirs: Any, weights: Mapping[str, Any], recipe: Recipe, step: int) -> None:
    """A moving average of the policy, at the rate that the recipe says of the teacher's scores."""
    rate = recipe.setting("teacher_topk_BTK", "rate")
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.lerp_(weights[name], rate)


@dataclass(frozen=True)
class Role:
    """source: what the stage names under `init`, `reference` or `teachers`, a file that it names under `stored`, rows under `demonstrations`, weights
    that the stage kept which it names under `later`, a critic that it trains first, or a copy of the policy. speaks: functions of the loop sample
    from it. scored, updated: how it follows the policy once a step's batch is scored, and after the update."""

    source: Source
    speaks: bool = False
    scored: Follow | None = None
    updated: Follow | None = None


ROLES: dict[str, Role] = {
    "ref": Role("reference"),
    "sft": Role("init"),
    "dpo": Role("reference"),
    "guide": Role("reference", speaks=True),
    "later": Role("later"),
    "prev": Role("copy", scored=become),
    "lagged": Role("copy", scored=lag),
    "teacher": Role("copy", updated=drift),
    "teachers": Role("teachers"),
    "stored": Role("stored"),
    "solutions": Role("demonstrations"),
    "critic": Role("critic"),
}


def untaught(recipe: Recipe, taught: str) -> str | None:
    """Why a recipe does not go with what the stage has beside policies: `teachers`, `stored`, a `critic` (kind preference), or "" for none of them;
    None where it does."""
    if recipe.of_critic and taught != "critic":
        tensor = recipe.of_critic[0]
        stand_in = methods.settings_of(SETTABLE[tensor])["by"].default
        told = f"'{recipe.name}' reads {tensor} of a critic that learns from stored responses first: that is kind preference"
        return f"{told}; or override inputs with {{{tensor}: {{by: {stand_in}}}}}"
    wanted = {role.source for role in roles_of(recipe).values()} & {"teachers", "stored"}
    if wanted - {taught}:
        return f"'{recipe.name}' trains on what teachers say: that is kind distil, with `{min(wanted - {taught})}`"
    if taught in ("teachers", "stored") and not wanted:
        return f"'{recipe.name}' reads nothing of what `{taught}` names; take on_policy_distillation, topk_distillation or stored_distillation"
    return None


def roles_of(recipe: Recipe) -> dict[str, Role]:
    """The policies that the recipe needs, by role: those that its tensors are of, and those that a function of its loop takes."""
    named = {TENSORS[name].role for name in recipe.needs} | {name for f in recipe.lists["recompose"] for name, _ in inputs_of(f)}
    named |= {"critic"} if recipe.of_critic else set()
    return {name: role for name, role in sorted(ROLES.items()) if name in named}
