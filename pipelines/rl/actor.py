"""The policy with what the recipe needs beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

from pipelines.config.learning import LearningStage
from pipelines.errors import UserError
from pipelines.models import precision
from pipelines.models.adapters import add_value_head
from pipelines.models.sharding import weights
from pipelines.rl.inputs.step import Actor
from pipelines.rl.recipe import Recipe
from pipelines.rl.roles import roles_of


def make_actor(policy: Any, tokenizer: Any, recipe: Recipe, settings: LearningStage, frozen: Mapping[str, Any]) -> Actor:
    """The policy with what the recipe needs beside it: frozen policies, copies that follow it, a value head that starts at 0."""
    if settings.kl_control and "kl_scale" not in recipe.read:
        raise UserError(f"kl_control steers KL terms to the reference, and recipe '{recipe.name}' has none: add one, or leave kl_control out")
    precision.chosen(policy.device, settings.precision)  # refused before anything is sampled
    if settings.gradient_checkpointing:
        policy.gradient_checkpointing_enable()
    policy.eval()  # no dropout: the behaviour and the training policy are one
    models = {}
    for name, role in roles_of(recipe).items():
        if role.source == "copy":
            models[name] = copy.deepcopy(policy).eval().requires_grad_(False)
        elif name not in frozen:
            raise UserError(f"recipe '{recipe.name}' needs a policy as '{name}': name it under `{role.source}`")
        else:
            models[name] = frozen[name]
    if "value_BT" in recipe.needs:
        add_value_head(policy)
    return Actor(policy, tokenizer, models, getattr(policy, "value_head", None))


def follow(actor: Actor, recipe: Recipe, moment: Literal["scored", "updated"]) -> None:
    """Policies beside the trained one move as their roles say."""
    for name, role in roles_of(recipe).items():
        if (how := role.scored if moment == "scored" else role.updated) is not None:
            how(actor.frozen[name], weights(actor.policy), recipe)
