"""A reward model measured on problems that it has not seen, with a temperature that was fitted on others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines import seeding
from pipelines.errors import UserError
from pipelines.evaluation import reward_models as figures
from pipelines.evaluation.statistics import Floats
from pipelines.models.reward_model import Calibration, Form, Text, worth
from pipelines.reward_model.examples import Example, Marked, Pair, spoken, targets
from pipelines.stages import Context


def measure(
    context: Context, model: Any, form: Form, measuring: Sequence[Example], fitting: Sequence[Example]
) -> tuple[Calibration, dict[str, float]]:
    """What is fitted on one part of the problems, and what is measured on the other; see evaluation/reward_models.py.

    Raises:
        UserError: all responses to be measured on are worth the same.
    """
    (out, truth), (fit, fit_truth) = (_said(context, model, form, part) for part in (measuring, fitting))
    heat = _temperature(form, fit, fit_truth)
    raw = worth(fit, form, heat)
    fitted = Calibration(temperature=heat, mean=float(raw.mean()), spread=float(raw.std(correction=0)) or 1.0, lowest=float(raw.min()))
    numbers = {of: number for number, of in enumerate(sorted({each.of for each in measuring}))}
    problems = np.array([numbers[each.of] for each in measuring for _ in _texts(each)])
    lengths = np.array([length for each in measuring for *_, length in _texts(each)], dtype=np.float64)
    scored = figures.Scored(truth.numpy(), worth(out, form, heat).numpy(), lengths, problems)
    generator = seeding.generator(context.seed, context.stage, "intervals of a reward model")
    measured = {"temperature": heat, "held_out_problems": float(len(numbers)), "held_out_responses": float(len(out))}
    measured |= figures.ordering(scored, _pairs(context, scored, measuring), generator)
    if form.loss != "bradley_terry":
        measured |= figures.discrimination(scored, generator)
    (claimed, true), (before, _) = (_claimed(form, out, truth, temperature) for temperature in (heat, 1.0))
    if form.loss in ("binary", "entailment"):
        measured |= figures.classes(claimed, true, problems, generator)
    return fitted, measured | figures.calibration(claimed, before, true)


def _said(context: Context, model: Any, form: Form, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """What the head says of each response, and what it is worth in truth; of pairs one after the other, 1 and 0."""
    out = spoken(model, form, [text for each in examples for text in _texts(each)], context.settings.train.micro_batch)
    truth = [target for each in examples for target in ((1.0, 0.0) if isinstance(each, Pair) else (each.target,))]
    return out, torch.tensor(truth, dtype=torch.float64)


def _texts(example: Example) -> tuple[Text, ...]:
    return (example.better, example.worse) if isinstance(example, Pair) else (example.text,)


def _temperature(form: Form, out: Tensor, truth: Tensor) -> float:
    if form.span is not None:
        return figures.temperature_of_classes(out.numpy(), targets(truth, form).numpy())
    margins = out[::2] - out[1::2] if form.loss == "bradley_terry" else (2 * truth - 1) * out
    return figures.temperature_of_margins(margins.numpy())


def _pairs(context: Context, scored: figures.Scored, examples: Sequence[Example]) -> figures.Pairs:
    """Responses to compare: the pairs themselves, or those to one prompt that are not worth the same; where no prompt has such, those to any."""
    if isinstance(examples[0], Pair):
        places = np.arange(len(scored.score_S))
        return figures.Pairs(places[::2], places[1::2])
    found = figures.within(scored, [each.group for each in examples if isinstance(each, Marked)])
    if not len(found.better_P):
        found = figures.within(scored, [""] * len(examples))
        context.notice("no held-out problem has two responses of which one is better: its accuracy is that of pairs of responses to any problems")
    if not len(found.better_P):
        raise UserError(f"{context.stage}: all held-out responses are worth the same, so nothing can be measured; hold more out")
    return found


def _claimed(form: Form, out: Tensor, truth: Tensor, temperature: float) -> tuple[Floats, Floats]:
    """The probabilities that the model states, and what came true: that its order of a pair is right, or that a response is. Of scores, their
    places in the span."""
    if form.loss == "bradley_terry":
        gap = (out[::2] - out[1::2]).numpy()
        return figures.sigmoid(np.abs(gap) / temperature), (gap > 0) + 0.5 * (gap == 0)
    if form.span is None:
        return figures.sigmoid(out.numpy() / temperature), truth.numpy()
    low, high = form.span
    shares = [((values - low) / (high - low)).clamp(0.0, 1.0).numpy() for values in (worth(out, form, temperature), truth)]
    return shares[0], shares[1]
