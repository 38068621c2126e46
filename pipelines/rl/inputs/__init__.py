"""How the loop comes by the tensors of a batch that a recipe names: `INPUTS` maps the tensor to a function, whose keyword-only
arguments are the settings a recipe gives under `inputs`. Nothing that no slot reads is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipelines import methods
from pipelines.rl.inputs.facts import FACTS
from pipelines.rl.inputs.probes import PROBES
from pipelines.rl.inputs.scores import BEFORE, BESIDE, FROZEN, LIVE_SCORES, OLD_OF, before, live, reserved, special_anchor
from pipelines.rl.inputs.step import Actor, Step
from pipelines.rl.inputs.teacher import TEACHER

if TYPE_CHECKING:
    from pipelines.config.rl import RlStage
    from pipelines.rl.batch import Batch
    from pipelines.rl.recipe import Recipe

__all__ = ["INPUTS", "OLD_OF", "Actor", "Step", "anchored_to_behaviour", "fill", "live"]

_AFTER_SCORES: dict[str, Callable[..., Any]] = {**FACTS, **FROZEN, **PROBES, **TEACHER, "special_anchor": special_anchor}
INPUTS: dict[str, Callable[..., Any]] = {**LIVE_SCORES, **BEFORE, **_AFTER_SCORES, "special_B": reserved}


def anchored_to_behaviour(recipe: Recipe, settings: RlStage) -> bool:
    """Whether ratios are to the policy that sampled, by its own log-probabilities: rollouts are stale, and the recipe corrects no mismatch.

    With a correction the ratio is to the policy before the update, and the correction weighs its distance to the one that sampled
    (the decoupled objective, arXiv 2505.24298).
    """
    return settings.asynchronous and not recipe.lists["mismatch"]


def fill(recipe: Recipe, step: Step) -> Batch:
    """The step's batch with every tensor that the recipe reads and the loop can give."""
    inputs = recipe.slots["inputs"]
    early = {name for name in (*BEFORE, *BESIDE) if name in recipe.before}  # what the loss alone compares with comes with the update
    if anchored_to_behaviour(recipe, step.settings):
        early -= {"logp_old_BT"}
    if early:
        step.batch = replace(step.batch, **before(step, early, inputs))
    for name, function in _AFTER_SCORES.items():
        if name in recipe.needs and getattr(step.batch, name) is None:
            bound = methods.bind("inputs", {name: function}, name, inputs.get(name))
            step.batch = replace(step.batch, **{name: bound(step)})
    return step.batch
