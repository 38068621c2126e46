"""params.yaml: stages of kind sample."""

from __future__ import annotations

import functools
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipelines.config.common import GenerationSettings, Positive, Section
from pipelines.config.stage import Judging, Reading, Starting

SHOWN = ("{problem}", "{right}", "{wrong}")
EXPLAIN = (
    "{problem}\n\nHere is a solution with the right answer:\n\n{right}\n\nHere is one with a mistake that is often made:\n\n{wrong}\n\n"
    "Write a complete solution of your own that a reader can check step by step. Say where the mistake could be made and how it is avoided, but do "
    "not mention that you have seen solutions."
)


REFLECTED = ("{problem}", "{answer}", "{feedback}")
REFLECT = (
    "{problem}\n\nHere is an answer that is not right:\n\n{answer}\n\nWhat checked it says: {feedback}\n\n"
    "Reflection: find what went wrong, and then write the corrected answer in full, as it would be given to the problem alone."
)


def _shows(instruction: str, names: tuple[str, ...]) -> str:
    if missing := [name for name in names if name not in instruction]:
        raise ValueError(f"must hold {missing[0]}")
    return instruction


class ExplainSettings(Section):
    """Semantic Soft Bootstrapping (SSB): a row that was answered rightly and wrongly is answered once more by the same model, which is shown the
    first right answer and one of the most common wrong ones; what is right then becomes the output of the bare row."""

    instruction: Annotated[str, AfterValidator(functools.partial(_shows, names=SHOWN))] = EXPLAIN
    """What the model is asked; {problem}, {right} and {wrong} stand for theirs."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.4
    """Of that answer; the rest is as `generation` says."""
    max_new_tokens: Positive | None = None
    """Of that answer; null: as `generation` says."""


class OutputSettings(Section):
    """What a model says of each token of answers, written as NAME/outputs, which kind distil reads under `stored`."""

    by: str | None = None
    """The model that is asked; null: `init`. Its tokenizer must be that of `init`."""
    topk: Positive = 64
    """Likeliest tokens that are kept at each token with their log-probabilities; at most the vocabulary has."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Divides the logits; the student's, generation.temperature of kind distil, must be the same."""
    explain: ExplainSettings | None = None
    """Null takes the right answers of each row, in the prompt in which they were given; otherwise their explanations, as SSB does."""


class ReflectSettings(Section):
    """Wrong answers are corrected (Re-ReST, arXiv 2406.01495): a reflector sees the problem, the answer and what the verifier says of it. Right
    corrections solve their rows, and are the rows NAME/reflections, of which a reflector learns."""

    by: str | None = None
    """The model that reflects; null: `init`."""
    instruction: Annotated[str, AfterValidator(functools.partial(_shows, names=REFLECTED))] = REFLECT
    """What it is asked; {problem}, {answer} and {feedback} stand for theirs."""
    per_problem: Positive = 4
    """Different wrong answers to each row that are reflected on, by hash."""
    generation: GenerationSettings | None = None
    """How it answers; null: as `generation` of the stage says."""


class SampleStage(Starting, Judging, Reading):
    """Answers of a model or an endpoint to rows, judged: rows with right answers as their solutions, and all answers as rollouts."""

    kind: Literal["sample"] = "sample"
    samples: Positive = 8
    """Answers to each row."""
    rows: Literal["right", "all"] = "right"
    """What is handed on. `right`: rows that got a right answer. `all`: the others too, as they were. Each has the pass rate of its answers."""
    choose: Literal["shortest", "random"] = "shortest"
    """Which right answer becomes the solution of a row: the shortest in tokens, or one by hash. The others are in the rollouts, of which `accept` of
    kind sft takes several."""
    outputs: OutputSettings | None = None
    """Null writes no outputs of a teacher."""
    reflect: ReflectSettings | None = None
    """Null leaves wrong answers as they are."""
    generation: GenerationSettings = GenerationSettings()
    """Engine `server` asks an endpoint; `init` is then the model whose tokenizer the rollouts are written in."""

    @property
    def leaves_rollouts(self) -> bool:
        return True

    @property
    def models_read(self) -> tuple[str, ...]:
        beside = [self.outputs.by if self.outputs else None, self.reflect.by if self.reflect else None]
        return tuple(dict.fromkeys([self.init, *filter(None, beside)]))
