"""What supervised training learns of text: the loss of examples by the log-probabilities of their tokens.

    next tokens     -log p(y_t)
    confident       -((1 - a) log p(y_t) + a log p(argmax_t))       Weak-to-Strong Generalization, arXiv 2312.09390, on text
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

import torch
from torch import Tensor

from pipelines.config.training import ConfidenceSettings
from pipelines.models.scoring import Score, chosen, pad, token_scores
from pipelines.sft.examples import E, Example


@dataclass(frozen=True)
class Objective(Generic[E]):
    """What is learnt. loss(model, examples): the sum of their losses by their weights. idle: what a process runs, to no effect, where another has one
    more micro-batch: sharded weights need every process at every pass. scored: the journal's name of what the loss is of. along(done): the loss of
    training after a share of its steps, where it changes on the way; `loss` is then that of the end, and what is measured on held-out examples."""

    loss: Callable[[Any, Sequence[E]], Tensor]
    idle: E
    scored: str
    along: Callable[[float], Callable[[Any, Sequence[E]], Tensor]] | None = None

    def after(self, done: float) -> Objective[E]:
        """What is learnt after this share of the steps."""
        return replace(self, loss=self.along(done)) if self.along else self


def _next_tokens(model: Any, examples: Sequence[Example], score: Score = chosen) -> Tensor:
    """The negative sum of the tokens' scores by their weights."""
    ids = pad([example.ids for example in examples], device=model.device)
    weights = torch.zeros(ids.shape, device=ids.device)
    targets = ids.clone()
    for row, example in enumerate(examples):
        if example.target is not None:
            targets[row] = example.target
        for begin, end, of in example.spans:
            weights[row, begin:end] = of
    scored = weights > 0
    if examples[0] is IDLE:
        scored[0, 1] = True
    return -(token_scores(model, ids, scored, {"score": score}, along={"target": targets})["score"] * weights).sum()


IDLE = Example([0, 0], ((1, 2, 0.0),))
NEXT_TOKENS = Objective(_next_tokens, IDLE, "scored_tokens")


def confident(settings: ConfidenceSettings) -> Objective[Example]:
    """The label's token, and the one that the model itself holds likeliest, which counts as a constant."""

    def loss(share: float) -> Callable[[Any, Sequence[Example]], Tensor]:
        return functools.partial(_next_tokens, score=functools.partial(_with_own, share=share))

    return replace(NEXT_TOKENS, loss=loss(settings.most), along=lambda done: loss(confidence(settings, done)))


def confidence(settings: ConfidenceSettings, done: float) -> float:
    """a after this share of the steps."""
    if done >= settings.warm:
        return settings.most
    return settings.most * (done if settings.ramp == "released" else done / settings.warm)


def _with_own(logp_NV: Tensor, at: Mapping[str, Tensor], share: float) -> Tensor:
    own_N = logp_NV.gather(-1, logp_NV.argmax(-1, keepdim=True))[:, 0]
    return (1 - share) * chosen(logp_NV, at) + share * own_N
