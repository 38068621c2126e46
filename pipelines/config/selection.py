"""params.yaml: stages of kind select."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from pipelines.config.common import Positive
from pipelines.config.stage import ROLLOUTS, Reading, Rows


class SelectStage(Reading):
    """Rows chosen by what a finished run of RL showed of them. `data` names rows, and the rollouts of one stage (`math/rollouts`)."""

    kind: Literal["select"] = "select"
    score: str
    """How a row is scored, by the answers of each time that it was drawn. `learning_impact`: how near its rewards follow the mean of all rows, 1 at
    best (LIMR, arXiv 2502.11886). `variance`: how much its pass rate varied (1-shot RLVR, arXiv 2504.20571)."""
    settings: dict[str, Any] = {}
    """Of the score."""
    at_least: float | None = None
    """Rows of at least this score are handed on (LIMR: 0.6)."""
    most: Positive | None = None
    """So many of the highest score, ties by problem id (1-shot RLVR: 1)."""

    @property
    def history(self) -> str:
        """The reference to the rollouts."""
        return next(name for name in self.data if name.endswith(ROLLOUTS))

    @property
    def rows(self) -> dict[str, Rows]:
        """What of `data` are rows."""
        return {name: rows for name, rows in self.data.items() if not name.endswith(ROLLOUTS)}

    @model_validator(mode="after")
    def _consistent(self) -> SelectStage:
        named = [name for name in self.data if name.endswith(ROLLOUTS)]
        if len(named) != 1 or not self.rows:
            raise ValueError(
                f"data: expected rows and the rollouts of one stage, such as [difficulty, math{ROLLOUTS}], got {', '.join(self.data)}"
            )
        if self.at_least is None and self.most is None:
            raise ValueError("give `at_least` or `most`; without either every row would be handed on")
        return self
