"""Training examples for next-token prediction: token ids, and from where on the loss counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

from pipelines import prompting, seeding
from pipelines.config.common import PromptSettings
from pipelines.config.training import AcceptSettings, HeldOutSettings
from pipelines.errors import UserError
from pipelines.records import POLICY, Outcome, Problem, Trajectory

Span = tuple[int, int, float]
"""Tokens [begin, end), and the weight of each in the loss."""


class Trains(Protocol):
    """What the loop trains on: a dataclass of plain values. of: the problem that it is of, which is held out whole. tokens: how many run. scored: how
    much the loss is of, and weight: what that weighs together."""

    @property
    def of(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def scored(self) -> int: ...
    @property
    def weight(self) -> float: ...


E = TypeVar("E", bound=Trains)


@dataclass(frozen=True, slots=True)
class Example:
    """`ids` with the loss on `spans`, in order; the first begins at 1 or later, since nothing predicts the first token. of: the problem or
    conversation that it is of, which is held out whole. target: the token that should stand at all scored places; none: what stands there."""

    ids: list[int]
    spans: tuple[Span, ...]
    of: str = ""
    target: int | None = None

    @classmethod
    def after(cls, ids: list[int], start: int, of: str = "") -> Example:
        """The loss on ids[start:]."""
        return cls(ids, ((start, len(ids), 1.0),), of)

    @property
    def tokens(self) -> int:
        """How many tokens run."""
        return len(self.ids)

    @property
    def scored(self) -> int:
        """How many tokens the loss is of."""
        return sum(end - begin for begin, end, weight in self.spans if weight)

    @property
    def weight(self) -> float:
        """What they weigh together."""
        return sum((end - begin) * weight for begin, end, weight in self.spans)


def document(problem: Problem) -> str:
    """A problem with its solution as plain text, the way a corpus has it: no chat turns."""
    return f"{problem.prompt}\n{prompting.response(problem)}"


def document_prompts(tokenizer: Any, problems: Sequence[Problem]) -> list[list[int]]:
    """Token ids of each document up to where the solution starts."""
    return tokenizer([f"{problem.prompt}\n" for problem in problems], add_special_tokens=False)["input_ids"] if problems else []


def corpus_examples(
    tokenizer: Any, problems: Sequence[Problem], max_tokens: int, loss: Literal["document", "solution"] = "document"
) -> tuple[list[Example], int]:
    """Base training: documents closed by the end token, loss everywhere or on the solution alone. Second value: documents too long to use."""
    worked = [problem for problem in problems if problem.solution is not None]
    solutions = tokenizer([prompting.response(problem) for problem in worked], add_special_tokens=False)["input_ids"] if worked else []
    examples = []
    for problem, prompt, solution in zip(worked, document_prompts(tokenizer, worked), solutions, strict=True):
        ids = [*prompt, *solution, tokenizer.eos_token_id]
        if len(ids) <= max_tokens:
            examples.append(Example.after(ids, len(prompt) if loss == "solution" else 1, problem.problem_id))
    return examples, len(worked) - len(examples)


def chat_examples(
    tokenizer: Any, problems: Sequence[Problem], max_tokens: int, template: PromptSettings = prompting.PLAIN, answer_weight: float = 1.0
) -> tuple[list[Example], int]:
    """SFT: chat template, loss on the response only, whose tokens after the working weigh `answer_weight`. Second value: examples too long to use."""
    examples = []
    worked = [problem for problem in problems if problem.solution is not None]
    for problem in worked:
        prompt = prompting.prompt_ids(tokenizer, problem, template)
        ids = prompt + prompting.response_ids(tokenizer, problem, template)
        if len(ids) > max_tokens:
            continue
        example = Example.after(ids, len(prompt), problem.problem_id)
        if answer_weight != 1:
            answer = len(prompt) + prompting.working_length(tokenizer, problem, template)
            example = replace(example, spans=((len(prompt), answer, 1.0), (answer, len(ids), answer_weight)))
        examples.append(example)
    return examples, len(worked) - len(examples)


def weighed(example: Example, weight: float) -> Example:
    """The example with all its weights times `weight`."""
    return replace(example, spans=tuple((begin, end, weight * of) for begin, end, of in example.spans)) if weight != 1 else example


def accepted_examples(
    trajectories: Iterable[Trajectory], settings: AcceptSettings, max_tokens: int, key: tuple[object, ...]
) -> tuple[dict[str, list[Example]], int]:
    """SFT on answers of rollouts, by problem id: their ids as they were sampled, the loss on what the policy wrote. Second value: answers too
    long to use. key: of the choice at random."""
    found: dict[str, dict[tuple[int, ...], Trajectory]] = {}
    for trajectory in trajectories:
        taken = trajectory.outcome == Outcome.CORRECT or (settings.verdict == "any" and trajectory.response.strip())
        if taken and trajectory.origin == POLICY:
            found.setdefault(trajectory.problem_id, {}).setdefault(tuple(trajectory.response_ids), trajectory)
    accepted: dict[str, list[Example]] = {}
    too_long = 0
    for problem, answers in sorted(found.items()):
        examples = {response: _of_rollout(trajectory) for response, trajectory in answers.items()}
        fitting = [response for response, example in examples.items() if len(example.ids) <= max_tokens]
        too_long += len(examples) - len(fitting)
        rank = [(len(r) if settings.choose == "shortest" else 0, seeding.key(*key, problem, r), r) for r in fitting]
        accepted |= {problem: [examples[response] for _, _, response in sorted(rank)[: settings.per_problem]]} if rank else {}
    return accepted, too_long


def _of_rollout(trajectory: Trajectory) -> Example:
    """One trajectory, in the prompt that training sees."""
    ids = list(trajectory.prompt_ids if trajectory.trained_prompt is None else trajectory.trained_prompt)
    spans: list[Span] = []
    for segment in trajectory.turns:
        if segment.trains:
            spans.append((len(ids), len(ids) + len(segment.ids), 1.0))
        ids += segment.ids
    return Example(ids, tuple(spans), trajectory.problem_id)


def hold_out(examples: Sequence[E], settings: HeldOutSettings | None, *seed: object) -> tuple[list[E], list[E]]:
    """(examples to train on, examples to measure on): all those of so many problems, drawn by `seed`.

    Raises:
        UserError: nothing would be left to train on.
    """
    if settings is None:
        return list(examples), []
    ids = sorted({example.of for example in examples})
    if settings.problems >= len(ids):
        raise UserError(f"train.held_out.problems {settings.problems} must be less than the {len(ids)} problems and conversations there are")
    held = {ids[place] for place in seeding.generator(*seed, "held out").permutation(len(ids))[: settings.problems]}
    return [e for e in examples if e.of not in held], [e for e in examples if e.of in held]


def batches(examples: Sequence[E], batch_size: int, seed: int, purpose: str, epoch: int) -> Iterator[list[E]]:
    """One epoch in an order keyed by (seed, purpose, epoch), long and short examples mixed: batches of like length train worse (figures in
    docs/STAGES.md). Inside a batch they stand by length, so that a micro-batch pads little. The last may be short."""
    order = seeding.generator(seed, purpose, "epoch", epoch).permutation(len(examples))
    for start in range(0, len(order), batch_size):
        yield sorted((examples[i] for i in order[start : start + batch_size]), key=lambda example: example.tokens)
