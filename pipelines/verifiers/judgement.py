"""What every verifier returns: a Verdict at once, or the work that reaches one (`Job`).

The split keeps the cheap path cheap: a verifier decides in the calling thread what takes microseconds, and only a Job
is cached, deduplicated and given to a worker process or a sandbox.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers.sandbox import ProgramLimits


@dataclass(frozen=True)
class Limits:
    """engine_seconds, engine_memory: wall time and address space of one symbolic or logic judgement. program: see ProgramLimits."""

    engine_seconds: float = 3.0
    engine_memory: int = 2 << 30
    program: ProgramLimits = field(default_factory=ProgramLimits)


class Engines(Protocol):
    """What a Job may use: the limits, and worker processes of a kind ("math", "text", "similarity", "logic") that answer a request within them."""

    limits: Limits

    def ask(self, kind: str, request: dict[str, Any]) -> dict[str, Any] | Verdict: ...


@dataclass(frozen=True)
class Job:
    """Work that reaches a verdict. subject: all of the response that the verdict depends on, so that equal ones are judged once."""

    subject: str
    work: Callable[[Engines], Verdict]


Verifier = Callable[[Problem, str], Verdict | Job]


def judged(correct: bool, extracted: str | None, detail: str = "") -> Verdict:
    return Verdict(Outcome.CORRECT if correct else Outcome.WRONG, float(correct), extracted, detail)


def failed(outcome: Outcome, detail: str, extracted: str | None = None) -> Verdict:
    return Verdict(outcome, 0.0, extracted, detail)
