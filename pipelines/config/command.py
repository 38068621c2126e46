"""params.yaml: stages of kind command."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from pipelines.config.common import PromptSettings, Rate
from pipelines.config.stage import Reading, Starting


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or not PurePosixPath(path).parts:
        raise ValueError(f"'{path}' must be a path below the project")
    return PurePosixPath(path).as_posix()


def _all_inside(places: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(_inside, places))


Inside = Annotated[str, AfterValidator(_inside)]
"""A file or folder of the project, relative to its root."""


class CommandStage(Starting, Reading):
    """An outside program makes the model, by the contract of docs/COMMAND.md."""

    kind: Literal["command"] = "command"
    command: Annotated[tuple[str, ...], Field(min_length=1)]
    """The program and its arguments; no shell reads them. It starts in the folder of the contract; what stands under `code`, or below it, may be
    named as it is there."""
    code: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_all_inside)]
    """Files and folders of the project that the program consists of: an edit of one reruns the stage."""
    environment: Inside | None = None
    """Virtual environment whose programs and packages it has. What is installed there is part of the stage's identity. Null: programs of PATH,
    whose versions nobody notes."""
    settings: dict[str, Any] = {}
    """What the program is told, as it stands here."""
    variables: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], ...] = ()
    """Names of environment variables that it gets beside those that a login has. Their values are written nowhere."""
    rollouts: bool = False
    """It leaves rollouts; without them the stage fails."""
    allow: tuple[Literal["architecture", "tokenizer"], ...] = ()
    """What its model may have of its own; otherwise both are those of `init`."""
    prompt: PromptSettings = PromptSettings()
    """How problems are put to the policy, as the rows say it in chat turns."""
    timeout: Rate | None = None
    """Seconds after which the program is ended, and the stage with it; null: never."""
    plot: str = "loss"
    """Which of its figures `dvc plots` draws by step."""

    @property
    def leaves_rollouts(self) -> bool:
        return self.rollouts
