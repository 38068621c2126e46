"""Slot `parts`: what an answer is scored on, by name. Every part sees the whole group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pipelines.config.stage import BOUND
from pipelines.models.reward_model import Scale
from pipelines.records import Outcome, Trajectory, Verdict
from pipelines.rl.rewards.scoring import Scoring

Values = dict[str, list[float | None]]


def verdict(group: Sequence[Trajectory], at: Scoring) -> Values:
    """`correct`: the score of the problem's verifier, in [0, 1]."""
    return {"correct": [_score(each) for each in at.verdicts]}


def form(group: Sequence[Trajectory], at: Scoring) -> Values:
    """`format`: 1 where an answer could be found."""
    return {"format": [float(each.outcome != Outcome.UNPARSABLE) for each in at.verdicts]}


def length(group: Sequence[Trajectory], at: Scoring, *, among: Literal["limit", "group"] = "limit") -> Values:
    """`length`: how short the policy was, 1 for no token at all: of what it may write (`limit`), or, of the longest and shortest in the group
    (`group`), 0 to the longest and 1 to the shortest (Kimi k1.5, arXiv 2501.12599)."""
    written = [t.written for t in group]
    if among == "limit":
        return {"length": [1 - count / at.limit for count in written]}
    low, high = min(written), max(written)
    return {"length": [1 - (count - low) / (high - low) if high > low else 0.5 for count in written]}


def verifier(
    group: Sequence[Trajectory], at: Scoring, *, part: str, verifier: str, answer: str | None = None, args: Mapping[str, Any] | None = None
) -> Values:
    """`part`: what another verifier says: one of pipelines.verifiers, such as `regex`, `constraints` or `judge`, with `args` as its
    verifier_args. answer: its gold; none: the problem's."""
    gold = at.problem.answer if answer is None else answer
    problem = replace(at.problem, verifier=verifier, verifier_args=json.dumps(dict(args or {})), answer=gold)
    said = [at.pool.submit(problem, text) for text in at.answers]
    return {part: [_score(each.result()) for each in said]}


def reward_model(
    group: Sequence[Trajectory],
    at: Scoring,
    *,
    stage: str,
    part: str = "reward_model",
    scale: Scale = "probability",
    bound: float = BOUND,
    principle: str | None = None,
) -> Values:
    """`part`: what the reward model that stage `stage` has made holds of all of a response, read as text in its own chat template. scale: in [0, 1]
    (`probability`), in standard deviations between -5 and 5 (`standard`), or as it is (`raw`). bound: it is refused where the interval of its
    held-out accuracy begins below. principle: of one with loss entailment; none: its own."""
    model = at.reward_models[stage]
    model.require(bound)
    return {part: [*model.scores([(at.problem, t.response) for t in group], scale, principle)]}


def _score(said: Verdict) -> float | None:
    return None if said.outcome is Outcome.INFRASTRUCTURE else said.score


PARTS = {"verdict": verdict, "format": form, "length": length, "verifier": verifier, "reward_model": reward_model}
