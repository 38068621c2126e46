"""The records that travel between stages, and their Arrow schemas.

Problem: one row to solve. Verdict: what a verifier says of one response. Trajectory: one episode in segments, with all that
training needs. Rows live in Parquet (`store.py`); in memory they are these frozen dataclasses.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa


class Outcome(enum.StrEnum):
    """Why a verdict is what it is. Only `infrastructure` says nothing about the response, so it never trains."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"
    TIMEOUT = "timeout"
    CRASH = "crash"
    INFRASTRUCTURE = "infrastructure"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verifier's word on one response: `score` in [0, 1], `extracted` the answer it judged, wall time in `seconds`."""

    outcome: Outcome
    score: float
    extracted: str | None = None
    detail: str = ""
    seconds: float = 0.0

    @property
    def correct(self) -> bool:
        return self.outcome is Outcome.CORRECT


ROW = "row"
"""In `Problem.args`: the row of its own data that an environment of RL plays in place of the problem."""


def problem_id(prompt: str, answer: str) -> str:
    """Content hash of a problem (whitespace and case of the prompt do not matter): 16 hex digits of SHA-256."""
    normalised = " ".join(prompt.split()).casefold()
    return hashlib.sha256(json.dumps([normalised, answer.strip()]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Problem:
    """One row to solve.

    answer: the gold: a number or expression (math), the canonical program (code), an option or text (logic).
    answer_type: integer | expression | text | program.
    verifier, verifier_args: name in `pipelines.verifiers.VERIFIERS` and a JSON object of its settings (tests, options, ...), and ROW.
    solution: worked text that ends before the answer; "" means answered without working, None means not known.
    parents: problem ids that a synthesised row was made from.
    topics: labels such as "word problem" or "level 3"; difficulty stage and synthesis group by them.
    pass_rate, pass_n: share of `pass_n` samples of the SFT policy that were correct. difficulty: 1 - pass_rate, or the source's own grade.
    """

    problem_id: str
    domain: str
    prompt: str
    answer: str
    answer_type: str
    verifier: str
    verifier_args: str = "{}"
    solution: str | None = None
    source: str = ""
    source_id: str = ""
    licence: str = ""
    parents: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    pass_rate: float | None = None
    pass_n: int | None = None
    difficulty: float | None = None

    @cached_property
    def args(self) -> dict[str, Any]:
        """`verifier_args` decoded."""
        return json.loads(self.verifier_args)


PROBLEM_SCHEMA = pa.schema(
    [
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("answer_type", pa.string(), nullable=False),
        pa.field("verifier", pa.string(), nullable=False),
        pa.field("verifier_args", pa.string(), nullable=False),
        pa.field("solution", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
        pa.field("parents", pa.list_(pa.string()), nullable=False),
        pa.field("topics", pa.list_(pa.string()), nullable=False),
        pa.field("pass_rate", pa.float64()),
        pa.field("pass_n", pa.int64()),
        pa.field("difficulty", pa.float64()),
    ]
)

DROPPED_SCHEMA = PROBLEM_SCHEMA.append(pa.field("step", pa.string())).append(pa.field("reason", pa.string())).append(pa.field("detail", pa.string()))
"""A dropped problem with the step that dropped it, a short reason that is counted, and what exactly was seen."""


@dataclass(frozen=True)
class Dropped:
    """A problem that a step refused. `reason` is one of few words that are counted; `detail` is for the reader."""

    problem: Problem
    step: str
    reason: str
    detail: str = ""


POLICY, REPLAY, GUIDE, SHARED = "policy", "replay", "guide", "shared"
"""Origins of a trajectory: answered in its step, taken from an earlier one, said by another policy (whose name GUIDE is too), or by that of another
run."""
PROMPT, TOOL = "prompt", "tool"
"""Authors of a segment, beside POLICY and GUIDE: what asks and what frames turns, and what a tool answered."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Token ids that one author wrote in a row.

    author: PROMPT, POLICY, GUIDE or TOOL. logp: log-probability of each id under what it was sampled from, nats; empty where it was not sampled, or
    the engine does not know. versions: for each id the version of the weights that sampled it, likewise. trains: whether the loss may be of it.
    allowed: for each id the ids that it was drawn from, one bit an id (numpy.packbits); empty where all could be drawn.
    """

    author: str
    ids: list[int]
    logp: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    trains: bool = False
    allowed: list[bytes] = field(default_factory=list)


def one_turn(prompt_ids: list[int], ids: list[int], logp: list[float], versions: list[int], author: str = POLICY) -> list[Segment]:
    """The segments of an episode of one answer, all of which trains."""
    return [Segment(PROMPT, prompt_ids), Segment(author, ids, logp, versions, trains=True)]


def cut(segments: Iterable[Segment], end: int) -> tuple[Segment, ...]:
    """The first `end` ids of segments."""
    left, found = end, list[Segment]()
    for s in segments:
        if left <= 0:
            break
        found.append(replace(s, ids=s.ids[:left], logp=s.logp[:left], versions=s.versions[:left]))
        left -= len(s.ids)
    return tuple(found)


@dataclass(slots=True)
class Trajectory:
    """One episode: what was asked, answered and told, as token ids, never as text that is tokenised again.

    Where a turn is put so that it does not follow from the ids before it (a template that cuts earlier thinking), a new trajectory begins: an episode
    has parts 0, 1, ..., of which the last is the whole of what its last turn saw.

    segments: the prompt, then turn by turn. trained_prompt: the prompt that training sees, where it is not the one sampled in (a hint that is left
    out). finish_reason: `stop`, `length`, or why the environment ended it. response: text of all after the prompt.
    origin: POLICY, REPLAY (`step` says from which step), GUIDE or SHARED (`policy` says from whom). dropped: why it does not train, "" where it does
    (`rl/account.py`).
    """

    problem_id: str
    group_id: int
    sample_id: int
    step: int
    policy: str
    segments: list[Segment]
    finish_reason: str
    trained_prompt: list[int] | None = None
    response: str = ""
    outcome: str = ""
    extracted: str | None = None
    detail: str = ""
    reward: float = 0.0
    reward_parts: dict[str, float] = field(default_factory=dict)
    origin: str = POLICY
    dropped: str = ""
    part: int = 0

    @property
    def prompt_ids(self) -> list[int]:
        """What it was sampled in, before the first turn."""
        return self.segments[0].ids

    @property
    def turns(self) -> list[Segment]:
        """All after the prompt."""
        return self.segments[1:]

    @property
    def response_ids(self) -> list[int]:
        """Ids of all after the prompt."""
        return [token for segment in self.turns for token in segment.ids]

    @property
    def behaviour_logp(self) -> list[float]:
        """For each id of the response the log-probability it was sampled with, 0 where it was not sampled."""
        return [value for segment in self.turns for value in segment.logp or [0.0] * len(segment.ids)]

    @property
    def policy_version(self) -> list[int]:
        """For each id of the response the version of the weights that sampled it, -1 where none did."""
        return [version for segment in self.turns for version in segment.versions or [-1] * len(segment.ids)]

    @property
    def allowed(self) -> list[bytes] | None:
        """For each id of the response what it was drawn from (see `Segment`), b"" where all could be drawn; None where that is so of every id."""
        sets = [bits for segment in self.turns for bits in segment.allowed or [b""] * len(segment.ids)]
        return sets if any(sets) else None

    @property
    def written(self) -> int:
        """How many ids were sampled."""
        return sum(len(segment.versions) for segment in self.turns)


TRAJECTORY_SCHEMA = pa.schema(
    [
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("group_id", pa.int64(), nullable=False),
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("response_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("behaviour_logp", pa.list_(pa.float32()), nullable=False),
        pa.field("policy_version", pa.list_(pa.int32()), nullable=False),
        pa.field("allowed", pa.list_(pa.binary())),
        pa.field("segments", pa.list_(pa.struct([("author", pa.string()), ("tokens", pa.int32()), ("sampled", pa.bool_()), ("trains", pa.bool_())]))),
        pa.field("trained_prompt_ids", pa.list_(pa.int32())),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("extracted", pa.string()),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("reward", pa.float64(), nullable=False),
        pa.field("reward_parts", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("dropped", pa.string(), nullable=False),
        pa.field("part", pa.int32()),
    ]
)
"""A trajectory on disk: the ids after the prompt in one column, and `segments` says who wrote how many of them in turn, and which were sampled
and train. Files of before have no `segments`: all of a response is the policy's."""
