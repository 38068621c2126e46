"""Inputs from SDPO's teacher: a moving average of the policy that has seen a sibling's right solution."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.models.scoring import pad
from pipelines.rl.inputs.probes import reprompted
from pipelines.rl.inputs.scores import of_topk
from pipelines.rl.inputs.step import Step, scored


def has_teacher(step: Step) -> Tensor:
    """Whether a right sibling's solution could be shown."""
    return step.tensor([prompt is not None for prompt in reprompted(step)], torch.bool)


@torch.no_grad()
def teacher_topk(step: Step, *, rate: float = 0.05) -> Tensor:
    """The teacher's log-probabilities of the tokens `topk_BTK` (B, T, K) at the response's tokens; 0 on rows without a teacher.

    `rate` is that of the moving average, which the loop keeps.
    """
    prompts = reprompted(step)
    topk_BTK = step.batch["topk_BTK"]
    out = torch.zeros(topk_BTK.shape, device=topk_BTK.device)
    rows = [row for row, prompt in enumerate(prompts) if prompt is not None]
    for start in range(0, len(rows), step.settings.micro_batch):
        micro = rows[start : start + step.settings.micro_batch]
        whole = [(prompts[row] or [], step.rollouts[row].response_ids) for row in micro]
        ids = pad([[*prompt, *response] for prompt, response in whole], device=out.device)
        score = torch.zeros_like(ids, dtype=torch.bool)
        for place, (prompt, response) in enumerate(whole):
            score[place, len(prompt) : len(prompt) + len(response)] = True
        score_BT = step.score_BT[micro]
        along = torch.zeros((*ids.shape, topk_BTK.shape[-1]), dtype=torch.long, device=out.device)
        along[score] = topk_BTK[micro][score_BT]
        how = {"temperature": step.settings.answered.temperature, "along": {"topk_BTK": along}}
        said = scored(step.settings, step.actor.frozen["teacher"], ids, score, {"topk": of_topk}, **how)["topk"]
        micro_BTK = torch.zeros((len(micro), *out.shape[1:]), device=out.device)
        micro_BTK[score_BT] = said[score]
        out[micro] = micro_BTK
    return out
