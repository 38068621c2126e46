"""What a teacher says of each token of answers, in the form that kind distil reads under `stored`: a row of NAME/outputs is

    {problem_id, response, tokens, topk, logp, temperature}

tokens are the ids of the response; for each topk has the teacher's likeliest ids, and logp their log-probabilities in the prompt that the teacher
saw. The student trains on them in the prompt of the bare problem.

With `explain` (Semantic Soft Bootstrapping) the responses are explanations: a row that has right and wrong answers is answered once more by the same
model, with the first right and a common wrong answer in the prompt, and what is right then stays.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipelines import paths, seeding
from pipelines.config.sampling import ExplainSettings, OutputSettings, SampleStage
from pipelines.errors import UserError
from pipelines.models.exactness import deterministic
from pipelines.models.loading import load_policy
from pipelines.models.scoring import pad, token_scores
from pipelines.records import Outcome, Problem
from pipelines.stages import Context
from pipelines.stages.answers import Answer, Policy
from pipelines.store import replacing

SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("response", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("topk", pa.list_(pa.list_(pa.int32()))),
        ("logp", pa.list_(pa.list_(pa.float32()))),
        ("temperature", pa.float64()),
    ]
)
TOGETHER = 16
"""Responses that are scored together."""


@dataclass(frozen=True)
class Shown:
    """A response to a problem, in the prompt that the teacher sees."""

    problem_id: str
    prompt: list[int]
    answer: Answer


class Outputs:
    """Gathers answers that a stage of kind sample gets, and writes what the teacher says of them. policy: who gives them. counts: reason -> rows
    without an explanation."""

    def __init__(self, context: Context, policy: Policy) -> None:
        stage: SampleStage = context.settings
        assert stage.outputs is not None
        self.counts: dict[str, int] = {}
        self._context, self._policy, self._stage, self._settings = context, policy, stage, stage.outputs
        self._shown: list[Shown] = []
        self._asked: list[tuple[str, Problem]] = []

    def take(self, problem: Problem, answers: Sequence[Answer]) -> None:
        """The answers to a row."""
        if self._settings.explain is None:
            found = {tuple(answer.ids): answer for answer in reversed(answers) if answer.verdict.correct}
            self._shown += [Shown(problem.problem_id, self._policy.prompt(problem), answer) for answer in reversed(found.values())]
        elif pair := contrast(answers, (self._context.seed, self._context.stage, "contrast", problem.problem_id)):
            self._asked.append((problem.problem_id, hinted(problem, *pair, self._settings.explain)))
        else:
            self.counts["without_contrast"] = self.counts.get("without_contrast", 0) + 1

    def write(self, folder: Path, stack: ExitStack, work: dict[str, object]) -> list[Policy]:
        """Have explanations given where they are asked for, and write `folder`/outputs.parquet. work: as `Policy` takes it. Returns who was asked
        beside the stage's policy.

        Raises:
            UserError: there is nothing to write, or the teacher cannot read it.
        """
        explainers = []
        if how := self._settings.explain:
            changes = {"temperature": how.temperature} | ({"max_new_tokens": how.max_new_tokens} if how.max_new_tokens else {})
            generation, asked = self._stage.generation.model_copy(update=changes), [problem for _, problem in self._asked]
            explainers = [stack.enter_context(Policy(self._context, self._stage.init, generation, asked, work, self._stage.judge))]
            self._explain(explainers[0])
        if not self._shown:
            told = ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts.items()) if count) or "no right answer"
            raise UserError(f"{self._context.stage}: there are no outputs to write: {told}")
        teacher = self._teacher()
        with replacing(folder / paths.OUTPUTS) as path, pq.ParquetWriter(path, SCHEMA, compression="zstd") as file, deterministic(teacher.device):
            for number, rows in enumerate(_scored(teacher, self._shown, self._settings, len(self._policy.tokenizer))):
                file.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                self._context.journal.show(min((number + 1) * TOGETHER, len(self._shown)), len(self._shown), "outputs")
        return explainers

    def figures(self) -> dict[str, float]:
        """Of the stage."""
        return {"outputs": float(len(self._shown)), **{name: float(count) for name, count in self.counts.items()}}

    def _explain(self, explainer: Policy) -> None:
        """Keep the explanations whose answer the row's verifier takes."""
        of = {id(problem): problem_id for problem_id, problem in self._asked}
        fitting, too_long = explainer.fitting([problem for _, problem in self._asked])
        for problem, (answer,) in zip(fitting, explainer.answers(fitting, 1), strict=True):
            if answer.verdict.correct:
                self._shown.append(Shown(of[id(problem)], explainer.prompt(problem), answer))
        self.counts |= {"hint_too_long": len(too_long), "explanation_not_right": len(fitting) - len(self._shown)}

    def _teacher(self) -> Any:
        """
        Raises:
            UserError: it reads other ids, or has no room for an answer with its prompt.
        """
        stage, init = self._context.stage, self._stage.init
        name = self._settings.by or init
        teacher, tokenizer = load_policy(self._context.root / paths.model(name), self._context.device, chat=False)
        if tokenizer.get_vocab() != self._policy.tokenizer.get_vocab():
            raise UserError(f"{stage}: outputs.by: the tokenizer of {name} is another than that of {init}, in whose tokens the answers are")
        room = teacher.config.max_position_embeddings
        if long := sum(len(each.prompt) + len(each.answer.ids) > room for each in self._shown):
            raise UserError(f"{stage}: outputs.by: {long} answers with their prompts are longer than the {room} tokens that {name} reads")
        return teacher.eval()


def contrast(answers: Sequence[Answer], key: tuple[object, ...]) -> tuple[Answer, Answer] | None:
    """The first right answer, and the first of those that give the most common wrong one; where all wrong ones differ, one by hash of `key`. None
    where all that could be read are right, or wrong."""
    correct = [answer for answer in answers if answer.verdict.correct]
    wrong = [answer for answer in answers if answer.verdict.outcome == Outcome.WRONG and answer.verdict.extracted is not None]
    if not correct or not wrong:
        return None
    times = Counter(answer.verdict.extracted for answer in wrong)
    if max(times.values()) == 1:
        return correct[0], min(wrong, key=lambda answer: seeding.key(*key, answer.number))
    return correct[0], next(answer for answer in wrong if times[answer.verdict.extracted] == max(times.values()))


def hinted(problem: Problem, correct: Answer, wrong: Answer, settings: ExplainSettings) -> Problem:
    """The row as the explaining model is asked, with the same answer and verifier."""
    parts = {"problem": problem.prompt, "right": correct.text, "wrong": wrong.text}
    return replace(problem, prompt=re.sub(r"\{(problem|right|wrong)\}", lambda found: parts[found[1]], settings.instruction))


def _scored(teacher: Any, shown: Sequence[Shown], settings: OutputSettings, known: int) -> Iterator[list[dict[str, Any]]]:
    """TOGETHER rows at a time. known: ids that the tokenizer has; a padded head has more."""
    k = min(settings.topk, known)

    def ids(logp_NV: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        return logp_NV[:, :known].topk(k, -1).indices

    def logp(logp_NV: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        return logp_NV[:, :known].topk(k, -1).values

    for start in range(0, len(shown), TOGETHER):
        part = shown[start : start + TOGETHER]
        ids_BT = pad([[*each.prompt, *each.answer.ids] for each in part], device=teacher.device)
        score_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        for row, each in enumerate(part):
            score_BT[row, len(each.prompt) : len(each.prompt) + len(each.answer.ids)] = True
        with torch.no_grad():
            said = token_scores(teacher, ids_BT, score_BT, {"ids": ids, "logp": logp}, temperature=settings.temperature)
        yield [
            {
                "problem_id": each.problem_id, "response": each.answer.text, "tokens": each.answer.ids,
                "topk": said["ids"][row][score_BT[row]].tolist(), "logp": said["logp"][row][score_BT[row]].clamp(max=0.0).tolist(),
                "temperature": settings.temperature,
            }
            for row, each in enumerate(part)
        ]  # fmt: skip
