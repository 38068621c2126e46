"""params.yaml: what the kinds `rl`, `preference` and `distil` have in common, which learn by one loop and one update (pipelines/rl)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import model_validator

from pipelines.config.common import Count, KeepSettings, OptimiserSettings, Positive, Precision, PromptSettings, Rate, Section
from pipelines.config.stage import Starting
from pipelines.config.training import LoraSettings


class KlControl(Section):
    """Steers the coefficients of a recipe's KL terms to the reference (arXiv 1909.08593): after each step they are multiplied by
    1 + rate * clip(KL / target - 1, -0.2, 0.2)."""

    target: Rate
    """KL to the reference that is aimed at, nats per token (estimator k3)."""
    rate: Rate = 0.1


@dataclass(frozen=True)
class Answered:
    """How the responses that train were answered. prompt: what stood around the problems. temperature: of all log-probabilities. limit: tokens that a
    response may have. earlier: by other weights than those that the step updates. bound, stale: see `max_staleness` and `stale` of RL."""

    prompt: PromptSettings
    temperature: float
    limit: int
    earlier: bool
    bound: Count | None = None
    stale: Literal["drop", "mask"] = "drop"


class LearningStage(Starting):
    """A stage in which a recipe trains the model that `init` names, step by step."""

    reference: str | None = None
    """Model that is the frozen policy of KL terms and log-ratios; null: `init`. For `rto` it is the one trained on preferences, for `npo` the later
    checkpoint that guides."""
    reset_reference: tuple[Positive, ...] = ()
    """After each of these steps the reference becomes the policy."""
    kl_control: KlControl | None = None
    """Null keeps the recipe's coefficients."""
    recipe: str
    """A row of pipelines/rl/recipes.yaml; `touchstone methods` lists them."""
    overrides: dict[str, Any] = {}
    """Slots of the recipe to change, for example {aggregation: {name: token_mean}}."""
    steps: Positive | None
    """Optimiser batches."""
    prompts_per_step: Positive = 16
    """Groups of responses that a batch has."""
    minibatches: Positive = 1
    """Optimiser steps that a batch is split into; from the second on they are off-policy."""
    epochs: Positive = 1
    """Passes over a batch."""
    epochs_until: Positive | None = None
    """The last step whose batch has `epochs` passes; later ones have one. Null: every step's has."""
    micro_batch: Positive = 64
    """Sequences per forward and backward; changes memory, not the loss."""
    processes: Positive = 1
    """Data-parallel processes (torchrun): each has its share of the groups, weights and optimiser state are sharded (FSDP2)."""
    precision: Precision = "float32"
    """Of the body's matrix products wherever given tokens are scored, before the update and in it (autocast); the head, weights, gradients and
    optimiser state are float32."""
    gradient_checkpointing: bool = False
    """Compute a layer's activations again in the backward pass: less memory, about a third more time."""
    lora: LoraSettings | None = None
    """Train low-rank adapters; they are merged into the stage's model. Null trains all weights."""
    optimiser: OptimiserSettings = OptimiserSettings(lr=2e-4, warmup=0.05, schedule="constant", weight_decay=0.0)
    keep: KeepSettings | None = None
    """Null keeps the last weights alone, or the best."""
    checkpoint_every: Positive = 5
    """Steps between resumable checkpoints."""
    checkpoint_minutes: Rate = 3.0
    """Minutes after which one is made though fewer steps have passed."""

    @property
    @abstractmethod
    def answered(self) -> Answered:
        """How the responses that train were answered."""

    @property
    def on_policy(self) -> bool:
        """Whether the policy that a batch trains is the one before its update: one optimiser step per batch."""
        return self.minibatches == self.epochs == 1

    def passes(self, step: int) -> int:
        """Passes over the batch of a step."""
        return 1 if self.epochs_until is not None and step > self.epochs_until else self.epochs

    @property
    def models_read(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([self.init, self.reference or self.init]))

    @property
    def reward_models_named(self) -> tuple[tuple[str, str], ...]:
        given = self.overrides.get("parts")
        parts = given if isinstance(given, list | tuple) else [given]
        named = [part.get("stage") for part in parts if isinstance(part, dict) and part.get("name") == "reward_model"]
        return (*super().reward_models_named, *(("overrides.parts", name) for name in named if isinstance(name, str)))

    @model_validator(mode="after")
    def _processes_fit(self) -> LearningStage:
        if self.processes > 1 and self.optimiser.name != "adamw":
            raise ValueError(f"optimiser.name {self.optimiser.name} needs whole matrices, which several processes do not have; use adamw")
        if self.prompts_per_step < self.processes:
            raise ValueError(f"prompts_per_step {self.prompts_per_step} must be at least processes ({self.processes})")
        return self
