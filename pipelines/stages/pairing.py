"""Pairs of stored responses, as their rewards or a judge order them: what kinds preference and reward_model share."""

from __future__ import annotations

import os

from pipelines import paths
from pipelines.chat import ChatClient, Replies
from pipelines.config.preference import PairSettings, PreferringSettings
from pipelines.errors import UserError
from pipelines.rl import preferring, stored
from pipelines.stages import Context
from pipelines.stages.judging import reward_model
from pipelines.stages.responses import Responses
from pipelines.verifiers.judge import KEY, URL


def paired(context: Context, found: Responses, settings: PairSettings, device: str) -> list[stored.Pair]:
    """Pairs of files as they are, then those that are made of the responses to each prompt.

    Raises:
        UserError: there is no judge, or none that can be asked.
    """
    pairs = [
        pair
        for key, kept in found.by_prompt.items()
        for pair in stored.pairs_of(list(kept.values()), settings, (context.seed, context.stage, *key))
    ]
    if settings.judge:
        said = preferring.judged(pairs, [found.problems[pair[0].problem_id] for pair in pairs], _judge(context, settings.judge, device))
        if left := {reason: count for reason, count in said.left_out.items() if count}:
            context.journal.say(f"the judge left out {', '.join(f'{count} {reason}' for reason, count in left.items())} of {len(pairs)} pairs")
        pairs = said.pairs
    return [*found.pairs, *pairs]


def _judge(context: Context, settings: PreferringSettings, device: str) -> preferring.Judge:
    if served := settings.served:
        return preferring.reward_model(reward_model(context, served, device), served.principle)
    if not (url := os.environ.get(URL)):
        raise UserError(f"{context.stage}: pairs.judge needs the address of an OpenAI-compatible endpoint in the environment variable {URL}")
    replies = Replies(context.resume / paths.REPLIES)
    client = ChatClient(url, settings.model, os.environ.get(KEY), settings.timeout, settings.retries, replies=replies, role="judge")
    return preferring.endpoint(client, settings)
