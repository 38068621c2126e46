"""Reward models: what a response is worth to a language model with a head for it, as a folder, and how others take its word.

    bradley_terry, binary    one number r: transformers' XForSequenceClassification, whose head `score` has no bias
    hl_gauss                 a class for each bin of the span, likewise; r = sum_k softmax(z / T)_k * centre_k
    entailment               the language model itself, asked whether a principle is met; r = log p(Yes) - log p(No)

A response is read as text, in the model's own chat template, so a policy may have another tokenizer; r is read at its end token. `reward_model.json`
beside the weights says all that serving needs: loss, prompt, bins, the temperature T that was fitted on problems of its own, mean and spread of r
there, and what was measured on held-out problems. Other tools can load the folder without it.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pipelines import paths, prompting, seeding
from pipelines.config.common import PromptSettings, Section, Span
from pipelines.config.reward_model import Loss, RewardModelStage
from pipelines.errors import UserError
from pipelines.models.loading import load_policy, load_tokenizer
from pipelines.models.scoring import hidden_states, logits, pad
from pipelines.models.sharding import within
from pipelines.records import Problem
from pipelines.store import read_json, replacing_folder, write_json
from pipelines.verifiers.text import final_text

HEAD = "score"
"""The head's name in transformers' classes."""
SIGMA, BEYOND = 0.75, 3
"""hl_gauss: standard deviation of a target, in bins, and how many of them the bins reach beyond the span: a target at its border would be cut."""
LARGEST = 5.0
"""Standard deviations that a score is cut to, where it is served so."""
WITHOUT_END = "[NULL]"
"""What is read of a response whose thinking has no end."""
ROWS = 64
"""Responses that are scored together."""
Scale = Literal["probability", "standard", "raw"]
Text = tuple[list[int], int, int]
"""What is read of one response: token ids, from where on they are the response's own, and its length in tokens."""


class Form(Section):
    """How responses are read and what the head says."""

    loss: Loss
    prompt: PromptSettings
    reads: Literal["response", "answer"]
    question: str
    principle: str | None
    answers: tuple[int, int] | None
    """entailment: the tokens of Yes and No."""
    span: Span[float] | None
    bins: int
    max_tokens: int

    @property
    def classes(self) -> int:
        """Outputs of the head."""
        return self.bins if self.loss == "hl_gauss" else 1


class Calibration(Section):
    """What was fitted on problems of their own. temperature: divides what the head says. mean, spread, lowest: of r."""

    temperature: float = 1.0
    mean: float = 0.0
    spread: float = 1.0
    lowest: float = 0.0


class Record(Section):
    """reward_model.json. measured: figures on held-out problems."""

    form: Form
    calibration: Calibration
    measured: dict[str, float]


def form_of(settings: RewardModelStage, tokenizer: Any, longest: int) -> Form:
    """The form that a stage's settings ask for; the span of hl_gauss may still be unknown.

    Raises:
        UserError: the tokenizer cannot tell Yes from No by the first token.
    """
    answers = None
    if settings.loss == "entailment":
        yes, no = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
        if yes == no:
            raise UserError("loss entailment: Yes and No begin with the same token in this tokenizer")
        answers = yes, no
    told = {name: getattr(settings, name) for name in ("loss", "prompt", "reads", "question", "principle", "bins")}
    return Form(**told, span=settings.span if settings.loss == "hl_gauss" else None, answers=answers, max_tokens=longest)


def prompt_ids(tokenizer: Any, form: Form, problem: Problem) -> list[int]:
    """Token ids of a problem as the model reads it."""
    return prompting.prompt_ids(tokenizer, problem, form.prompt)


def text_ids(tokenizer: Any, form: Form, prompt: Sequence[int], problem: Problem, response: str, principle: str | None) -> Text:
    """What the model reads of one response. prompt: of `prompt_ids`, or of turns. Characters that spell special tokens stay characters."""
    read = response if form.reads == "response" else final_text(response)
    read = WITHOUT_END if read is None else read
    said = tokenizer(read, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if form.loss == "entailment":
        parts = {"problem": problem.prompt, "principle": principle or "", "response": read}
        asked = re.sub(r"\{(problem|principle|response)\}", lambda found: parts[found[1]], form.question)
        ids = prompting.turns_ids(tokenizer, [{"role": "user", "content": asked}])
        return ids, len(ids) - 1, len(said)
    return [*prompt, *said, tokenizer.eos_token_id], len(prompt), len(said)


def edges(span: tuple[float, float], bins: int) -> Tensor:
    """Borders (K + 1) of the bins of hl_gauss, which reach BEYOND standard deviations past both ends of the span."""
    beyond = BEYOND * SIGMA * (span[1] - span[0]) / (bins - 2 * BEYOND * SIGMA)
    return torch.linspace(span[0] - beyond, span[1] + beyond, bins + 1)


def outputs(model: Any, form: Form, texts: Sequence[Text]) -> Tensor:
    """What the head says at the end of each: r (B,), or logits of the bins (B, K); float32."""
    ids_BT = pad([ids for ids, *_ in texts], device=model.device)
    place_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    start_B, length_B = torch.tensor([[start, len(ids)] for ids, start, _ in texts], device=ids_BT.device).T
    response_BT = (place_T >= start_B[:, None]) & (place_T < length_B[:, None])
    return within(model, _outputs, ids_BT, response_BT, form.answers)


def _outputs(model: Any, ids_BT: Tensor, response_BT: Tensor, answers: tuple[int, int] | None) -> Tensor:
    _, end_BE = hidden_states(model, ids_BT, response_BT, ends=True)
    assert end_BE is not None
    if answers is None:
        out_BK = logits(getattr(model, HEAD), end_BE)
        return out_BK[:, 0] if out_BK.shape[1] == 1 else out_BK
    logits_BV = logits(model.get_output_embeddings(), end_BE)
    return logits_BV[:, answers[0]] - logits_BV[:, answers[1]]


def worth(out_B: Tensor, form: Form, temperature: float) -> Tensor:
    """r (B,) of what the head says (B,) or (B, K)."""
    if form.span is None:
        return out_B
    border = edges(form.span, form.bins).to(out_B)
    return torch.softmax(out_B / temperature, -1) @ ((border[1:] + border[:-1]) / 2)


def begin(source: Path, form: Form, device: str, *seed: object) -> Any:
    """The model that a policy becomes with a head of its own. A number's weights are drawn from N(0, 1 / (E + 1)) (arXiv 2009.01325),
    those of bins are 0: every bin is as likely.

    Raises:
        UserError: `source` is no policy, or there is no such class for its architecture.
    """
    policy, _ = load_policy(source, chat=False)
    if form.loss == "entailment":
        return policy.to(device)
    config = policy.config
    config.num_labels = form.classes
    try:
        with torch.random.fork_rng(devices=[]):
            model: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        head = getattr(model, HEAD)
    except (ValueError, AttributeError):
        raise UserError(f"{source.name}: a {config.model_type} model takes no head for scores (transformers knows none of one vector)") from None
    model.base_model.load_state_dict(policy.base_model.state_dict())
    deviation = (config.hidden_size + 1) ** -0.5 if form.classes == 1 else 0.0
    drawn = seeding.generator(*seed, "head of a reward model").normal(0.0, 1.0, head.weight.shape) * deviation
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(drawn))
    return model.to(device)


def save(path: Path, model: Any, tokenizer: Any, record: Record) -> None:
    """The folder, whole or absent."""
    with replacing_folder(path) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / paths.REWARD_MODEL, record.model_dump(mode="json"))


class RewardModel:
    """A reward model at work. Safe to share between threads; what is scored together decides the last bits."""

    def __init__(self, name: str, model: Any, tokenizer: Any, record: Record) -> None:
        self.name, self.record = name, record
        self._model, self._tokenizer, self._lock = model.eval().requires_grad_(False), tokenizer, threading.Lock()

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> RewardModel:
        """
        Raises:
            UserError: the folder holds none, or one that is damaged.
        """
        try:
            record = Record.model_validate(read_json(folder / paths.REWARD_MODEL))
            kind: Any = AutoModelForCausalLM if record.form.loss == "entailment" else AutoModelForSequenceClassification
            model = kind.from_pretrained(folder, dtype="float32", use_safetensors=True)
        except (OSError, ValueError, ValidationError) as error:
            raise UserError(f"{folder}: cannot be loaded as a reward model: {str(error).strip().splitlines()[0]}") from error
        return cls(folder.name, model.to(device), load_tokenizer(folder, chat=False), record)

    def require(self, bound: float) -> None:
        """
        Raises:
            UserError: its held-out accuracy may lie below the bound.
        """
        share, low, high = (self.record.measured[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))
        if low < bound:
            told = f"orders {share:.3f} [{low:.3f}, {high:.3f}] of held-out pairs rightly"
            raise UserError(f"reward model {self.name} {told}, and its interval must not begin below {bound:g} (`bound`)")

    def scores(self, asked: Sequence[tuple[Problem, str]], scale: Scale = "probability", principle: str | None = None) -> list[float]:
        """What each response to its problem is worth.

        probability: in [0, 1]: of being right, or of meeting the principle; of a model of pairs, of being preferred to an average response; of a
        model of scores, the place in the span. standard: (r - mean) / spread, cut to LARGEST. raw: r. A blank response, and one that is too long
        to be read, gets the lowest r of the problems that fitted the temperature.
        """
        with self._lock:  # of the tokenizer too: what is split into characters is a state that all its calls share
            raw = self._raw(asked, principle or self.record.form.principle)
        return [self._scaled(each, scale) for each in raw]

    @torch.no_grad()
    def _raw(self, asked: Sequence[tuple[Problem, str]], principle: str | None) -> list[float]:
        form = self.record.form
        prompts: dict[tuple[str, str], list[int]] = {}
        texts: dict[int, Text] = {}
        for place, (problem, response) in enumerate(asked):
            key = problem.prompt, problem.answer_type
            if key not in prompts:
                prompts[key] = prompt_ids(self._tokenizer, form, problem)
            text = text_ids(self._tokenizer, form, prompts[key], problem, response, principle)
            if response.strip() and len(text[0]) <= form.max_tokens:
                texts[place] = text
        found = [self.record.calibration.lowest] * len(asked)
        places = list(texts)
        for start in range(0, len(places), ROWS):
            rows = places[start : start + ROWS]
            out = outputs(self._model, form, [texts[place] for place in rows])
            for place, value in zip(rows, worth(out, form, self.record.calibration.temperature).tolist(), strict=True):
                found[place] = value
        return found

    def _scaled(self, raw: float, scale: Scale) -> float:
        fitted, form = self.record.calibration, self.record.form
        if scale == "raw":
            return raw
        if scale == "standard":
            return min(max((raw - fitted.mean) / fitted.spread, -LARGEST), LARGEST)
        if form.span is not None:
            return min(max((raw - form.span[0]) / (form.span[1] - form.span[0]), 0.0), 1.0)
        return sigmoid((raw - (fitted.mean if form.loss == "bradley_terry" else 0.0)) / fitted.temperature)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def served(folder: Path, bound: float, device: str = "cpu") -> RewardModel:
    """The reward model in `folder`, for a stage that takes its word.

    Raises:
        UserError: there is none, or its held-out accuracy may lie below the bound.
    """
    found = RewardModel.load(folder, device)
    found.require(bound)
    return found
