"""params.yaml: stages of kind preference, and what they share with others that read stored responses."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from pipelines.config.common import AskingSettings, Count, GenerationSettings, OptimiserSettings, Positive, PromptSettings, Rate, Section, Share
from pipelines.config.learning import Answered, LearningStage
from pipelines.config.stage import BOUND, ROLLOUTS, Reading, Served, Starting


class PreferringSettings(AskingSettings):
    """Who says which of two responses is the better one: a stage of kind reward_model, or an OpenAI-compatible endpoint, whose address and key come
    from TOUCHSTONE_JUDGE_URL and TOUCHSTONE_JUDGE_KEY."""

    stage: str | None = None
    """The stage of kind reward_model. Null asks the endpoint."""
    bound: Share = BOUND
    """Of the stage: as `judge.bound` of other kinds."""
    principle: str | None = None
    """Of the stage: as `judge.principle` of other kinds."""
    criterion: str = "The better response solves the problem correctly; of two that do, or of two that do not, it is the clearer one."
    """What the judge is told to go by."""

    @property
    def served(self) -> Served | None:
        """The reward model that judges, if one does."""
        return Served(stage=self.stage, bound=self.bound, principle=self.principle) if self.stage else None

    @model_validator(mode="after")
    def _one_judge(self) -> PreferringSettings:
        fields = type(self).model_fields
        asked = [name for name in ("model", "criterion", "max_tokens", "timeout", "retries") if getattr(self, name) != fields[name].default]
        if self.stage and asked:
            raise ValueError(f"{asked[0]}: it is of an endpoint, and stage {self.stage} judges; leave one of them out")
        return self


class PairSettings(Section):
    """Which responses to one prompt become pairs, the better one first. Each response stands in one pair at most."""

    per_problem: Positive = 4
    """At most so many pairs of each prompt."""
    choose: Literal["random", "margin", "alike"] = "random"
    """Where there are more: by hash; the largest difference in reward first; the smallest difference in length first, so that length says nothing of
    what is better."""
    judge: PreferringSettings | None = None
    """Null: the response with the higher reward is the better one. Otherwise a judge says which, asked in both orders; where it does not say the
    same twice there is no pair."""

    @property
    def reward_models_named(self) -> tuple[tuple[str, str], ...]:
        """The stage of kind reward_model that judges, if one does."""
        return (("pairs.judge.stage", self.judge.stage),) if self.judge and self.judge.stage else ()


class Responding(Starting, Reading):
    """A stage that reads stored responses: of rollouts, and of files of pairs or scored ones."""

    answers: Positive = 64
    """At most so many different responses to a prompt are read of rollouts and of scored ones, by hash."""
    prompt: PromptSettings = PromptSettings()
    """What stands around a prompt in files; rollouts keep the prompt that they were trained in."""

    @property
    def rollouts_read(self) -> tuple[str, ...]:
        """References to rollouts."""
        return tuple(name for name in self.data if name.endswith(ROLLOUTS))


class CriticSettings(Section):
    """V, what a response is expected to earn from a state on, for recipes that read it of a critic: a_lol in its prompt (least squares),
    direct_advantage before each step (cross-entropy). It is the reference with a linear head, which learns before the policy does."""

    weights: Literal["head", "all"] | None = None
    """What learns: the `head` on the frozen reference, or `all` weights. Null: as in the papers, the head for a_lol and all for direct_advantage."""
    completions: Count = 0
    """So many answers of the reference from every state, judged by the verifiers, whose mean is what V learns there; they need the problems as rows
    in `data`. 0: V learns what the responses themselves have earned, as though the reference had given them."""
    generation: GenerationSettings = GenerationSettings()
    """Of completions."""
    epochs: Rate = 4.0
    """Passes over the responses."""
    batch_size: Positive = 64
    """Responses per optimiser step."""
    optimiser: OptimiserSettings = OptimiserSettings(lr=1e-3, weight_decay=0.0)

    @model_validator(mode="after")
    def _goes_on(self) -> CriticSettings:
        if self.generation.engine == "server":
            raise ValueError("generation.engine: a chat endpoint cannot go on from a state; choose torch, vllm or vllm_server")
        return self


class PreferenceStage(LearningStage, Responding):
    """Training on stored responses: pairs, or responses with a score, from files, from the rollouts of other stages, or as a judge prefers."""

    kind: Literal["preference"] = "preference"
    recipe: str = "dpo"
    """A row of pipelines/rl/recipes.yaml whose tensors stored responses can give: dpo, ipo, orpo, simpo, alpha_po, kto, copg, trpa, a_lol, topr,
    direct_advantage and most others."""
    steps: Positive | None = None
    """Optimiser batches; null: as many as one pass over the groups takes. A group is a pair, or, without `pairs`, all responses to a prompt."""
    pairs: PairSettings | None = PairSettings()
    """What is made of the responses to a prompt in rollouts and in files of scored ones. Null makes no pairs: they stay together with their rewards,
    as recipes for scored responses (kto, a_lol, topr, direct_advantage) want them. Files of pairs are pairs either way."""
    behaviour: Literal["reference"] | None = None
    """Log-probabilities under the policy that answered, where the data lack them, as files do: those under the reference, computed once. Null refuses
    recipes that read them."""
    critic: CriticSettings = CriticSettings()
    """Of a_lol, direct_advantage and other recipes whose `inputs` say `by: critic`."""
    max_tokens: Positive = 512
    """Longer prompts with their response are left out and counted."""
    temperature: Rate = 1.0
    """Of all log-probabilities; that of sampling, where a recipe compares with the policy that answered."""
    optimiser: OptimiserSettings = OptimiserSettings(lr=2e-5, warmup=0.1, schedule="cosine", weight_decay=0.0)

    @property
    def answered(self) -> Answered:
        return Answered(self.prompt, self.temperature, self.max_tokens, earlier=True)

    @property
    def reward_models_named(self) -> tuple[tuple[str, str], ...]:
        return (*super().reward_models_named, *(self.pairs.reward_models_named if self.pairs else ()))
