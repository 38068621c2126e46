"""Which recipes can train on stored responses, and which of the responses to a prompt become pairs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipelines import seeding
from pipelines.config.preference import PairSettings
from pipelines.errors import UserError
from pipelines.records import Trajectory
from pipelines.rl.recipe import Recipe
from pipelines.rl.tensors import TENSORS, Asks

Pair = tuple[Trajectory, Trajectory]
"""The better response first."""


def refuse(recipe: Recipe, lacking: Collection[Asks]) -> None:
    """lacking: what is not known of the responses; that no policy samples is a matter of course.

    Raises:
        UserError: the recipe samples, or reads what stored responses cannot give; one sentence for the first such thing.
    """
    if recipe.sampling:
        slot = recipe.sampling[0]
        told = f"its slot '{slot}' says how problems are answered, and here the responses are stored; override it with its default"
        raise UserError(f"recipe '{recipe.name}': {told}")
    for name in sorted(recipe.needs):
        asked = None if name in recipe.of_critic else TENSORS[name].asks
        if name == "logp_old_BT" and not recipe.lists["mismatch"]:
            asked = Asks.BEHAVIOUR  # what ratios of stale responses are to
        if asked is not None and asked in {*lacking, Asks.SAMPLING}:
            raise UserError(f"recipe '{recipe.name}' reads {name} ({TENSORS[name].about}), and of stored responses that needs {asked.value}")


def pairs_of(responses: Sequence[Trajectory], settings: PairSettings, key: tuple[object, ...]) -> list[Pair]:
    """Pairs of different responses to one prompt, each in one of them at most. Where a judge is to say which is better, their order means nothing and
    their rewards may be equal. key: of the choice by hash."""
    by_hash = {id(r): seeding.key(*key, r.response_ids) for r in responses}
    if settings.choose == "margin":
        ordered = sorted(responses, key=lambda r: (r.reward, by_hash[id(r)]))
        pairs = list(zip(reversed(ordered), ordered[: len(ordered) // 2], strict=False))
        if not settings.judge:
            pairs = [pair for pair in pairs if pair[0].reward > pair[1].reward]
        return pairs[: settings.per_problem]
    alike = settings.choose == "alike"
    waiting: list[Trajectory] = []
    pairs = []
    for response in sorted(responses, key=lambda r: (len(r.response_ids) if alike else 0, by_hash[id(r)])):
        if waiting and (settings.judge or waiting[-1].reward != response.reward):  # all that wait have one reward
            pairs.append((response, waiting.pop()))
        else:
            waiting.append(response)
    if not settings.judge:
        pairs = [pair if pair[0].reward > pair[1].reward else pair[::-1] for pair in pairs]
    if alike:
        pairs.sort(key=lambda pair: abs(len(pair[0].response_ids) - len(pair[1].response_ids)))
    return pairs[: settings.per_problem]
