"""params.yaml: stages of kind distil."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.config.common import OptimiserSettings
from pipelines.config.rl import SamplingStage
from pipelines.config.stage import FILES, OUTPUTS

EVERY = "*"
"""In `teachers`: every domain that has no teacher of its own."""


class DistilStage(SamplingStage):
    """Distillation: the policy answers and teachers say what they hold of its tokens, or it is trained on outputs of teachers that are stored."""

    kind: Literal["distil"] = "distil"
    recipe: str = "on_policy_distillation"
    """A row of pipelines/rl/recipes.yaml: on_policy_distillation (reverse KL per token as advantage), topk_distillation (a divergence over the
    student's likeliest tokens), stored_distillation and ssb (with `stored`); `overrides` add rewards, clips, KL terms as in RL."""
    teachers: dict[str, str] = {}
    """Domain -> the model that teaches it: `base` or a stage that makes a model; `*` stands for every other domain."""
    stored: Annotated[str, Field(pattern=r".(\.(jsonl|parquet)|/outputs)$")] | None = None
    """Outputs of teachers: NAME/outputs of a stage of kind sample, or a file with one a row: {problem_id | prompt | messages, response}, or with
    {tokens, topk, logp, temperature?} in place of the text: the ids of the response in the student's tokenizer, and for each the teacher's likeliest
    ids with their log-probabilities. Null has the policy answer."""
    optimiser: OptimiserSettings = OptimiserSettings(lr=2e-4, warmup=0.05, schedule="constant", weight_decay=0.0)

    @property
    def leaves_rollouts(self) -> bool:
        return self.stored is None

    @property
    def models_read(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*super().models_read, *self.teachers.values()]))

    @property
    def rows_read(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*super().rows_read, *([self.stored] if self.stored else [])]))

    @model_validator(mode="after")
    def _taught(self) -> DistilStage:
        if not self.teachers and self.stored is None:
            raise ValueError("teachers: missing; name a model for each domain, or for all of them: {'*': MODEL}; or a file of outputs under `stored`")
        if self.teachers and self.stored:
            raise ValueError(f"teachers have nothing to say where their outputs are stored ({self.stored}); leave one of them out")
        if any(name.endswith((*FILES, OUTPUTS)) and name == self.stored for name in self.data):
            raise ValueError(f"data: {self.stored} holds the outputs of teachers, and data names the rows that they answer")
        return self
