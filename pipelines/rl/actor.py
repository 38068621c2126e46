"""The policy with what the recipe needs beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

from pipelines.config.learning import LearningStage
from pipelines.errors import UserError
from pipelines.models import precision
from pipelines.models.sharding import weights
from pipelines.models.value_head import add_value_head, bin_edges
from pipelines.rl.inputs.step import Actor
from pipelines.rl.outcomes import CLASSES
from pipelines.rl.recipe import Recipe
from pipelines.rl.roles import roles_of


def make_actor(policy: Any, tokenizer: Any, recipe: Recipe, settings: LearningStage, frozen: Mapping[str, Any]) -> Actor:
    """The policy with what the recipe needs beside it: frozen policies, copies that follow it, a value head that says the same of everything."""
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
    if recipe.value_head:
        edges = bin_edges(**recipe.settings("value_edges_K")) if "value_edges_K" in recipe.needs else None
        size = recipe.setting("projected_BTK", "size") if "projected_BTK" in recipe.needs else 0
        add_value_head(policy, edges, CLASSES if "outcome_logits_BTK" in recipe.needs else 1, size)
    return Actor(policy, tokenizer, models, getattr(policy, "value_head", None))


def follow(actor: Actor, recipe: Recipe, moment: Literal["scored", "updated"], step: int) -> None:
    """Policies beside the trained one move as their roles say."""
    for name, role in roles_of(recipe).items():
        if (how := role.scored if moment == "scored" else role.updated) is not None:
            how(actor.frozen[name], weights(actor.policy), recipe, step)
