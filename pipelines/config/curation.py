"""params.yaml: curation, and stages of the kinds grade and synthesise."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, model_validator

from pipelines.config.checking import nearest
from pipelines.config.common import AskingSettings, Count, GenerationSettings, Positive, Section, Share, Span, Weights, canonical
from pipelines.config.sources import Source
from pipelines.config.stage import Judging, Reading, Starting


@functools.cache
def presets() -> dict[str, dict[str, dict[str, Any]]]:
    """Published settings: name -> section -> values."""
    return yaml.safe_load((Path(__file__).parent / "presets.yaml").read_text())


class Preset(Section):
    """A section that may start from a published row: what is given beside `preset` counts before it."""

    part: ClassVar[str]
    """Key of a row of presets.yaml that holds it."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("preset") is None:
            return given
        known = presets()
        if given["preset"] not in known:
            raise ValueError(f"preset: there is no '{given['preset']}'{nearest(given['preset'], known)} Known: {', '.join(known)}")
        return canonical(_under(given, known[given["preset"]][cls.part]))


def _under(given: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """`base` with what is given over it, mapping by mapping."""
    both = {key: _under(given[key], base[key]) for key in given.keys() & base.keys() if isinstance(given[key], dict) and isinstance(base[key], dict)}
    return {**base, **given, **both}


Step = Literal[
    "normalise", "filters", "exact_dedup", "near_dedup", "semantic_dedup", "decontaminate", "audit",
    "reformulate", "consensus", "grade", "solve", "select", "mix",
]  # fmt: skip


Signal = Literal[
    "hyperlink", "empty_answer", "multiple_choice", "proof", "true_false", "yes_no", "multi_part", "foreign", "figure", "not_integer"
]  # fmt: skip


class FilterSettings(Section):
    """Rows outside these bounds are dropped, each with the bound it broke."""

    prompt_chars: Span[Count] = (8, 8000)
    """Shortest and longest prompt, in characters."""
    answer_chars: Span[Count] = (1, 4000)
    """Shortest and longest answer, in characters."""
    solution_chars: Span[Count] = (0, 16000)
    """Shortest and longest worked solution, in characters, where there is one."""
    tests: Span[Count] = (0, 10**6)
    """Fewest and most tests of a code problem."""
    drop: tuple[Signal, ...] = ()
    """Traits that go, each by a rule: see pipelines/curation/signals.py."""


class ParaphraseSettings(Section):
    """Which row says a benchmark problem in other words. The numbers and symbols of the two decide (pipelines/curation/content.py);
    words or embeddings only propose."""

    n: Positive = 4
    """Length of the n-grams of words that are no numbers."""
    overlap: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    """Share of them, of the row's and of the item's, from which on the two are compared."""
    embedding: str | None = None
    """Proposes more: `all-MiniLM-L6-v2` (extra `embedding`, no download), a folder or a hub id."""
    cosine: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Similarity of the embeddings from which on two texts with the same content are one problem."""
    content: Share = 0.6
    """Share of numbers and symbols that the two must have in common."""


class DecontaminationSettings(Section):
    """Which overlap with a benchmark prompt drops a row."""

    n: Positive = 8
    """Length of the word n-grams."""
    rule: Literal["any", "containment"] = "containment"
    """`any`: one shared n-gram suffices (open-r1, n = 8). `containment`: the shared part of the row's or the item's n-grams reaches
    `threshold`."""
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of shared n-grams, for `containment`."""
    siblings: Literal["keep", "drop"] = "keep"
    """A row of the same template as an item, with another number, sign or symbol in its place, is another problem; `drop` takes it for the item."""
    paraphrases: ParaphraseSettings | None = ParaphraseSettings()
    """Look for items in other words too; null does not."""


class NearDuplicateSettings(Section):
    """Which prompts say nearly the same."""

    shingle: Positive = 3
    """Words per shingle."""
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Jaccard similarity of the shingles from which on two prompts are one."""
    numbers: Literal["equal", "any"] = "equal"
    """`equal`: prompts with other numbers are other problems, however alike; `any` compares the words alone."""
    permutations: Annotated[int, Field(ge=1, le=512)] = 64
    """Length of a signature."""
    bands: Positive = 16
    """Parts a signature is cut into; with 4 values in each, 99.98 % of pairs of similarity 0.8 share one."""

    @model_validator(mode="after")
    def _whole_bands(self) -> NearDuplicateSettings:
        if self.permutations % self.bands:
            raise ValueError(f"bands: {self.permutations} permutations cannot be cut into {self.bands} equal bands")
        return self


class SemanticDuplicateSettings(Section):
    """SemDeDup (arXiv 2303.09540), as Big-Math (arXiv 2502.17387) uses it."""

    threshold: Annotated[float, Field(gt=0.0, le=1.0)]
    """Cosine above which two rows are one. Big-Math's text says 0.5, what its scripts run with is 0.99."""
    embedding: str = "all-MiniLM-L6-v2"
    """`all-MiniLM-L6-v2` (extra `embedding`), a folder or a hub id."""
    cluster: Positive = 100
    """Rows per cluster of k-means, on average; only rows of one cluster are compared."""
    iterations: Positive = 20
    """Rounds of k-means."""


class EndpointSettings(AskingSettings):
    """The OpenAI-compatible endpoint of `reformulate`, `consensus`, `grade` and `solve`. Address and key come from TOUCHSTONE_TEACHER_URL and
    TOUCHSTONE_TEACHER_KEY; which model answered, and a digest of what it said, are in the stage's manifest."""

    missing: Literal["fail", "skip"] = "fail"
    """What becomes of these steps where no address is set: nothing starts, or they are left out, as the ledger then says."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.7
    max_tokens: Positive = 2048
    timeout: Annotated[float, Field(gt=0)] = 120.0


class ConsensusSettings(Section):
    """Gold answers that a model's own solutions do not agree with go: wrong labels, or problems that cannot be answered."""

    votes: Positive = 8
    """Solutions per row."""
    agree: Positive = 5
    """Solutions that must have the gold answer, AceReason's majority; DeepMath (arXiv 2504.11456) asks for all of 3."""

    @model_validator(mode="after")
    def _enough(self) -> ConsensusSettings:
        if self.agree > self.votes:
            raise ValueError(f"agree: {self.agree} of {self.votes} votes cannot agree")
        return self


class GradingSettings(Section):
    """Difficulty from 1 to 10 in half steps, as a model rates it (DeepMath, arXiv 2504.11456)."""

    samples: Positive = 6
    """Ratings per row, averaged."""
    band: Span[Annotated[float, Field(ge=1, le=10)]] = (1.0, 10.0)
    """Rows with a mean rating in this closed interval stay."""


class SolvingSettings(Section):
    """Worked solutions by a model for rows without one, kept where the row's own verifier takes their answer (rejection sampling, as in
    arXiv 2308.01825)."""

    tries: Positive = 2
    """Answers a row gets at most; who has a right one is not asked again."""
    prompt: str = "{prompt}\n\nSolve it step by step, a short line for each step. End with a line that holds #### and the final answer alone."
    """The question; {prompt} is the problem's. What stands before the last #### of a right answer becomes the solution."""

    @model_validator(mode="after")
    def _asks(self) -> SolvingSettings:
        if "{prompt}" not in self.prompt:
            raise ValueError("prompt: {prompt} is missing, where the problem stands")
        return self


class SelectionSettings(Section):
    """At most so many rows of a kind."""

    per: Literal["source", "domain", "topics", "answer"] = "topics"
    """What makes a kind."""
    at_most: Positive = 1000
    """Rows of a kind that stay, drawn by hash of the problem id."""


class MixSettings(Section):
    """Rows in given shares."""

    by: Literal["source", "domain"] = "source"
    """What the shares are of."""
    shares: Weights[str]
    """Relative share of each; one that is not named gets none."""
    rows: Positive | None = None
    """Rows in all, at most; null takes as many as the shares allow."""


class CurationSettings(Preset):
    """From raw rows to splits that can be trained on."""

    part: ClassVar[str] = "curation"
    preset: str | None = None
    """A row of presets.yaml to start from: acereason, big_math, dapo_17k, deepscaler, guru, medvlthinker, open_r1, rif_rft."""
    steps: tuple[Step, ...] = ("normalise", "filters", "exact_dedup", "decontaminate", "audit")
    """Steps in order; leave one out or move it here."""
    engine: Literal["local", "ray"] = "local"
    """Where the steps run: in this process, or as Ray Data jobs (extra `ray`) on this machine or the cluster that RAY_ADDRESS names."""
    workers: Positive = 2
    """Threads of this process, or processes of `ray`, that work at once."""
    filters: FilterSettings = FilterSettings()
    near_duplicates: NearDuplicateSettings = NearDuplicateSettings()
    semantic_duplicates: SemanticDuplicateSettings | None = None
    """Required by the step semantic_dedup."""
    decontamination: DecontaminationSettings = DecontaminationSettings()
    endpoint: EndpointSettings = EndpointSettings()
    consensus: ConsensusSettings = ConsensusSettings()
    grading: GradingSettings = GradingSettings()
    solving: SolvingSettings = SolvingSettings()
    selection: SelectionSettings = SelectionSettings()
    mix: MixSettings | None = None
    """Required by the step mix."""
    splits: Weights[Literal["base", "sft", "rl"]] = Field(default={"base": 0.8, "sft": 0.12, "rl": 0.08})
    """Relative share of curated rows for each training stage, drawn by hash of the problem id. Rows without a solution always go to `rl`."""

    @model_validator(mode="after")
    def _each_step_once(self) -> CurationSettings:
        twice = next((step for step in self.steps if self.steps.count(step) > 1), None)
        if twice:
            raise ValueError(f"steps: {twice} stands there twice")
        if "semantic_dedup" in self.steps and not self.semantic_duplicates:
            raise ValueError("semantic_duplicates: missing; the step semantic_dedup needs its threshold")
        if "mix" in self.steps and not self.mix:
            raise ValueError("mix: missing; the step mix needs its shares")
        return self


class StrongSettings(Section):
    """A second policy, stronger than `init`, and the band that rows must lie in by it too (Guru, arXiv 2506.14965). It answers the rows that the
    first one's band lets through; `NAME/strong` has them with its pass rates."""

    model: str
    """`base`, or a stage that makes a model."""
    samples: Positive = 16
    """Responses per problem, at most."""
    band: Span[Share] = (0.0625, 1.0)
    """Problems whose pass rate by it lies in this closed interval stay."""
    generation: GenerationSettings | None = None
    """Null: that of the stage."""


class GradeStage(Starting, Judging, Reading, Preset):
    """Pass rates by a policy, and the band that later stages see."""

    kind: Literal["grade"] = "grade"
    part: ClassVar[str] = "grade"
    preset: str | None = None
    """A row of presets.yaml to start from."""
    samples: Positive = 8
    """Responses per problem, at most."""
    stop: Literal["never", "certain", "interval"] = "never"
    """When a problem needs no more of them. `certain`: nothing the rest could show moves it across the band, so the selection is that of all
    samples. `interval`: its 95 % Wilson interval lies inside the band or outside. Stopped pass rates come of fewer samples and lean to the
    middle."""
    round: Positive = 2
    """Responses per problem between two looks, where it may stop."""
    band: Span[Share] = (0.05, 0.95)
    """Problems whose pass rate lies in this closed interval are the rows that the stage makes; the rest are kept aside with their reason."""
    hardest: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Of each domain's problems in the band this share, rounded up, is handed on: those with the lowest pass rates. The others are kept aside as
    `too_easy` (as DRIVE, arXiv 2511.06307, goes on with the hardest that remain)."""
    limit: dict[str, Positive] = {}
    """Domain -> at most this many problems are graded (the first by problem id); the rest are kept aside as `not graded`."""
    generation: GenerationSettings = GenerationSettings()
    strong: StrongSettings | None = None
    """A second policy whose band counts too; null: there is none. Rows are handed on with the pass rates of `init`."""

    @property
    def models_read(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([self.init, *([self.strong.model] if self.strong else [])]))


class TeacherSettings(AskingSettings):
    """An OpenAI-compatible endpoint. Its address and key come from TOUCHSTONE_TEACHER_URL and TOUCHSTONE_TEACHER_KEY."""

    votes: Positive = 5
    """Independent answers per new problem."""
    agree: Positive = 3
    """Answers that must agree for the row to be kept; the consensus is its gold answer."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.7


class SynthesiseStage(Reading):
    """New problems where the policy is weak (SwS, arXiv 2506.08989). What it reads are graded rows: their pass rates say which topics are weak."""

    kind: Literal["synthesise"] = "synthesise"
    method: Literal["procedural", "teacher", "none"] = "procedural"
    """`procedural` draws from the generators of the sources; `teacher` asks an OpenAI-compatible endpoint."""
    budget: Count = 200
    """New problems to propose, spread over weak topics in proportion to their failure rate."""
    weak_below: Share = 0.6
    """A topic is weak when its mean pass rate is below this."""
    generators: dict[str, Source] | None = None
    """Generators that `procedural` draws from; null takes the procedural ones of sources.train."""
    teacher: TeacherSettings = TeacherSettings()
    curation: CurationSettings | None = None
    """How new rows are curated; null takes the section `curation`."""
