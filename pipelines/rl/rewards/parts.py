"""Slot `parts`: what an answer is scored on, by name. Every part sees the whole group."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pipelines.config.stage import BOUND
from pipelines.models.reward_model import Scale
from pipelines.records import Outcome, Trajectory, Verdict
from pipelines.rl.guidance.templates import well_formed
from pipelines.rl.outcomes import class_of
from pipelines.rl.rewards.scoring import Scoring
from pipelines.verifiers import final_text

Values = dict[str, list[float | None]]


def verdict(group: Sequence[Trajectory], at: Scoring) -> Values:
    """`correct`: the score of the problem's verifier, in [0, 1]."""
    return {"correct": [_score(each) for each in at.verdicts]}


def form(group: Sequence[Trajectory], at: Scoring) -> Values:
    """`format`: 1 where an answer could be found."""
    return {"format": [float(each.outcome != Outcome.UNPARSABLE) for each in at.verdicts]}


def outcome(group: Sequence[Trajectory], at: Scoring, *, worth: tuple[float, float, float, float] = (-1.0, -0.6, -0.3, 1.0)) -> Values:
    """`outcome`: what a program is worth that does not compile, fails while it runs, fails a test, and passes all (CodeRL, arXiv 2207.01780)."""
    known = [None if each.outcome is Outcome.INFRASTRUCTURE else class_of(each.outcome, each.detail) for each in at.verdicts]
    return {"outcome": [None if each is None else worth[each] for each in known]}


def template_form(group: Sequence[Trajectory], at: Scoring) -> Values:
    """`template_form`: 1 where an answer has the form that its template asks for (guidance `templates`); 0 on held-out problems, which have none."""
    return {"template_form": [float("template" in t.reward_parts and well_formed(t.response, t.reward_parts["template"])) for t in group]}


def mentions(group: Sequence[Trajectory], at: Scoring, *, part: str, phrases: Sequence[str]) -> Values:
    """`part`: 1 where the answer, thoughts left out, has one of the phrases; case does not matter."""
    said = [(final_text(text) or "").casefold() for text in at.answers]
    return {part: [float(any(phrase.casefold() in text for phrase in phrases)) for text in said]}


def length(group: Sequence[Trajectory], at: Scoring, *, among: Literal["limit", "group"] = "limit") -> Values:
    """`length`: how short the policy was, 1 for no token at all: of what it may write (`limit`), or, of the longest and shortest in the group
    (`group`), 0 to the longest and 1 to the shortest (Kimi k1.5, arXiv 2501.12599)."""
    written = [t.written for t in group]
    if among == "limit":
        return {"length": [1 - count / at.limit for count in written]}
    low, high = min(written), max(written)
    return {"length": [1 - (count - low) / (high - low) if high > low else 0.5 for count in written]}


def cosine(
    group: Sequence[Trajectory], at: Scoring, *, right: tuple[float, float] = (1.0, 0.5), wrong: tuple[float, float] = (-1.0, -0.5)
) -> Values:
    """`cosine`: what a right and what a wrong answer is worth by how much the policy wrote of what it may write, from the first value for no token
    to the second for all, along half a cosine (arXiv 2502.03373; by default with the constants of open-rs, arXiv 2503.16219)."""

    def worth(outcome: Outcome, written: int) -> float | None:
        if outcome is Outcome.INFRASTRUCTURE:
            return None
        first, last = right if outcome is Outcome.CORRECT else wrong
        return last + 0.5 * (first - last) * (1 + math.cos(math.pi * min(written / at.limit, 1.0)))

    return {"cosine": [worth(each.outcome, t.written) for each, t in zip(at.verdicts, group, strict=True)]}


def token_budget(group: Sequence[Trajectory], at: Scoring, *, first: int = 800, decay: float = 0.2) -> Values:
    """`token_budget`: 1 where the policy wrote as many tokens as the step's budget (`budget`), linearly less to 0 at none and at twice as many
    (Reinforcement Mid-Training, arXiv 2509.24375)."""
    tokens = budget((group[0].step - 1) / at.steps, first, decay)
    return {"token_budget": [max(1 - abs(t.written / tokens - 1), 0.0) for t in group]}


def budget(passed: float, first: int = 800, decay: float = 0.2) -> int:
    """Tokens of an answer when a share of `passed` of the steps is over: `first` times `decay`^passed, rounded down, at least 1."""
    return max(1, math.floor(first * decay**passed))


def repetition(group: Sequence[Trajectory], at: Scoring, *, n: int = 4) -> Values:
    """`repetition`: of the runs of `n` tokens that the policy wrote, the share that it had written before."""

    def repeated(written: Sequence[int]) -> float:
        runs = [tuple(written[place : place + n]) for place in range(len(written) - n + 1)]
        return 1 - len(set(runs)) / len(runs) if runs else 0.0

    return {"repetition": [repeated([token for s in t.turns if s.versions for token in s.ids]) for t in group]}


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


PARTS = {
    "verdict": verdict,
    "format": form,
    "outcome": outcome,
    "template_form": template_form,
    "mentions": mentions,
    "length": length,
    "cosine": cosine,
    "token_budget": token_budget,
    "repetition": repetition,
    "verifier": verifier,
    "reward_model": reward_model,
}
