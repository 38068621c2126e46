"""Wrong answers with what the verifier says of them, corrected by a reflector (Re-ReST, arXiv 2406.01495), in a stage of kind sample.

A correction that the verifier takes solves the row that the answer was of, and stands in NAME/reflections as what the reflector learns: the row's
problem with the wrong answer and its verdict as the prompt, the correction as the solution, and the row as the parent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pipelines import paths, seeding
from pipelines.config.sampling import ReflectSettings, SampleStage
from pipelines.records import Outcome, Problem, problem_id
from pipelines.stages import Context
from pipelines.stages.answers import Answer, Policy
from pipelines.store import write_problems


class Reflections:
    """Gathers wrong answers, and has them corrected. corrected: id of a row -> the first correction of it that is right. counts: figures."""

    def __init__(self, context: Context) -> None:
        stage: SampleStage = context.settings
        assert stage.reflect is not None
        self.corrected: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self._context, self._stage, self._settings = context, stage, stage.reflect
        self._asked: list[Problem] = []

    def take(self, problem: Problem, answers: Sequence[Answer]) -> None:
        """The answers to a row."""
        key = (self._context.seed, self._context.stage, "reflect", problem.problem_id)
        wrong = {answer.text: answer for answer in answers if answer.verdict.outcome not in (Outcome.CORRECT, Outcome.INFRASTRUCTURE)}
        ranked = sorted(wrong, key=lambda text: seeding.key(*key, text))
        self._asked += [reflected(problem, wrong[text], self._settings) for text in ranked[: self._settings.per_problem]]

    def write(self, folder: Path, stack: ExitStack, work: dict[str, object], solution: Callable[[Problem, str], Problem]) -> list[Policy]:
        """Have them corrected, and write `folder`/reflections.parquet. work: as `Policy` takes it. solution(row, text): the row with a right answer
        as its solution. Returns who was asked."""
        generation, init = self._settings.generation or self._stage.generation, self._settings.by or self._stage.init
        reflector = stack.enter_context(Policy(self._context, init, generation, self._asked, work, self._stage.judge))
        fitting, too_long = reflector.fitting(self._asked)
        right: list[Problem] = []
        for place, (problem, (answer,)) in enumerate(zip(fitting, reflector.answers(fitting, 1), strict=True)):
            if answer.verdict.correct:
                self.corrected.setdefault(problem.parents[-1], answer.text)
                right.append(solution(problem, answer.text))
            self._context.journal.show(place + 1, len(fitting), f"{len(right)} answers corrected")
        write_problems(folder / paths.REFLECTIONS, right)
        self.counts = {"reflected": len(fitting), "corrected": len(right), "reflection_too_long": len(too_long)}
        return [reflector]


def reflected(problem: Problem, answer: Answer, settings: ReflectSettings) -> Problem:
    """The row as the reflector is asked, with the same answer and verifier."""
    told = ": ".join(filter(None, (answer.verdict.outcome.value, answer.verdict.detail)))
    parts = {"problem": problem.prompt, "answer": answer.text, "feedback": told}
    prompt = re.sub(r"\{(problem|answer|feedback)\}", lambda found: parts[found[1]], settings.instruction)
    new = problem_id(prompt, problem.answer)
    return replace(problem, problem_id=new, prompt=prompt, solution=None, parents=(*problem.parents, problem.problem_id), pass_rate=None, pass_n=None)
