"""params.yaml: stages of kind sample."""

from __future__ import annotations

from typing import Literal

from pipelines.config.common import GenerationSettings, Positive
from pipelines.config.stage import Judging, Reading, Starting


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
    generation: GenerationSettings = GenerationSettings()
    """Engine `server` asks an endpoint; `init` is then the model whose tokenizer the rollouts are written in."""

    @property
    def leaves_rollouts(self) -> bool:
        return True
