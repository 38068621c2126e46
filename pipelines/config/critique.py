"""params.yaml: stages of kind critique."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from pipelines.config.common import Positive
from pipelines.config.stage import ROLLOUTS, Reading, Rows

ASK = (
    "Here are a problem and a solution that somebody has written.\n\nProblem:\n{problem}\n\nSolution:\n{solution}\n\n"
    "Critique the solution step by step: say what is right, and where it goes wrong if it does. Then put your conclusion, right or wrong, "
    "within \\boxed{}."
)


def _shows(instruction: str) -> str:
    if missing := next((name for name in ("{problem}", "{solution}") if name not in instruction), None):
        raise ValueError(f"must hold {missing}")
    return instruction


class CritiqueStage(Reading):
    """New rows out of what models have answered: a problem with a solution, and the question whether it is right, whose answer is the verifier's.
    `data` names problems and the rollouts of one or more stages. A stage of kind sample has a teacher write critiques of them, of which kind sft
    learns (Critique Fine-Tuning, arXiv 2501.17703; with one problem, arXiv 2506.03295)."""

    kind: Literal["critique"] = "critique"
    solutions: Positive = 10
    """Different answers to each problem that are taken of each stage's rollouts, by hash."""
    instruction: Annotated[str, AfterValidator(_shows)] = ASK
    """The prompt of a row; {problem} and {solution} stand for theirs. It must ask for the conclusion `right` or `wrong`."""

    @property
    def generators(self) -> tuple[str, ...]:
        """References to rollouts."""
        return tuple(name for name in self.data if name.endswith(ROLLOUTS))

    @property
    def problems(self) -> dict[str, Rows]:
        """What of `data` are problems."""
        return {name: rows for name, rows in self.data.items() if not name.endswith(ROLLOUTS)}

    @model_validator(mode="after")
    def _consistent(self) -> CritiqueStage:
        if not self.generators or not self.problems:
            raise ValueError(f"data: expected problems and rollouts, such as [difficulty, math{ROLLOUTS}], got {', '.join(self.data)}")
        return self
