"""A critic that learns before the policy does, from the policy's own answers (after WSRL, arXiv 2412.07762, which collects such before any update).

    explained variance = 1 - Var(G - V) / Var(G), over the tokens of a batch, V before its update, G the returns

What a critic said of other answers, or a head that starts at 0, gives the first advantages a wrong sign, and they undo what the policy can do.
"""

from __future__ import annotations

from pipelines.models import ranks
from pipelines.rl.batch import Batch
from pipelines.rl.recipe import Recipe

DONE = "critic_warmup_steps"
"""How many steps of it there were, once it is over: a number that a checkpoint keeps."""


def explained_variance(batch: Batch) -> float | None:
    """Of the tokens of all processes that train; None where their returns do not vary. Every process must ask."""
    mask = batch.mask_BT.bool()
    return_N, value_N = batch["return_BT"][mask].double(), batch["value_old_BT"][mask].double()
    gap_N = return_N - value_N
    sums = {"n": float(len(return_N)), "g": return_N.sum(), "gg": (return_N**2).sum(), "e": gap_N.sum(), "ee": (gap_N**2).sum()}
    whole = ranks.total({name: float(value) for name, value in sums.items()})
    spread = whole["gg"] - whole["g"] ** 2 / max(whole["n"], 1.0)
    if spread <= 1e-12 * max(whole["gg"], 1.0):
        return None
    return 1 - (whole["ee"] - whole["e"] ** 2 / whole["n"]) / spread


def warms(recipe: Recipe, step: int, explained: float | None, done: dict[str, float]) -> bool:
    """Whether `step` updates the value head alone; when it does not for the first time, `done` is told after how many steps."""
    most = recipe.setting("value_old_BT", "warmup") if "value_old_BT" in recipe.needs else 0
    if DONE in done or not most:
        return False
    if step <= most and (explained is None or explained <= recipe.setting("value_old_BT", "enough")):
        return True
    done[DONE] = float(step - 1)
    return False
