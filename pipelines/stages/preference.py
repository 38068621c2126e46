"""Kind preference: pairs of stored responses, or stored responses with a score, train the model that `init` names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pipelines import paths
from pipelines.config.preference import PreferenceStage
from pipelines.errors import UserError
from pipelines.models import ranks
from pipelines.models.loading import load_policy
from pipelines.models.scoring import chosen as log_probability
from pipelines.records import Trajectory
from pipelines.rl import stored
from pipelines.rl.collate import tensors
from pipelines.rl.inputs.step import scored
from pipelines.rl.recipe import recipe
from pipelines.rl.tensors import Asks
from pipelines.stages import Context, critic, responses, rows
from pipelines.stages.learning import beside_policy, learn
from pipelines.stages.pairing import paired
from pipelines.stages.responses import Responses

Groups = list[Sequence[Trajectory]]


def run(context: Context) -> dict[str, float]:
    """Write data/models/<NAME>.

    Raises:
        UserError: the recipe needs what the responses cannot give, or there is nothing to train on.
    """
    settings: PreferenceStage = context.settings
    chosen = recipe(settings.recipe, **settings.overrides)
    with ranks.joined(context.device) as device:
        policy, tokenizer = load_policy(context.root / paths.model(settings.init))
        longest = min(settings.max_tokens, policy.config.max_position_embeddings)
        del policy
        found = responses.read(context, tokenizer, longest)
        if settings.behaviour == "reference":
            found.lacking.discard(Asks.BEHAVIOUR)
        stored.refuse(chosen, found.lacking)
        groups = _groups(context, found, device)
        rows.see(context, responses.used(found, groups))
        if settings.behaviour == "reference":
            reference = context.root / paths.model(settings.reference or settings.init)
            _score(beside_policy(reference, tokenizer, device, f"{context.stage}: the reference"), groups, settings)
        elif Asks.BEHAVIOUR in found.lacking:
            groups = [[replace(r, segments=[replace(s, logp=[]) for s in r.segments]) for r in group] for group in groups]  # of all or of none
        beside, figures = {}, dict[str, float]()
        if chosen.of_critic:
            beside["critic"], figures = critic.trained(context, chosen, found, groups, tokenizer, device)
        read = map(paths.rows, settings.rows_read)
        made = learn(context, __name__, chosen, list(found.problems.values()), device, stored=groups, beside=beside, reads=read)
    counted = {"groups": len(groups), "responses": sum(map(len, groups)), "too_long": found.too_long}
    return made | figures | {name: float(count) for name, count in counted.items()}


def _groups(context: Context, found: Responses, device: str) -> Groups:
    """What trains together: pairs, or all responses to a prompt.

    Raises:
        UserError: there is none.
    """
    settings: PreferenceStage = context.settings
    if settings.pairs is None:
        groups: Groups = [*found.pairs, *(list(kept.values()) for kept in found.by_prompt.values())]
    else:
        groups = [*paired(context, found, settings.pairs, device)]
    told = responses.told(found)
    if not groups:
        raise UserError(f"{context.stage}: no group to train on: there were {told}" + ("; a pair needs two rewards" if settings.pairs else ""))
    context.journal.say(f"{len(groups)} {'groups' if settings.pairs is None else 'pairs'}, of {told}")
    return groups


@torch.no_grad()
def _score(reference: Any, groups: Groups, settings: PreferenceStage) -> None:
    """Give the responses whose log-probabilities under the policy that answered are not known those under the reference, in place."""
    unknown = [(group, place) for group in groups for place, r in enumerate(group) if any(s.trains and not s.logp for s in r.turns)]
    for start in range(0, len(unknown), settings.micro_batch):
        part = unknown[start : start + settings.micro_batch]
        ids, score, _ = tensors([group[place] for group, place in part], reference.device, 1, settings.max_tokens)
        logp = scored(settings, reference, ids, score, {"logp": log_probability}, temperature=settings.temperature)["logp"]
        for row, (group, place) in enumerate(part):
            said, segments = iter(logp[row][score[row]].tolist()), []
            for segment in group[place].segments[1:]:
                values = [next(said) for _ in segment.ids]
                segments.append(replace(segment, logp=values) if segment.trains else segment)
            group[place].segments[1:] = segments
