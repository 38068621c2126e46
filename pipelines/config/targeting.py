"""params.yaml: stages of kind target."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.config.common import AskingSettings, Positive, Share
from pipelines.config.stage import ROLLOUTS, Reading


class SkillSettings(AskingSettings):
    """A teacher says which skills a problem needs, and which of them a wrong answer lacks: an OpenAI-compatible endpoint, whose address and key come
    from TOUCHSTONE_TEACHER_URL and TOUCHSTONE_TEACHER_KEY."""

    known: tuple[str, ...] = ()
    """The skills there are; none: the teacher lists them, having read some problems."""
    most: Positive = 30
    """Skills that it lists at most."""
    shown: Positive = 50
    """Problems that it reads for that, drawn by hash."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.0


class TargetStage(Reading):
    """Rows for the skills that a model lacks (STAT-Sel, Skill-Targeted Adaptive Training, arXiv 2510.10023). `data` names the rows to choose among;
    what the model lacks is counted on other rows, whose pass rates say which of them are difficult to it."""

    kind: Literal["target"] = "target"
    weak: str
    """Reference to those other rows, such as `difficulty/graded`, or a stage of kind sample that hands on `rows: all`."""
    skills: SkillSettings | None = None
    """Null: the topics of a row are its skills."""
    answers: str | None = None
    """Reference to rollouts with the model's answers to `weak`: the teacher names what a wrong one lacks. Null: a difficult row lacks all its
    skills."""
    below: Share = 0.5
    """A row with a lower pass rate is difficult (in the paper one whose steps a process reward model scores low)."""
    hardest: Positive = 500
    """Difficult rows that count, the lowest pass rate first."""
    least: Positive = 10
    """Rows of `weak` that must need a skill for it to count."""
    per_missing: Positive = 5
    """Rows for each time that a skill is missing."""
    budget: Positive | None = None
    """So many rows in proportion to those times instead."""

    @property
    def rows_read(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.data, self.weak, *([self.answers] if self.answers else [])]))

    @model_validator(mode="after")
    def _consistent(self) -> TargetStage:
        if named := next((name for name in (*self.data, self.weak) if name.endswith(ROLLOUTS)), None):
            raise ValueError(f"'{named}' names rollouts, and rows are wanted; `answers` names rollouts")
        if self.weak in self.data:
            raise ValueError(f"weak: '{self.weak}' is in data too; what the model is tried on must not train it")
        if self.answers and not self.answers.endswith(ROLLOUTS):
            raise ValueError(f"answers: '{self.answers}' names no rollouts, such as said{ROLLOUTS}")
        if self.answers and not self.skills:
            raise ValueError("answers: a teacher reads them: say `skills: {}`, or leave `answers` out")
        return self
