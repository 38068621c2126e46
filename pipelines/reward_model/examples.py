"""Examples of reward models: a pair of responses to one prompt, or one response with what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines import seeding
from pipelines.config.reward_model import RewardModelStage
from pipelines.errors import UserError
from pipelines.models.reward_model import SIGMA, Form, Text, edges, outputs
from pipelines.reward_model import losses


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses as the model reads them. difference: in reward. of: the prompt, whose examples all stand on one side of every split."""

    better: Text
    worse: Text
    difference: float = 1.0
    of: str = ""
    weight: float = 1.0

    @property
    def tokens(self) -> int:
        return len(self.better[0]) + len(self.worse[0])

    @property
    def scored(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class Marked:
    """A response as the model reads it, and its target: a score, or 1 and 0 for right and wrong. group: of the responses that it is compared with."""

    text: Text
    target: float
    of: str = ""
    group: str = ""
    weight: float = 1.0

    @property
    def tokens(self) -> int:
        return len(self.text[0])

    @property
    def scored(self) -> int:
        return 1


Example = Pair | Marked
BLANK: Text = ([0, 0], 1, 1)
IDLE_PAIR, IDLE_MARKED = Pair(BLANK, BLANK, weight=0.0), Marked(BLANK, 0.0, weight=0.0)
"""What weighs nothing."""


def pair_loss(model: Any, pairs: Sequence[Pair], form: Form, settings: RewardModelStage) -> Tensor:
    """The sum of the pairs' losses by their weights. Both responses run in one pass, with their prompt once."""
    out_2B = outputs(model, form, [text for pair in pairs for text in (pair.better, pair.worse)])
    margin_B, weight_B = out_2B.new_tensor([[settings.margin * pair.difference, pair.weight] for pair in pairs]).T
    better_B, worse_B = out_2B.view(-1, 2).T
    return (losses.bradley_terry(better_B, worse_B, margin_B, centre=settings.centre, noise=settings.noise) * weight_B).sum()


def marked_loss(model: Any, marked: Sequence[Marked], form: Form) -> Tensor:
    """The sum of the responses' losses by their weights."""
    out = outputs(model, form, [each.text for each in marked])
    target_B, weight_B = out.new_tensor([[each.target, each.weight] for each in marked]).T
    return (marked_losses(out, target_B, form) * weight_B).sum()


def marked_losses(out: Tensor, target_B: Tensor, form: Form) -> Tensor:
    """The loss (B,) of what the head says."""
    return losses.binary(out, target_B) if form.span is None else losses.hl_gauss(out, targets(target_B, form))


def targets(score_B: Tensor, form: Form) -> Tensor:
    """What hl_gauss is trained to say (B, K) of each score."""
    assert form.span is not None
    border = edges(form.span, form.bins).to(score_B)
    return losses.histogram(score_B, border, SIGMA * float(border[1] - border[0]))


def split(examples: Sequence[Example], held_out: float, calibration: float, *seed: object) -> tuple[list[Example], list[Example], list[Example]]:
    """(to train on, to measure on, to fit the temperature on): whole prompts, drawn by `seed`, one at least of each.

    Raises:
        UserError: there are too few prompts.
    """
    prompts = sorted({example.of for example in examples})
    counts = [max(1, round(share * len(prompts))) for share in (held_out, calibration)]
    if len(prompts) <= sum(counts):
        told = f"held_out {held_out:g} and calibration {calibration:g} take {sum(counts)} of them"
        raise UserError(f"there are responses to {len(prompts)} problems, and {told}: nothing is left to train on")
    drawn = [prompts[place] for place in seeding.generator(*seed, "held out").permutation(len(prompts))]
    measuring, fitting = set(drawn[: counts[0]]), set(drawn[counts[0] : sum(counts)])
    return (
        [each for each in examples if each.of not in measuring | fitting],
        [each for each in examples if each.of in measuring],
        [each for each in examples if each.of in fitting],
    )


@torch.no_grad()
def spoken(model: Any, form: Form, texts: Sequence[Text], size: int) -> Tensor:
    """What the head says of each, `size` at a time, in the order of their lengths so that little is padded; float64 on the CPU."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place][0]))
    parts = [outputs(model, form, [texts[place] for place in order[start : start + size]]) for start in range(0, len(order), size)]
    out = torch.cat(parts).double().cpu()
    return out[torch.tensor(order).argsort()]
