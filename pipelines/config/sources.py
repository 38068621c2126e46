"""params.yaml: sources."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipelines.config.common import Count, Positive, Section, Share, Weights

Level = Annotated[int, Field(ge=1)]
OPERATIONS = ("add", "subtract", "multiply", "divide")


class ArithmeticSource(Section):
    """Generated word problems: a chain of additions, subtractions and doublings told as a short story."""

    kind: Literal["arithmetic"]
    count: Positive
    """Problems to generate (distinct prompts)."""
    levels: Weights[Level] = Field(default={1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0})
    """Number of operations -> relative weight: the difficulty knob."""
    styles: Weights[Literal["steps", "terse", "direct"]] = Field(default={"steps": 1.0, "terse": 1.0, "direct": 1.0})
    """How the worked solution is written -> relative weight: every step, every other result, or no working at all. All are correct."""
    largest: Annotated[int, Field(ge=6)] = 20
    """No count in a story exceeds this: the other difficulty knob."""


class SumsSource(Section):
    """Generated sums of two whole numbers, each with its worked line."""

    kind: Literal["sums"]
    count: Positive
    """Sums to generate (distinct prompts)."""
    digits: Weights[Level] = Field(default={1: 1.0, 2: 2.0, 3: 1.0})
    """Most digits of the numbers in a sum -> relative weight: the difficulty knob."""
    operations: Weights[Literal["add", "subtract", "multiply", "divide"]] = Field(default=dict.fromkeys(OPERATIONS, 1.0))
    """Operation -> relative weight; divisions leave nothing over."""
    verifier_args: dict[str, Any] = {}
    """Settings of the verifier `math` for every row, such as {form: number}."""


class FunctionsSource(Section):
    """Generated requests for a short Python function, with call tests."""

    kind: Literal["functions"]
    count: Positive
    levels: Weights[Level] = Field(default={1: 1.0, 2: 1.0, 3: 1.0})
    """Number of operations the function applies -> relative weight."""
    styles: Weights[Literal["statements", "nested", "direct"]] = Field(default={"statements": 1.0, "nested": 1.0, "direct": 1.0})
    """How the program is written -> relative weight: one statement each, one nested expression, or the nested expression without a plan."""


class ReasoningGymSource(Section):
    """Puzzles from reasoning-gym, judged by its own scorers."""

    kind: Literal["reasoning_gym"]
    task: str
    """Name of a reasoning-gym dataset."""
    count: Positive
    settings: dict[str, Any] = {}
    """Keyword settings of that dataset."""
    topics: tuple[str, ...] = ("puzzle",)
    """Labels given to every row."""


class FileSource(Section):
    """Rows of a JSONL or Parquet file, or of a Hugging Face dataset (local folder or hub id)."""

    kind: Literal["file", "huggingface"]
    path: str
    """File, folder or hub id; relative paths start at the project root."""
    name: str | None = None
    """Hugging Face configuration name."""
    split: str = "train"
    """Hugging Face split."""
    revision: str | None = None
    """Hugging Face commit or tag: pin it, or a changed hub dataset goes unnoticed."""
    fields: dict[str, str]
    """Field of Problem -> field of the row; `prompt` and `answer` are needed. `verifier_args.NAME` maps one setting of the verifier."""
    domain: str = "math"
    """Domain of every row."""
    verifier: str = "math"
    """Verifier of every row."""
    verifier_args: dict[str, Any] = {}
    """Settings of the verifier for every row, such as {percent: ignore, units: strict}; a mapped `verifier_args` of a row adds to them."""
    answer_type: str = "expression"
    """Answer type of every row."""
    licence: str = "unknown"
    """Licence of every row, carried to the data card."""
    topics: tuple[str, ...] = ()
    """Labels of every row, beside a mapped `topics` field."""
    limit: Count | None = None
    """Take the first rows only."""


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
"""Names of sources become file names."""
Source = Annotated[ArithmeticSource | SumsSource | FunctionsSource | ReasoningGymSource | FileSource, Field(discriminator="kind")]

GENERATORS = ("arithmetic", "sums", "functions", "reasoning_gym")
"""Kinds that can make as many new problems as asked for."""


class SourcesSettings(Section):
    """Where problems come from."""

    train: dict[Name, Source]
    """Name -> source of training problems."""
    benchmarks: dict[Name, Source]
    """Name -> source of held-out problems; no training row may resemble them."""
    max_bad_rows: Share = 0.01
    """Share of malformed rows above which the stage stops; fewer go to the ledger with their reason."""
