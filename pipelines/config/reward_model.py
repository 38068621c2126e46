"""params.yaml: stages of kind reward_model, and how other stages take their word."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.config.common import AskingSettings, OptimiserSettings, Positive, Span
from pipelines.config.preference import PairSettings, Responding
from pipelines.config.training import TrainedStage, TrainingSettings

Loss = Literal["bradley_terry", "hl_gauss", "binary", "entailment"]
Part = Annotated[float, Field(gt=0.0, lt=1.0)]
QUESTION = "Problem:\n{problem}\n\nPrinciple: {principle}\n\nResponse:\n{response}\n\nDoes the response meet the principle? Answer Yes or No."


def _whole(question: str) -> str:
    if missing := [name for name in ("{problem}", "{principle}", "{response}") if name not in question]:
        raise ValueError(f"must hold {missing[0]}")
    return question


class FeedbackSettings(AskingSettings):
    """Rows of files whose `feedback`, a text or one of each who gave some, says what a response is worth: an OpenAI-compatible endpoint reads
    principles from it, with yes or no (RLBFF). Its address and key come from TOUCHSTONE_TEACHER_URL and TOUCHSTONE_TEACHER_KEY."""

    people: Positive = 2
    """Responses on which fewer have given feedback are left out. Of several all must name a principle."""
    evidence: Annotated[float, Field(ge=0.0, le=100.0)] = 60.0
    """The words that the endpoint quotes must stand in the feedback: their partial ratio, 100 where they do to the letter, must be above this."""
    cosine: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Similarity of the embeddings above which two principles are one. The paper has a third of the rows at .9 and three times as many at .7."""
    embedding: str = "all-MiniLM-L6-v2"
    """`all-MiniLM-L6-v2` (extra `embedding`), a folder or a hub id; the paper's is Qwen3-Embedding-8B."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.0


class ScorerTrainingSettings(TrainingSettings):
    """Training of a reward model, by the loop of kind sft."""

    batch_size: Positive = 64
    """Pairs, or responses where those are scored one by one, per optimiser step."""
    micro_batch: Positive = 64
    """Pairs or responses per forward and backward, at most; changes memory, not the loss."""
    optimiser: OptimiserSettings = OptimiserSettings(lr=1e-5, weight_decay=0.0)


class RewardModelStage(TrainedStage, Responding):
    """A model that says what a response is worth, learnt from pairs or from verdicts and scores, measured on problems that it has not seen.

    It is no policy: no stage starts from it. Stages name it to have responses judged: RL in `overrides.parts` by {name: reward_model, stage: NAME},
    pairs by `pairs: {judge: {stage: NAME}}`, problems of verifier `judge` by `judge: {stage: NAME}`.
    """

    kind: Literal["reward_model"] = "reward_model"
    loss: Loss = "bradley_terry"
    """`bradley_terry`: of two responses the better one has the higher score (arXiv 2203.02155). `binary`: whether a response is right.
    `hl_gauss`: its score, as classes over bins (arXiv 2403.03950). `entailment`: whether it meets a principle that the row names, by
    log p(Yes) - log p(No) (RLBFF)."""
    pairs: PairSettings = PairSettings()
    """bradley_terry: which responses to a prompt in rollouts and in files of scored ones become pairs."""
    margin: Annotated[float, Field(ge=0.0)] = 0.0
    """bradley_terry: by how much the scores of a pair must differ, for a difference of 1 in reward (arXiv 2307.09288). The difference of a pair of a
    file is its row's `margin`, 1 where it has none."""
    centre: Annotated[float, Field(ge=0.0)] = 0.01
    """bradley_terry: weight of (better + worse)^2, which fixes the constant that the loss leaves free (arXiv 2312.09244)."""
    noise: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """bradley_terry: share of the pairs that are expected to be in the wrong order (conservative labels)."""
    span: Span[float] | None = None
    """hl_gauss: lowest and highest score there can be; null: those of the rows."""
    bins: Annotated[int, Field(ge=8)] = 51
    """hl_gauss: classes that the span is cut into, with three standard deviations of a target beyond each end."""
    principle: str | None = None
    """entailment: the principle of rows that name none, of rollouts, and of who asks the model without one."""
    feedback: FeedbackSettings = FeedbackSettings()
    """entailment: how principles are read from rows with `feedback`."""
    question: Annotated[str, AfterValidator(_whole)] = QUESTION
    """entailment: what the model is asked; {problem}, {principle} and {response} stand for theirs."""
    reads: Literal["response", "answer"] = "response"
    """All of a response, or what follows its thinking: then thoughts earn nothing, and a response without an end of them is `[NULL]` (RLMT, arXiv
    2509.20357)."""
    held_out: Part = 0.2
    """Share of the problems whose responses measure the model, and nothing else."""
    calibration: Part = 0.1
    """Share of the problems whose responses fit its temperature, and its mean and spread."""
    train: ScorerTrainingSettings = ScorerTrainingSettings()

    @property
    def paired(self) -> bool:
        """Whether it learns from pairs."""
        return self.loss == "bradley_terry"

    @property
    def reward_models_named(self) -> tuple[tuple[str, str], ...]:
        return self.pairs.reward_models_named if self.paired else ()

    @model_validator(mode="after")
    def _something_trains(self) -> RewardModelStage:
        if self.held_out + self.calibration >= 1:
            raise ValueError(f"held_out {self.held_out:g} and calibration {self.calibration:g} leave no problem to train on")
        if self.span and self.span[0] == self.span[1]:
            raise ValueError(f"span {list(self.span)} holds one score, and there is nothing to tell apart")
        return self
