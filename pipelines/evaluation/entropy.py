"""How sure of itself a policy is, at two levels that may move in opposite directions under RL (arXiv 2507.14843).

    answer level   Shannon entropy of the distribution of a problem's final answers
    token level    mean over the tokens of a policy's own responses of the entropy of the whole next-token distribution, teacher forced at
                   the temperature they were sampled at

Both in nats, per problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipelines import prompting
from pipelines.config.common import GenerationSettings
from pipelines.evaluation.metrics import answer_entropy
from pipelines.evaluation.scores import PROGRAM
from pipelines.generation import Sample
from pipelines.models.scoring import entropy_detached, pad, token_scores
from pipelines.records import Outcome, Problem

BATCH = 64
"""Responses that are scored at once."""


def answer_entropies(samples: pa.Table) -> dict[str, float]:
    """Answer-level entropy by problem of a SAMPLE_SCHEMA table; empty for programs, whose texts differ where their answers do not."""
    if set(samples["answer_type"].to_pylist()) == {PROGRAM}:
        return {}
    votes: dict[str, list[int | None]] = {}
    for problem, outcome, vote in zip(*(samples[name].to_pylist() for name in ("problem_id", "outcome", "vote")), strict=True):
        if outcome != Outcome.INFRASTRUCTURE:
            votes.setdefault(problem, []).append(vote)
    return {problem: answer_entropy(given) for problem, given in votes.items()}


@torch.inference_mode()
def token_entropies(
    model: Any, tokenizer: Any, problems: Sequence[Problem], responses: Sequence[Sequence[Sample]], settings: GenerationSettings
) -> dict[str, float]:
    """Token-level entropy by problem: mean over the tokens of a response, then over its responses.

    responses: the model's own, with the token ids that were sampled, and the settings they were sampled with; greedy ones are scored at 1.
    """
    rows = [
        (p.problem_id, prompting.prompt_ids(tokenizer, p, settings.prompt), list(s.token_ids))
        for p, group in zip(problems, responses, strict=True)
        for s in group
    ]
    rows.sort(key=lambda row: len(row[1]) + len(row[2]))  # like lengths waste the least padding
    means: dict[str, list[float]] = {problem.problem_id: [] for problem in problems}
    for start in range(0, len(rows), BATCH):
        batch = [row for row in rows[start : start + BATCH] if row[2]]
        ids_BT = pad([prompt + response for _, prompt, response in batch], device=model.device)
        mask_BT = pad([[0] * len(prompt) + [1] * len(response) for _, prompt, response in batch], device=model.device).bool()
        entropy_BT = token_scores(model, ids_BT, mask_BT, {"entropy": entropy_detached}, temperature=settings.temperature or 1.0)["entropy"]
        for (problem, _, _), mean in zip(batch, (entropy_BT.sum(1) / mask_BT.sum(1)).tolist(), strict=True):
            means[problem].append(mean)
    return {problem: float(np.mean(values)) for problem, values in means.items() if values}
