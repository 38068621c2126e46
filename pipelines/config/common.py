"""What every section of params.yaml shares: frozen, no unknown keys, bounds checked, a docstring under each field."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0.0)]
Precision = Literal["float32", "bfloat16", "auto"]
"""`auto` is bfloat16 where the device has units for it, float32 elsewhere."""
T = TypeVar("T", int, float)
K = TypeVar("K")


def canonical(given: Any) -> Any:
    """Mappings in the order of their keys, all the way down, so that the order in which somebody wrote them decides nothing: neither
    draws nor bytes. Keys that are numbers come first and by value, whether they are written as such or, as in JSON, as text."""
    if isinstance(given, dict):
        return {key: canonical(given[key]) for key in sorted(given, key=_by_value)}
    return [canonical(value) for value in given] if isinstance(given, list) else given


def _by_value(key: Any) -> tuple[int, int, str]:
    text = str(key)
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)


def _rising(span: tuple[T, T]) -> tuple[T, T]:
    if span[0] > span[1]:
        raise ValueError(f"must rise, got {list(span)}")
    return span


Span = Annotated[tuple[T, T], AfterValidator(_rising)]
"""Lowest and highest value, both inside."""


def _some_weight(weights: dict[K, float]) -> dict[K, float]:
    if sum(weights.values()) <= 0:
        raise ValueError(f"one weight must be above 0, got {weights}")
    return canonical(weights)


Weights = Annotated[dict[K, Annotated[float, Field(ge=0.0)]], AfterValidator(_some_weight)]
"""Value -> relative weight."""


class Section(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _canonical(cls, given: Any) -> Any:
        return canonical(given)


class Shot(Section):
    """A solved example, shown as turns before the problem."""

    user: str
    """Its problem, which takes the place of {problem}."""
    assistant: str
    """Its answer, as it should be written."""


class PromptSettings(Section):
    """What the policy is told around a problem. Stages that share a policy should say the same."""

    system: str | None = None
    """System message. Null: one that asks for the answer's form, and none for the embedded model, which learns it from its cold start."""
    user: Annotated[str, Field(pattern=r"\{problem\}")] = "{problem}"
    """The user's turn; {problem} stands for the problem, other braces for themselves."""
    shots: tuple[Shot, ...] = ()
    """Turns between the system message and the problem."""
    response: Annotated[str, Field(pattern=r"\{answer\}")] | None = None
    """How a worked solution is written where it is trained on or shown, programs apart: {solution} and {answer} stand for the problem's. Null:
    thinking in <think> and </think>, then the answer in \\boxed{}. Verifiers read that, `#### 5`, and `the answer is 5`."""


class VllmSettings(Section):
    """Engines `vllm` and `vllm_server`. None of these changes the distribution that is sampled from, but for the rounding of `dtype`."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and activations; `auto` is float32 on CPUs and bfloat16 elsewhere."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Share of a GPU's memory that the engine takes for all it holds; well below 1 where the policy trains on the same GPU."""
    kv_cache_gib: Annotated[float, Field(gt=0.0)] | None = None
    """Memory for keys and values; none: what `gpu_memory_utilization` leaves on a GPU, 1 GiB on CPUs."""
    tensor_parallel_size: Positive = 1
    """GPUs that share each layer."""
    max_model_len: Positive | None = None
    """Longest prompt and response together, in tokens; none: the model's context."""
    enforce_eager: bool = False
    """Neither compile nor capture CUDA graphs: starts sooner, decodes slower."""
    sleep: bool = False
    """Between generations the engine leaves its GPU memory to the trainer. vLLM cannot on CPUs, where this does nothing."""


class ServerSettings(Section):
    """How engines `server` and `vllm_server` ask. The address and the key come from TOUCHSTONE_GENERATION_URL and TOUCHSTONE_GENERATION_KEY."""

    model: str = ""
    """Name by which the endpoint of engine `server` knows the model."""
    concurrency: Positive = 8
    """Requests of engine `server` under way at once; `vllm_server` has as many as `batch_size`."""
    timeout: Rate = 600.0
    """Seconds for one try of a request."""
    retries: Count = 3
    """Further tries after what may pass."""


class AskingSettings(Section):
    """How an OpenAI-compatible endpoint is asked."""

    model: str = "default"
    """Model name sent with each request."""
    max_tokens: Positive = 1024
    """Longest reply."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds for one request."""
    retries: Count = 3
    """Further tries after a failed request."""


class GenerationSettings(Section):
    """How responses are sampled."""

    engine: Literal["torch", "vllm", "vllm_server", "server", "scripted"] = "torch"
    """`torch` runs the model in this process; `vllm` and `vllm_server` in vLLM's processes or in its HTTP server, which is started where
    TOUCHSTONE_GENERATION_URL names none; `server` asks an OpenAI-compatible endpoint for text, without log-probabilities; `scripted`
    answers from a file."""
    prompt: PromptSettings = PromptSettings()
    max_new_tokens: Positive = 96
    """A response that reaches this length ends with finish reason `length`."""
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """0 is greedy decoding."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus mass; 1 keeps the whole distribution, which is what on-policy training assumes."""
    top_k: Count = 0
    """Likeliest tokens kept before top_p; 0 keeps all."""
    stop: tuple[str, ...] = ()
    """Strings at which a response ends; its text ends before the first of them."""
    batch_size: Positive = 256
    """Sequences that decode together; it changes speed and memory, not results."""
    precision: Precision = "float32"
    """Engine torch: of the body's matrix products and of keys and values, from a copy of the weights; the head is float32. The sampled
    distribution is then not to the last bit the one that training scores: see `mismatch_k1` and the like in the journal."""
    vllm: VllmSettings = VllmSettings()
    server: ServerSettings = ServerSettings()
    script: str = ""
    """JSON file of engine `scripted`: the problem's prompt -> list of responses; sample i says the i-th, from the first on again after the last."""


class KeepSettings(Section):
    """Weights kept along a training, as model folders data/kept/NAME/step-NNNNNN; kind extrapolate reads them."""

    every: Positive
    """Steps between two of them."""
    most: Annotated[int, Field(ge=2)] = 20
    """So many are on the disk at most: where there would be more, every second one goes and the distance doubles, so they stay evenly spaced."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the kept weights. bfloat16 takes half the disk and rounds off what small learning rates change."""


class ClasspSettings(Section):
    """Which weights CLASSP (arXiv 2405.09637) moves, and how far."""

    threshold: Rate = 0.5
    """Only weights whose |gradient|^power is above it move."""
    quantile: bool = True
    """The threshold is a quantile of the |gradient|^power of a tensor, our choice where gradients are far from 1; false takes it as it is."""
    power: Annotated[float, Field(gt=0.0)] = 1.0
    eps: Annotated[float, Field(gt=0.0)] = 1e-5
    variant: Literal["paper", "released"] = "paper"
    """`released`, as the authors' code does: all weights of a tensor that has a gradient move, and |gradient| is summed whatever the power."""

    @model_validator(mode="after")
    def _is_quantile(self) -> ClasspSettings:
        if self.quantile and self.threshold > 1:
            raise ValueError(f"threshold {self.threshold:g} is no quantile; give one from 0 to 1, or quantile: false")
        return self


class UpdateMaskSettings(Section):
    """Which entries of the hidden matrices the optimiser may move, by the weights that the stage starts from (arXiv 2511.08567). Embeddings, the
    head and vectors move as usual."""

    kind: Literal["safe", "principal", "low", "random"] = "safe"
    """`principal`: the largest `share` of the entries of the reconstruction of rank `rank`. `low`: the `share` of the smallest weights. `safe`: what
    is low or not principal. `random`: as many as `safe` has, drawn once."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    rank: Positive = 64
    """Leading directions of a matrix that are principal."""


class OptimiserSettings(Section):
    """AdamW, Muon or CLASSP with linear warm-up, then a cosine or constant schedule."""

    name: Literal["adamw", "muon", "classp"] = "adamw"
    """`muon` orthogonalises the updates of the hidden matrices and leaves everything else to AdamW; it needs about half the steps from scratch.
    `classp` moves the weights of large gradients alone, each the less the larger its gradients were so far, so that later tasks find weights free; it
    knows neither betas nor weight decay, and what it remembers begins anew with every stage."""
    lr: Rate = 1e-3
    """Peak learning rate of AdamW."""
    muon_lr: Rate = 0.02
    """Peak learning rate of the matrices under Muon: the spectral norm of one update."""
    warmup: Share = 0.05
    """Share of the steps in which the rate rises linearly from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Cosine falls to `final_share` of the peak."""
    final_share: Share = 0.1
    """Learning rate at the last step, as a share of the peak."""
    classp: ClasspSettings = ClasspSettings()
    mask: UpdateMaskSettings | None = None
    """Null moves all weights. In one process, and without `lora`."""
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.95)
    """Adam's decay rates."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decoupled weight decay, on matrices only."""
    max_grad_norm: Rate = 1.0
    """Global gradient norm above which gradients are scaled down."""
