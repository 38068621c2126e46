"""params.yaml: rl."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.config.common import GenerationSettings, OptimiserSettings, Positive, Section

RESERVED = ("base", "sft", "merged")
"""Model names an RL stage may not take."""


class RlStage(Section):
    """One stage of RL with verifiable rewards."""

    init: str
    """`base`, `sft` or the name of another RL stage: the weights this stage starts from."""
    reference: str
    """Likewise: the frozen policy of KL terms. For `rto` it is the one trained on preferences, for `npo` the later checkpoint that guides."""
    reset_reference: tuple[Positive, ...] = ()
    """After each of these steps the reference becomes the policy."""
    domains: Annotated[tuple[str, ...], Field(min_length=1)]
    """Only problems of these domains are sampled."""
    recipe: str = "grpo"
    """A row of pipelines/rl/recipes.yaml; `touchstone methods` lists them."""
    overrides: dict[str, Any] = {}
    """Slots of the recipe to change, for example {aggregation: {name: token_mean}}."""
    steps: Positive = 80
    """Optimiser batches."""
    prompts_per_step: Positive = 16
    group_size: Annotated[int, Field(ge=2)] = 8
    """Responses per prompt."""
    minibatches: Positive = 1
    """Optimiser steps that a batch of rollouts is split into; from the second on they are off-policy."""
    epochs: Positive = 1
    """Passes over a batch of rollouts."""
    micro_batch: Positive = 64
    """Sequences per forward and backward; changes memory, not the loss."""
    generation: GenerationSettings = GenerationSettings()
    optimiser: OptimiserSettings = OptimiserSettings(lr=2e-4, warmup=0.05, schedule="constant", weight_decay=0.0)
    checkpoint_every: Positive = 5
    """Steps between resumable checkpoints."""
    task_sampler: Literal["shuffle"] = "shuffle"
    """`shuffle`: every problem once per epoch, in an order keyed by seed and epoch."""

    @property
    def on_policy(self) -> bool:
        """Whether every rollout trains the policy that sampled it."""
        return self.minibatches == self.epochs == 1

    @property
    def models(self) -> tuple[str, str]:
        """Names of the models that the stage reads."""
        return self.init, self.reference


class RlSettings(Section):
    """RL stages by name; an edit of this mapping is all it takes to add, remove or reorder one."""

    stages: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], RlStage]

    @model_validator(mode="after")
    def _walkable(self) -> RlSettings:
        for name, stage in self.stages.items():
            if name in RESERVED:
                raise ValueError(f"stages.{name}: the name is taken by a stage of the graph; choose another")
            for role, model in (("init", stage.init), ("reference", stage.reference)):
                if model not in self.stages and model not in ("base", "sft"):
                    raise ValueError(f"stages.{name}.{role}: '{model}' names no stage; choose one of {', '.join(['base', 'sft', *self.stages])}")
        for name in self.stages:
            self._walk([name])
        return self

    def _walk(self, seen: list[str]) -> None:
        stage = self.stages[seen[-1]]
        for role, model in (("init", stage.init), ("reference", stage.reference)):
            if model in seen:
                raise ValueError(f"stages.{seen[-1]}.{role}: the stages {' -> '.join([*seen, model])} make a cycle")
            if model in self.stages:
                self._walk([*seen, model])
