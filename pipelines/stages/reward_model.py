"""Kind reward_model: the model that `init` names learns what responses are worth, from pairs, verdicts or scores, and is measured and calibrated."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipelines import paths, seeding
from pipelines.config.reward_model import RewardModelStage
from pipelines.config.stage import BOUND, ROLLOUTS
from pipelines.errors import UserError
from pipelines.evaluation import reward_models as measures
from pipelines.models import ranks
from pipelines.models.adapters import add_adapters, plain_weights
from pipelines.models.exactness import deterministic
from pipelines.models.loading import load_tokenizer
from pipelines.models.reward_model import HEAD, Calibration, Form, Record, Text, begin, form_of, prompt_ids, save, text_ids, worth
from pipelines.records import Outcome, Problem, Trajectory, problem_id
from pipelines.reward_model.examples import IDLE_MARKED, IDLE_PAIR, Example, Marked, Pair, marked_loss, pair_loss, split, spoken, targets
from pipelines.row_files import Malformed
from pipelines.sft.examples import hold_out
from pipelines.sft.train import Objective, train
from pipelines.stages import Context, responses, rows
from pipelines.stages.pairing import paired
from pipelines.stages.responses import CHOSEN, REJECTED, Responses, ScoredFile
from pipelines.stages.trained import opened
from pipelines.store import read_json

Examples = Sequence[Example]


def run(context: Context) -> dict[str, float]:
    """Write data/models/<NAME>: a reward model with its reward_model.json. Returns what was measured, and how it was trained.

    Raises:
        UserError: a row is of no use to the loss, or there is too little to train and to measure on.
    """
    settings: RewardModelStage = context.settings
    init = context.root / paths.model(settings.init)
    with ranks.joined(context.device) as device:
        tokenizer = load_tokenizer(init, chat=False)
        room = read_json(init / "config.json").get("max_position_embeddings", math.inf)
        read = _Reader(context, tokenizer, form_of(settings, tokenizer, int(min(settings.train.max_tokens, room))))
        examples, form = read.examples(device), read.form
        training, measuring, fitting = split(examples, settings.held_out, settings.calibration, context.seed, context.stage)
        training, choosing = hold_out(training, settings.train.held_out, context.seed, context.stage)
        model = begin(init, form, device, context.seed, context.stage)
        if settings.lora:
            add_adapters(model, settings.lora, context.seed, context.stage, whole=[HEAD])
        inputs = {"init": paths.model(settings.init), "judges": map(paths.model, settings.reward_models_read)}
        checkpoints = opened(context, __name__, data=map(paths.rows, settings.rows_read), **inputs)
        summary, best = train(
            model, training, settings.train, seed=context.seed, purpose=context.stage, journal=context.journal, checkpoints=checkpoints,
            objective=_objective(form, settings), held_out=choosing,
        )  # fmt: skip
        last = plain_weights(model)
        if not context.first:
            return summary
        kept = settings.train.held_out
        model = begin(init, form, device)
        model.load_state_dict(best if best and kept and kept.keep == "best" else last)
        with deterministic(device):
            fitted, measured = _measure(context, model.eval(), form, measuring, fitting)
    save(context.root / paths.model(context.stage), model, tokenizer, Record(form=form, calibration=fitted, measured=measured))
    _tell(context, int(summary["steps"]), measured)
    context.accepted.extend(checkpoints.accepted())
    return summary | measured | {"too_long": float(read.too_long)}


class _File(ScoredFile):
    """A file of responses for one loss. principles: problem id -> the principle that its responses are held to, of rows that name one."""

    def __init__(self, settings: RewardModelStage, principles: dict[str, str], *given: Any) -> None:
        super().__init__(*given)
        self._settings, self._principles = settings, principles

    def _read(self, row: Mapping[str, Any]) -> None:
        if not self._settings.paired and (CHOSEN in row or REJECTED in row):
            raise Malformed(f"loss {self._settings.loss} learns from responses with a label or a score each, and this is a pair")
        super()._read(row)

    def _prompt(self, row: Mapping[str, Any]) -> tuple[Problem, list[int]]:
        problem, ids = super()._prompt(row)
        named, entailment = row.get("principle"), self._settings.loss == "entailment"
        if named is None and (self._settings.principle or not entailment):
            return problem, ids
        if not entailment:
            raise Malformed(f"principle: loss {self._settings.loss} reads none; take loss entailment")
        if not isinstance(named, str) or not named.strip():
            raise Malformed(f"principle: expected text, got {named!r}; `principle` says one for all rows that name none")
        problem = replace(problem, problem_id=problem_id(problem.prompt, named))
        self._principles[problem.problem_id] = named
        return problem, ids

    def _worth(self, row: Mapping[str, Any]) -> tuple[float, str]:
        reward, outcome = super()._worth(row)
        if sentence := _unfit(reward, self._settings):
            raise Malformed(sentence)
        return reward, outcome


def _unfit(target: float, settings: RewardModelStage) -> str:
    """Why a loss cannot learn from such a target; "" where it can."""
    if settings.loss in ("binary", "entailment") and target not in (0.0, 1.0):
        return f"score: loss {settings.loss} learns from 0 and 1, or from a label, got {target:g}"
    if settings.loss == "hl_gauss" and settings.span and not settings.span[0] <= target <= settings.span[1]:
        return f"score: {target:g} is outside `span` {list(settings.span)}"
    return ""


class _Reader:
    """The responses that the stage's references give, as examples. form: with the span of their scores. too_long: responses left out."""

    def __init__(self, context: Context, tokenizer: Any, form: Form) -> None:
        self.form, self._context, self._tokenizer, self._settings = form, context, tokenizer, context.settings
        self._principles: dict[str, str] = {}
        self._found = responses.read(context, tokenizer, form.max_tokens, functools.partial(_File, self._settings, self._principles))
        self._sampled = {of for reference, ids in self._found.of.items() if reference.endswith(ROLLOUTS) for of in ids}
        self._prompts: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        self.too_long = self._found.too_long

    def examples(self, device: str) -> Examples:
        """All that is short enough, written down as seen.

        Raises:
            UserError: there is none.
        """
        read: Examples = self._pairs(device) if self._settings.paired else self._marked()
        told = responses.told(self._found)
        if not read:
            raise UserError(f"{self._context.stage}: nothing to train on: there were {told}" + "; a pair needs two rewards" * self._settings.paired)
        self._context.journal.say(f"{len(read)} {'pairs' if self._settings.paired else 'responses'} to train and to measure on, of {told}")
        return read

    def _pairs(self, device: str) -> list[Pair]:
        found, read = [], []
        for better, worse in paired(self._context, self._found, self._settings.pairs, device):
            texts = [self._text(response) for response in (better, worse)]
            if texts[0][0] != texts[1][0] and self._fit(texts):
                read.append((better, worse))
                found.append(Pair(texts[0], texts[1], better.reward - worse.reward, self._of(better)))
        rows.see(self._context, responses.used(self._found, read))
        return found

    def _marked(self) -> list[Marked]:
        found, read = [], []
        for kept in self._found.by_prompt.values():
            for response in kept.values():
                target = self._target(response)
                text = self._text(response)
                if self._fit([text]):
                    read.append([response])
                    found.append(Marked(text, target, self._of(response), response.problem_id))
        rows.see(self._context, responses.used(self._found, read))
        if self._settings.loss == "hl_gauss" and self.form.span is None and found:
            span = min(each.target for each in found), max(each.target for each in found)
            if span[0] == span[1]:
                raise UserError(f"{self._context.stage}: every response has the score {span[0]:g}; there is nothing to tell apart")
            self.form = self.form.model_copy(update={"span": span})
        return found

    def _target(self, response: Trajectory) -> float:
        """Right or wrong where that is known and asked for, else the reward."""
        if self._settings.loss != "hl_gauss" and response.outcome:
            return float(response.outcome == Outcome.CORRECT)
        if sentence := _unfit(response.reward, self._settings):
            raise UserError(f"{self._context.stage}: {response.policy}: a response to problem {response.problem_id}: {sentence}")
        return response.reward

    def _text(self, response: Trajectory) -> Text:
        problem = self._found.problems[response.problem_id]
        principle = self._principles.get(problem.problem_id, self._settings.principle)
        if self._settings.loss == "entailment" and principle is None:
            raise UserError(f"{self._context.stage}: rollouts name no principle; say one under `principle`")
        return text_ids(self._tokenizer, self.form, self._prompt(response, problem), problem, response.response, principle)

    def _prompt(self, response: Trajectory, problem: Problem) -> list[int]:
        """The prompt in the model's own form, as it will be when it is asked; turns of files stand as they are.

        Raises:
            UserError: the problem's text is not known, and its prompt was made otherwise than `prompt` says.
        """
        key = problem.problem_id, tuple(response.prompt_ids)
        if problem.problem_id not in self._sampled:
            return response.prompt_ids
        if key not in self._prompts:
            own = prompt_ids(self._tokenizer, self.form, problem)
            if not problem.domain and own != response.prompt_ids:
                told = f"{self._context.stage}: what problem {problem.problem_id} says cannot be told from the prompt of its rollouts"
                raise UserError(f"{told}: name its rows beside them in data, such as [difficulty, math{ROLLOUTS}]")
            self._prompts[key] = own
        return self._prompts[key]

    def _of(self, response: Trajectory) -> str:
        """What is held out whole: all responses to one text."""
        return problem_id(self._found.problems[response.problem_id].prompt, "")

    def _fit(self, texts: Sequence[Text]) -> bool:
        longer = sum(len(ids) > self.form.max_tokens for ids, *_ in texts)
        self.too_long += longer
        return not longer


def _objective(form: Form, settings: RewardModelStage) -> Objective[Any]:
    if settings.paired:
        return Objective(functools.partial(pair_loss, form=form, settings=settings), IDLE_PAIR, "pairs")
    return Objective(functools.partial(marked_loss, form=form), IDLE_MARKED, "responses")


def _measure(context: Context, model: Any, form: Form, measuring: Examples, fitting: Examples) -> tuple[Calibration, dict[str, float]]:
    """What is fitted on one part of the problems, and measured on another."""
    size = context.settings.train.micro_batch
    out_fit, out = (spoken(model, form, _texts(part), size) for part in (fitting, measuring))
    truth_fit, truth = (torch.tensor([target for each in part for target in _targets_of(each)], dtype=torch.float64) for part in (fitting, measuring))
    if form.loss == "bradley_terry":
        heat = measures.temperature_of_margins((out_fit[::2] - out_fit[1::2]).numpy())
    elif form.loss == "hl_gauss":
        heat = measures.temperature_of_classes(out_fit.numpy(), targets(truth_fit, form).numpy())
    else:
        heat = measures.temperature_of_margins(((2 * truth_fit - 1) * out_fit).numpy())
    raw = worth(out_fit, form, heat)
    fitted = Calibration(temperature=heat, mean=float(raw.mean()), spread=float(raw.std(correction=0)) or 1.0, lowest=float(raw.min()))
    numbers = {of: number for number, of in enumerate(sorted({each.of for each in measuring}))}
    problems = np.array([numbers[each.of] for each in measuring for _ in _targets_of(each)])
    lengths = np.array([length for *_, length in _texts(measuring)], dtype=np.float64)
    scored = measures.Scored(truth.numpy(), worth(out, form, heat).numpy(), lengths, problems)
    generator = seeding.generator(context.seed, context.stage, "intervals of a reward model")
    measured = {"temperature": heat, "held_out_problems": float(len(numbers)), "held_out_responses": float(len(out))}
    if form.loss == "bradley_terry":
        places = np.arange(len(out))
        measured |= measures.ordering(scored, measures.Pairs(places[::2], places[1::2]), generator)
        gap = np.abs(scored.score_S[::2] - scored.score_S[1::2])
        right = (scored.score_S[::2] > scored.score_S[1::2]) + 0.5 * (gap == 0)
        return fitted, measured | measures.calibration(measures.sigmoid(gap / heat), measures.sigmoid(gap), right)
    pairs = measures.within(scored, [each.group for each in measuring if isinstance(each, Marked)])
    if not len(pairs.better_P):
        context.notice("no held-out problem has two responses of which one is better: its accuracy is that of pairs of responses to any problems")
        pairs = measures.within(scored, [""] * len(out))
    if not len(pairs.better_P):
        raise UserError(f"{context.stage}: all held-out responses are worth the same, so nothing can be measured; hold more out, or read more of them")
    measured |= measures.ordering(scored, pairs, generator) | measures.discrimination(scored, generator)
    if form.span is None:
        measured |= measures.classes(measures.sigmoid(out.numpy()), scored.target_S, problems, generator)
        return fitted, measured | measures.calibration(measures.sigmoid(out.numpy() / heat), measures.sigmoid(out.numpy()), scored.target_S)
    shares = [np.clip((values - form.span[0]) / (form.span[1] - form.span[0]), 0, 1)
              for values in (scored.score_S, worth(out, form, 1.0).numpy(), scored.target_S)]  # fmt: skip
    return fitted, measured | measures.calibration(*shares)


def _texts(examples: Examples) -> list[Text]:
    return [text for each in examples for text in ((each.better, each.worse) if isinstance(each, Pair) else (each.text,))]


def _targets_of(example: Example) -> tuple[float, ...]:
    return (1.0, 0.0) if isinstance(example, Pair) else (example.target,)


def _tell(context: Context, step: int, measured: dict[str, float]) -> None:
    """What was measured, in a row of the journal behind those of training, and wherever the stage is looked at."""
    context.measured.update(measured)
    context.journal.record(step + 1, measured, {})
    share, low, high = (measured[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))
    told = f"of {measured['pairs']:.0f} held-out pairs {share:.3f} [{low:.3f}, {high:.3f}] are ordered rightly"
    context.journal.say(f"{told}; ECE {measured['ece']:.3f}, {measured['ece_before']:.3f} before temperature {measured['temperature']:.2f}")
    if low < BOUND:
        context.notice(f"{told}: the interval begins below {BOUND:g}, so a stage that names it refuses it unless its `bound` is lower")
