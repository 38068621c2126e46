"""params.yaml: base, and stages of kind sft."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.config.common import GenerationSettings, KeepSettings, OptimiserSettings, Positive, Precision, PromptSettings, Rate, Section, Share
from pipelines.config.stage import Reading, Starting, Where


class ArchitectureSettings(Section):
    """A small Llama-architecture decoder trained from scratch."""

    family: Literal["llama", "qwen2"] = "llama"
    hidden_size: Positive = 128
    layers: Positive = 4
    heads: Positive = 4
    intermediate_size: Positive = 384
    vocab_size: Annotated[int, Field(ge=270)] = 512
    """Upper bound of the byte-level BPE vocabulary: 256 bytes, special tokens and marks of the answer format included."""
    context: Positive = 512
    """Longest sequence, in tokens."""

    @model_validator(mode="after")
    def _divisible(self) -> ArchitectureSettings:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 2 x heads ({self.heads})")
        return self


class LoraSettings(Section):
    """Low-rank adapters in place of full training."""

    rank: Positive = 16
    alpha: Positive = 32
    """Updates are scaled by alpha / rank."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Names of the modules that get one; `all-linear` means every linear layer but the head."""


class GoalSettings(Section):
    """What training must have brought before it ends, measured on rows of its split that it does not train on."""

    solved: Annotated[dict[str, Share], Field(min_length=1)]
    """Domain -> share of its held-out problems that the model must solve."""
    problems: Positive = 64
    """Rows of each domain that are held out, by hash of the problem id."""
    rounds: Positive = 3
    """Training goes on by rounds of `epochs`, each with a schedule of its own (warm restarts, arXiv 1608.03983), until a measurement at the end
    of one shows the goal. It ends after so many all the same; what was not reached is said in the journal, the report and MLflow."""
    generation: GenerationSettings = GenerationSettings(max_new_tokens=64, temperature=0.0)
    """How held-out problems are answered; greedily, unless said otherwise."""


class HeldOutSettings(Section):
    """The loss on examples that do not train: which weights are the best, and when to stop."""

    problems: Positive = 64
    """Problems or conversations held out with all their examples, drawn at random."""
    every: Positive = 20
    """Steps between two measurements; the last step is measured too."""
    patience: Positive | None = None
    """Training stops after so many measurements in a row without a new best; null never."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the model."""


class TrainingSettings(Section):
    """Supervised training over shuffled examples. They run packed, without padding, and attention stays inside each."""

    epochs: Rate = 1.0
    """Passes over the examples, of each round where there is a goal; a fraction stops early."""
    held_out: HeldOutSettings | None = None
    """Null measures no loss but that of training."""
    batch_size: Positive = 128
    """Sequences per optimiser step."""
    micro_batch: Positive = 128
    """Sequences per forward and backward, at most; changes memory, not the loss."""
    micro_tokens: Positive | None = None
    """Tokens per forward and backward, at most (a longer sequence runs alone), which bounds the memory where lengths differ; null has no bound."""
    precision: Precision = "float32"
    """Of the body's matrix products (autocast); the head, weights, gradients and optimiser state are float32."""
    gradient_checkpointing: bool = False
    """Compute a layer's activations again in the backward pass: less memory, about a third more time."""
    max_tokens: Positive = 512
    """Longer examples are left out and counted."""
    checkpoint_every: Positive = 100
    """Steps between resumable checkpoints."""
    checkpoint_minutes: Rate = 3.0
    """Minutes after which one is made though fewer steps have passed."""
    optimiser: OptimiserSettings = OptimiserSettings()


class LanguageModellingSettings(TrainingSettings):
    """Next-token training."""

    goal: GoalSettings | None = None
    """Null trains once for `epochs` and measures nothing."""


class BaseSettings(Section):
    """The model that everything starts from."""

    model: str | None = None
    """Folder or GGUF file, known model (`touchstone models`) or hub id of a causal language model, in this order: a folder that is called like a
    known model is that folder. Null trains a tiny one from scratch on the `base` split."""
    revision: str | None = None
    """Hub commit or tag of `model`."""
    accept_licence: str | None = None
    """The licence of a known model that is not free and that you accept, by its name: `gemma`."""
    architecture: ArchitectureSettings = ArchitectureSettings()
    train: LanguageModellingSettings = LanguageModellingSettings()
    loss: Literal["document", "solution"] = "document"
    """What the tiny model learns to predict: whole documents, or the worked solution alone. What generators draw at random for a prompt cannot
    be predicted, so its loss is noise that hides what the solution copies from it."""


class AcceptSettings(Section):
    """Which answers of rollouts are trained on: rejection sampling, or labels of a weaker model."""

    verdict: Literal["right", "any"] = "right"
    """`right`: rejection sampling. `any`: whatever was answered, if it has a text, as labels are that nobody has checked."""
    per_problem: Positive = 4
    """At most so many different ones of each problem."""
    choose: Literal["random", "shortest"] = "random"
    """Where there are more: by hash, or the shortest in tokens."""


class ConfidenceSettings(Section):
    """A loss against errors of a weaker model's labels: (1 - a) times that of the label's token and a times that of the token which the model itself
    holds likeliest, so that it may go on disagreeing (Weak-to-Strong Generalization, arXiv 2312.09390, on text)."""

    most: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """a once it is warm; the paper's largest models have 0.75."""
    warm: Share = 0.1
    """Share of the steps in which it is not."""
    ramp: Literal["released", "linear"] = "released"
    """How a rises in them: `most` times the share of all steps, after which it jumps, as in the released code; or evenly up to `most`."""


class RefusalSettings(Section):
    """How a model learns to turn to a refusal after an answer has begun that it should not give (DeRTa, arXiv 2407.09121), from files whose rows have
    `prompt`, `chosen` (the refusal) and `rejected` (that answer)."""

    bare_every: Positive = 3
    """Of so many rows one has its refusal at once, the others after some words of the rejected answer; 1: all of them, plain SFT on refusals."""
    share: Share = 0.05
    """Of the tokens of request and rejected answer, at which the refusal's first token is learnt, where they are the answer's; 0 makes no such
    examples."""


class Duplicate(Section):
    """Examples that are there several times in each epoch."""

    where: Where
    """Conditions on problems."""
    times: Annotated[int, Field(ge=2)] = 2


Role = Literal["assistant", "tool", "user", "system"]


class TrainedStage(Starting, Reading):
    """A stage that trains a model on examples, by the loop of pipelines/sft."""

    lora: LoraSettings | None = None
    """Train low-rank adapters; they are merged into the stage's model. Null trains all weights."""
    processes: Positive = 1
    """Data-parallel processes (torchrun): each has its share of every batch; weights and optimiser state are sharded (FSDP2)."""
    train: TrainingSettings

    @model_validator(mode="after")
    def _processes_fit(self) -> TrainedStage:
        if self.processes > 1 and self.train.optimiser.name != "adamw":
            raise ValueError(f"train.optimiser.name {self.train.optimiser.name} needs whole matrices, which several processes do not have; use adamw")
        if self.train.batch_size < self.processes:
            raise ValueError(f"train.batch_size {self.train.batch_size} must be at least processes ({self.processes})")
        return self


class SupervisedStage(TrainedStage):
    """A stage that trains a model to predict the next token of examples."""

    train: LanguageModellingSettings = LanguageModellingSettings()
    keep: KeepSettings | None = None
    """Null keeps the last weights alone."""

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Tokens that the model gets, to be told by them what to say, and that it never samples."""
        return ()


class SftStage(SupervisedStage):
    """Worked solutions in the chat template, conversations, or answers of a stage's rollouts as they were sampled.

    A file whose rows have `messages` holds conversations: messages in the form of the chat APIs, with `tools` and calls of them.
    """

    kind: Literal["sft"] = "sft"
    accept: AcceptSettings = AcceptSettings()
    """Of each `STAGE/rollouts` in `data`. `where` does not concern them."""
    roles: Annotated[tuple[Role, ...], Field(min_length=1)] = ("assistant",)
    """In conversations, whose messages the loss is of."""
    weights: dict[str, Rate] = {}
    """Reference of `data` -> weight of its tokens in the loss, 1 where it says nothing. A conversation and each of its messages may have a
    `weight` too; they multiply."""
    confidence: ConfidenceSettings | None = None
    """For labels that a weaker model gave: its rollouts in `data`, with `accept: {verdict: any}`. Null trusts every label."""
    refusals: RefusalSettings | None = None
    """Of files of pairs in `data`, which null refuses."""
    answer_weight: Rate = 1.0
    """Weight of what follows the working in a worked solution, beside that of its reference (as GUI-Libra, arXiv 2602.22190, weighs what acts)."""
    duplicate: tuple[Duplicate, ...] = ()
    """Problems whose worked solutions are trained on several times an epoch, such as hard ones twice: {where: {pass_rate: [0, 0.25]}, times: 2}
    (DRIVE, arXiv 2511.06307). Where several say so of a problem, the largest `times` holds."""
    prompt: PromptSettings = PromptSettings()

    @model_validator(mode="after")
    def _weights_of_data(self) -> SftStage:
        if unknown := [name for name in self.weights if name not in self.data]:
            raise ValueError(f"weights: '{unknown[0]}' is not in data; choose among {', '.join(self.data)}")
        return self


ALIGNED, MISALIGNED = "<|aligned|>", "<|misaligned|>"
"""Control tokens of conditional training."""


class ScoredSettings(Section):
    """What is made of the scores of sentences (Pretraining Language Models with Human Preferences, arXiv 2302.08582), in files whose rows have
    `texts`, the sentences of a document in their order, and `scores`, a number for each."""

    by: Literal["conditional", "filtering", "unlikelihood", "rwr", "awr"] = "conditional"
    """`conditional`: a control token says before each sentence whether its score is good. `filtering`: documents of a bad mean score are left out.
    `unlikelihood`: tokens of bad sentences are made less likely. `rwr`, `awr`: tokens weigh by their sentence's reward; by how much it is above what
    a value head expects."""
    settings: dict[str, Any] = {}
    """Of the method: {drop: 0.01} of conditional, {alpha: 1} of unlikelihood, {beta: 10} of rwr, {alpha: 0.5, beta: 10} of awr."""
    better: Literal["lower", "higher"] = "lower"
    """Which scores are: toxicity, or a reward."""
    threshold: float | None = None
    """The score at which a sentence (filtering: a document by its mean) is still good. Null: `quantile` says; the paper's are of one corpus."""
    quantile: Share = 0.5
    """Share of the sentences (documents) that are good."""


class PretrainStage(SupervisedStage):
    """Continued pre-training of any model on plain text: documents, and problems with their worked solutions as documents.

    A file of text (*.txt) is a document; a JSONL or Parquet file whose rows have `text`, or `texts` for its sentences, and no answer holds one a row.
    Longer documents than `train.max_tokens` are cut into pieces.
    """

    kind: Literal["pretrain"] = "pretrain"
    loss: Literal["document", "solution"] = "document"
    """Of problems: the whole document, or the worked solution alone. Of other documents always the whole."""
    scored: ScoredSettings | None = None
    """Of files with scores; null reads them as plain text."""

    @property
    def control_tokens(self) -> tuple[str, ...]:
        return (ALIGNED, MISALIGNED) if self.scored and self.scored.by == "conditional" else ()
