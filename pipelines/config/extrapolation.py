"""params.yaml: stages of kind extrapolate."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.config.common import Positive
from pipelines.config.searching import Searching, SearchingSettings


class TargetSearchSettings(SearchingSettings):
    """Choose the step, and settings of the method, by problems that no training has seen: as the search of kind merge, with the model that the
    training ended with in the place of the experts."""

    grid: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    """`target` and settings of the method -> values to try in every combination, after the stage's own: {target: [80, 100, 120]}."""

    @model_validator(mode="after")
    def _targets(self) -> TargetSearchSettings:
        if wrong := [value for value in self.grid.get("target", []) if not isinstance(value, int) or isinstance(value, bool) or value < 1]:
            raise ValueError(f"grid: target: expected numbers of steps, got {wrong[0]!r}")
        return self


class ExtrapolateStage(Searching):
    """Weights of a later step than a training has taken, from those that it kept on its way."""

    kind: Literal["extrapolate"] = "extrapolate"
    init: str
    """A stage that keeps weights along its training: one with `keep`."""
    start: str | None = None
    """Model that it started from; null: the `init` of that stage."""
    target: Positive
    """Number of the step that is aimed at, such as 100 after a training of 60."""
    method: Literal["relex", "line", "next"] = "relex"
    """`relex` (arXiv 2605.21468): the leading directions of each tensor's update go on along their least-squares lines, the rest is left out. `line`:
    every entry goes on along its own. `next` (arXiv 2604.11446): predictors learn from the kept steps what the leading direction of each tensor's
    update will be as many steps later as the target lies behind the last."""
    settings: dict[str, Any] = {}
    """Keyword settings of the method: `rank` of relex (1); `window` of relex and line (the last so many kept steps decide; all); `strength` (1),
    `epochs` (1000) and `rate` (2e-5) of next."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Stored dtype of the weights."""
    search: TargetSearchSettings | None = None
    """Try several steps and keep the one that validates best, as NExt chooses its coefficient; null reads at `target` alone."""

    @property
    def models_read(self) -> tuple[str, ...]:
        return (self.init, *([self.start] if self.start else []))
