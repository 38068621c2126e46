"""The records that travel between stages, and their Arrow schemas.

Problem: one row to solve. Verdict: what a verifier says of one response. Rollout: one sampled response with all that
training needs. Rows live in Parquet (`store.py`); in memory they are these frozen dataclasses.
"""

from __future__ import annotations

import enum
import hashlib
import json
from dataclasses import dataclass, field
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


def problem_id(prompt: str, answer: str) -> str:
    """Content hash of a problem (whitespace and case of the prompt do not matter): 16 hex digits of SHA-256."""
    normalised = " ".join(prompt.split()).casefold()
    return hashlib.sha256(json.dumps([normalised, answer.strip()]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Problem:
    """One row to solve.

    answer: the gold: a number or expression (math), the canonical program (code), an option or text (logic).
    answer_type: integer | expression | text | program.
    verifier, verifier_args: name in `pipelines.verifiers.VERIFIERS` and a JSON object of its settings (tests, options, ...).
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


POLICY, REPLAY, GUIDE = "policy", "replay", "guide"
"""Origins of a rollout: answered in its step, taken from an earlier one, said by another policy (whose name GUIDE is too)."""


@dataclass(slots=True)
class Rollout:
    """One sampled response. Token ids are those sampled, never re-tokenised text; per-token lists are of response length.

    origin: POLICY, REPLAY (`step` says from which step) or GUIDE. dropped: why it does not train, "" where it does (`rl/account.py`).
    """

    problem_id: str
    group_id: int
    sample_id: int
    step: int
    policy: str
    prompt_ids: list[int]
    response_ids: list[int]
    behaviour_logp: list[float]
    policy_version: list[int]
    finish_reason: str
    response: str = ""
    outcome: str = ""
    extracted: str | None = None
    detail: str = ""
    reward: float = 0.0
    reward_parts: dict[str, float] = field(default_factory=dict)
    origin: str = POLICY
    dropped: str = ""


ROLLOUT_SCHEMA = pa.schema(
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
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("extracted", pa.string()),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("reward", pa.float64(), nullable=False),
        pa.field("reward_parts", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("dropped", pa.string(), nullable=False),
    ]
)
