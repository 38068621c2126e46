"""params.yaml: stages of kind rl."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.config.common import Count, GenerationSettings, Positive, Rate, Section
from pipelines.config.learning import Answered, LearningStage
from pipelines.config.stage import Judging, Reading


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


class ResetSettings(Section):
    """When a training begins anew from where it is (ProRL, arXiv 2505.24864): the reference becomes the policy, and the optimiser forgets its
    moments. The learning rate does not warm up again."""

    stalled: Positive | None = None
    """After so many measurements of `validation` without a new best, counted from the last reset; null never."""
    kl: Rate | None = None
    """After a step in which the KL to the reference was above this: nats per token, estimator k3, before the update; null never."""

    @model_validator(mode="after")
    def _ever(self) -> ResetSettings:
        if self.stalled is None and self.kl is None:
            raise ValueError("give `stalled` or `kl`; without either nothing is ever reset")
        return self


class SamplingStage(LearningStage, Judging, Reading):
    """A stage that trains on what its policy answers as it trains."""

    recipe: str = "grpo"
    """A row of pipelines/rl/recipes.yaml; `touchstone methods` lists them."""
    steps: Positive = 80
    """Optimiser batches."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Responses per prompt."""
    schedule: ScheduleSettings = ScheduleSettings()
    max_staleness: Count | None = None
    """Oldest rollouts that train, in updates since they were sampled; null has no bound. What is older is counted."""
    stale: Literal["drop", "mask"] = "drop"
    """What becomes of older ones: the response is left out, or its tokens are masked and keep their part in the group's statistics."""
    validation: ValidationSettings | None = None
    """Null measures nothing and keeps the last weights."""
    reset: ResetSettings | None = None
    """Null never resets anything of itself; `reset_reference` names steps at which the reference alone is reset."""
    generation: GenerationSettings = GenerationSettings()
    """Engines other than torch run in the first of several processes and answer for all."""
    task_sampler: Literal["shuffle"] = "shuffle"
    """`shuffle`: every problem once per epoch, in an order keyed by seed and epoch."""

    @property
    def leaves_rollouts(self) -> bool:
        return True

    @property
    def answered(self) -> Answered:
        how, earlier = self.generation, self.schedule.kind != "synchronous"
        return Answered(how.prompt, how.temperature, how.max_new_tokens, earlier, self.max_staleness, self.stale)

    @model_validator(mode="after")
    def _consistent(self) -> SamplingStage:
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
        if self.reset and self.reset.stalled and not self.validation:
            raise ValueError("reset.stalled counts measurements of `validation`, and there is none; add it, or leave `stalled` out")
        if self.processes > 1 and self.generation.engine == "scripted":
            raise ValueError("generation.engine scripted answers one process; set processes 1")
        return self


class RlStage(SamplingStage):
    """One stage of RL with verifiable rewards."""

    kind: Literal["rl"] = "rl"
    demonstrations: tuple[str, ...] = ()
    """References to rows whose worked solutions are what teachers wrote, one for each teacher, such as stages of kind sample; for recipes that learn
    from several (ampo). The problems are those of `data`."""

    later: str | None = None
    """A stage that trained from the same `init` and kept weights along its way (`keep`); for recipes that a later checkpoint of the run guides
    (auto_npo): that is what it had become after as many steps and some more."""

    @property
    def models_read(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*super().models_read, *([self.later] if self.later else [])]))

    @property
    def rows_read(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*super().rows_read, *self.demonstrations]))
