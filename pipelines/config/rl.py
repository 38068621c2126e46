"""params.yaml: stages of kind rl."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.config.common import Count, GenerationSettings, KeepSettings, OptimiserSettings, Positive, Precision, Rate, Section
from pipelines.config.stage import Reading, Starting
from pipelines.config.training import LoraSettings


class KlControl(Section):
    """Steers the coefficients of a recipe's KL terms to the reference (arXiv 1909.08593): after each step they are multiplied by
    1 + rate * clip(KL / target - 1, -0.2, 0.2)."""

    target: Rate
    """KL to the reference that is aimed at, nats per token (estimator k3)."""
    rate: Rate = 0.1


class ValidationSettings(Section):
    """The policy measured on problems held out of the stage's own, never on a benchmark."""

    every: Positive = 10
    """Steps between two measurements; the last step is measured too."""
    problems: Positive = 32
    """Problems held out, drawn at random."""
    samples: Positive = 4
    """Responses to each, sampled as in training."""
    patience: Positive | None = None
    """The stage stops after so many measurements in a row without a new best; null never."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the stage's model; the others are kept in the stage's working folder."""


class ScheduleSettings(Section):
    """When answers are made and when they train."""

    kind: Literal["synchronous", "one_ahead", "in_flight"] = "synchronous"
    """`synchronous`: answer, then train. `one_ahead`: answer the next step's problems while this step's update runs: answers are one update old.
    `in_flight`: likewise, with more groups under way than a step needs; those that are not done go on across updates."""
    bound: Positive = 2
    """in_flight: most updates between the weights of a group's oldest token and those that it trains; a group that would be older is given up."""
    groups: Positive | None = None
    """in_flight: most groups under way at once; null: twice `prompts_per_step`."""
    running: Literal["go_on", "finish", "drop"] = "go_on"
    """in_flight: at an update, what is under way goes on with the new weights, is finished first, or is given up."""


class RlStage(Starting, Reading):
    """One stage of RL with verifiable rewards."""

    kind: Literal["rl"] = "rl"
    reference: str | None = None
    """Model that is the frozen policy of KL terms; null: `init`. For `rto` it is the one trained on preferences, for `npo` the later checkpoint
    that guides."""
    reset_reference: tuple[Positive, ...] = ()
    """After each of these steps the reference becomes the policy."""
    kl_control: KlControl | None = None
    """Null keeps the recipe's coefficients."""
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
    processes: Positive = 1
    """Data-parallel processes (torchrun): each answers its share of the problems, weights and optimiser state are sharded (FSDP2).
    Engines other than torch run in the first one and answer for all."""
    precision: Precision = "float32"
    """Of the body's matrix products wherever given tokens are scored, before the update and in it (autocast); the head, weights, gradients and
    optimiser state are float32."""
    gradient_checkpointing: bool = False
    """Compute a layer's activations again in the backward pass: less memory, about a third more time."""
    lora: LoraSettings | None = None
    """Train low-rank adapters; they are merged into the stage's model. Null trains all weights."""
    schedule: ScheduleSettings = ScheduleSettings()
    max_staleness: Count | None = None
    """Oldest rollouts that train, in updates since they were sampled; null has no bound. What is older is counted."""
    stale: Literal["drop", "mask"] = "drop"
    """What becomes of older ones: the response is left out, or its tokens are masked and keep their part in the group's statistics."""
    validation: ValidationSettings | None = None
    """Null measures nothing and keeps the last weights."""
    generation: GenerationSettings = GenerationSettings()
    optimiser: OptimiserSettings = OptimiserSettings(lr=2e-4, warmup=0.05, schedule="constant", weight_decay=0.0)
    keep: KeepSettings | None = None
    """Null keeps the last weights alone, or the best."""
    checkpoint_every: Positive = 5
    """Steps between resumable checkpoints."""
    checkpoint_minutes: Rate = 3.0
    """Minutes after which one is made though fewer steps have passed."""
    task_sampler: Literal["shuffle"] = "shuffle"
    """`shuffle`: every problem once per epoch, in an order keyed by seed and epoch."""

    @property
    def on_policy(self) -> bool:
        """Whether the policy that a batch trains is the one before its update: one optimiser step per batch."""
        return self.minibatches == self.epochs == 1

    @model_validator(mode="after")
    def _consistent(self) -> RlStage:
        how = self.generation
        if how.engine == "server":
            raise ValueError(
                "generation.engine 'server' gives no log-probabilities of the tokens it samples, and RL trains on them; "
                "choose torch, vllm or vllm_server"
            )
        if how.temperature == 0:
            raise ValueError("generation.temperature 0 always takes the likeliest token, which has no log-probability to train on; raise it")
        if how.top_p < 1 or how.top_k > 0:
            raise ValueError(
                f"generation.top_p {how.top_p:g} and top_k {how.top_k} sample from a cut distribution, and training scores the whole one, so that "
                "ratios would be wrong from the first update on; an RL stage needs top_p 1 and top_k 0"
            )
        if self.schedule.kind != "synchronous" and self.max_staleness == 0:
            raise ValueError(f"max_staleness 0 leaves nothing to train on: with schedule {self.schedule.kind} answers are one update old")
        if self.processes > 1 and self.optimiser.name == "muon":
            raise ValueError("optimiser.name muon needs whole matrices, which several processes do not have; use adamw")
        if self.processes > 1 and self.generation.engine == "scripted":
            raise ValueError("generation.engine scripted answers one process; set processes 1")
        if self.prompts_per_step < self.processes:
            raise ValueError(f"prompts_per_step {self.prompts_per_step} must be at least processes ({self.processes})")
        return self

    @property
    def leaves_rollouts(self) -> bool:
        return True

    @property
    def models_read(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([self.init, self.reference or self.init]))
