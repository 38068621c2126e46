"""What a recipe reads, computed: before the update (`fill`) and in its own pass of the policy (`live`). Nothing that no slot reads is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from pipelines import methods
from pipelines.config.learning import LearningStage
from pipelines.models import ranks
from pipelines.models.scoring import entropy_detached
from pipelines.rl.batch import Batch
from pipelines.rl.inputs.scores import in_parts
from pipelines.rl.inputs.step import Actor, Step, scored
from pipelines.rl.recipe import Recipe
from pipelines.rl.tensors import TENSORS, Reads, When, of


def anchored_to_behaviour(recipe: Recipe, settings: LearningStage) -> bool:
    """Whether ratios are to the policy that sampled, by its own log-probabilities: rollouts are stale, and the recipe corrects no mismatch.

    With a correction the ratio is to the policy before the update, and the correction weighs its distance to the one that sampled
    (the decoupled objective, arXiv 2505.24298).
    """
    return settings.answered.earlier and not recipe.lists["mismatch"]


def fill(recipe: Recipe, step: Step) -> Batch:
    """The step's batch with every tensor that the recipe reads and the loop can give."""
    inputs = recipe.slots["inputs"]
    step.batch = _with_behaviour(recipe, step)
    early = recipe.before & of(When.BEFORE).keys()  # what the loss alone compares with comes with the update
    if anchored_to_behaviour(recipe, step.settings):
        early -= {"logp_old_BT"}
    if early:
        step.batch = step.batch.having(**before(step, early, inputs))
    for name, declared in of(When.READ).items():
        if name in recipe.needs and name not in step.batch:
            assert declared.compute is not None
            step.batch = step.batch.having(**{name: methods.bind("inputs", {name: declared.compute}, name, inputs.get(name))(step)})
    return step.batch


def _with_behaviour(recipe: Recipe, step: Step) -> Batch:
    """The batch of a stage that samples, in which a guide may have written tokens that train without a word on how likely they were: as if the policy
    before the update had sampled them, where somebody reads that."""
    batch = step.batch
    if not step.settings.leaves_rollouts or not ranks.most("logp_roll_BT" not in batch):
        return batch
    batch = batch.having(logp_roll_BT=None)  # so that it is added last on every process: they gather tensors in the order that they have them
    anchored = anchored_to_behaviour(recipe, step.settings)
    if not anchored and "logp_roll_BT" not in recipe.needs:
        return batch
    known_BT = step.tokens([[bool(s.logp) or not s.trains for s in r.turns for _ in s.ids] for r in step.rollouts], 1).bool()
    old_BT = before(step, {"logp_old_BT"}, {})["logp_old_BT"]
    roll_BT = torch.where(known_BT, batch.logp_old_BT, old_BT)
    return batch.having(logp_roll_BT=roll_BT, logp_old_BT=roll_BT if anchored else batch.logp_old_BT)


def live(
    actor: Actor,
    settings: LearningStage,
    names: Collection[str],
    inputs: Mapping[str, Any],
    ids_BT: Tensor,
    score_BT: Tensor,
    along: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The live tensors `names` in one forward pass, with gradient; and the entropy without, for the journal, where it is none of them."""
    asked = _asked(actor, names, inputs)
    asked["wanted"].setdefault("entropy_BT", entropy_detached)
    return scored(settings, actor.policy, ids_BT, score_BT, temperature=settings.answered.temperature, along=along, **asked)


def before(step: Step, names: Collection[str], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors `names` of the policy before the update, in one pass."""
    return in_parts(step, step.actor.policy, **_asked(step.actor, names, inputs))


def _asked(actor: Actor, names: Collection[str], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What one pass is asked for these tensors: arguments of `token_scores`. A value before the update has the settings of the live one."""
    asked: dict[str, Any] = {"wanted": {}, "on_hidden": {}, "after": None}
    for name in sorted(names, key=list(TENSORS).index):
        declared = TENSORS[name]
        assert declared.compute is not None
        function = methods.bind("inputs", {name: declared.compute}, name, inputs.get(declared.live or name))
        if declared.reads is Reads.VOCABULARY:
            asked["wanted"][name] = function
        elif declared.reads is Reads.HIDDEN:
            asked["on_hidden"][name] = function(actor)
        else:
            asked["after"] = name, function(actor.tokenizer)
    return asked
