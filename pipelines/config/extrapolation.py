"""params.yaml: stages of kind extrapolate."""

from __future__ import annotations

from typing import Any, Literal

from pipelines.config.common import Positive
from pipelines.config.stage import StageSettings


class ExtrapolateStage(StageSettings):
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

    @property
    def models_read(self) -> tuple[str, ...]:
        return (self.init, *([self.start] if self.start else []))
