"""A training begins anew from where it is: the reference becomes the policy, and the optimiser forgets its moments.

ProRL (arXiv 2505.24864) does so when validation stalls or the KL to the reference spikes, so that neither an old reference nor old moments hold a
long training back. When that is, the stage's `reset` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from pipelines.config.learning import LearningStage
from pipelines.config.rl import ResetSettings, SamplingStage
from pipelines.errors import UserError
from pipelines.models.checkpoints import Numbers
from pipelines.rl.recipe import Recipe


class Resets:
    """When to reset. state: numbers of a checkpoint: the highest measurement of validation, and measurements since it or since the last reset."""

    def __init__(self, settings: ResetSettings, state: Numbers) -> None:
        self._settings, self._state = settings, state

    def why(self, figures: Mapping[str, float]) -> str:
        """What calls for a reset after a step with these figures, "" for nothing. To be asked once a step."""
        stalled, kl = self._settings.stalled, self._settings.kl
        if "validation" in figures:
            if figures["validation"] > self._state.get("highest", -math.inf):
                self._state |= {"highest": figures["validation"], "stalled": 0.0}
            else:
                self._state["stalled"] += 1
        found = []
        if stalled is not None and self._state.get("stalled", 0) >= stalled:
            found.append(f"{stalled} measurements without a new best")
        if kl is not None and figures.get("kl_reference", 0.0) > kl:
            found.append(f"KL to the reference {figures['kl_reference']:.4g}")
        if found:
            self._state["stalled"] = 0.0
        return " and ".join(found)


def resets_of(settings: LearningStage, recipe: Recipe, state: Numbers) -> Resets | None:
    """The stage's own, if it has any.

    Raises:
        UserError: they look at the KL to a reference that the recipe does not read.
    """
    wanted = settings.reset if isinstance(settings, SamplingStage) else None
    if wanted and wanted.kl is not None and "logp_ref_BT" not in recipe.needs:
        raise UserError(f"reset.kl is of the KL to the reference, which recipe '{recipe.name}' does not read: add a KL term, or leave it out")
    return Resets(wanted, state) if wanted else None


@torch.no_grad()
def forget(optimiser: torch.optim.Optimizer) -> None:
    """Moments and counts of steps as before the first step."""
    for state in optimiser.state.values():
        for value in state.values():
            value.zero_()
