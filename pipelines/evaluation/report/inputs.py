"""What the report is made from. Everything is optional: a part that is missing leaves its section out with a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.evaluation.scores import others


@dataclass(frozen=True)
class StageNode:
    """One stage of the graph as its manifest tells it. kind: as params say. made: folder -> digest; read: name -> digest ("" for a hub id).
    origins: name of what it read -> where that came from and how it was converted, where there is more to say. seen: reference -> how many rows it
    has read of it. notices: what somebody should look at."""

    stage: str
    kind: str
    parents: tuple[str, ...]
    made: Mapping[str, str]
    read: Mapping[str, str]
    seed: int
    settings: Any
    code: str
    commit: str
    versions: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    seen: Mapping[str, int] = field(default_factory=dict)
    notices: Sequence[str] = ()


@dataclass(frozen=True)
class Graded:
    """Pass rate of one problem under a policy, and whether later stages got to see it."""

    domain: str
    pass_rate: float
    pass_n: int
    selected: bool


@dataclass(frozen=True)
class Group:
    """What one step of RL did with one problem: how many answers it had, how many of them were right, trained, were of an earlier step, had help (a
    guide's words, or a hint that training did not see)."""

    problem_id: str
    step: int
    answers: int
    right: int
    trained: int
    replayed: int
    helped: int


@dataclass(frozen=True)
class Inputs:
    """Content of the data folders.

    scores: scores.json. diagnostics: diagnostics.json. card: the data card. ledgers, metrics: stage -> its JSON. curves: stage -> rows of its plot.
    graded: stage of kind grade -> its problems. trained_on: stage of kind rl -> its groups, by step. given: likewise -> problem -> the reference that
    it was read by. kinds: stage -> its kind. samples: (model, benchmark) -> rows of stored samples, of the models that
    `samples.compared` names.
    """

    scores: Mapping[str, Any] | None = None
    diagnostics: Mapping[str, Any] | None = None
    ledgers: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    card: Mapping[str, Any] | None = None
    graded: Mapping[str, Sequence[Graded]] = field(default_factory=dict)
    trained_on: Mapping[str, Sequence[Group]] = field(default_factory=dict)
    given: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    graph: Sequence[StageNode] = ()


def colours(models: Sequence[str], against: str, candidate: str) -> dict[str, str]:
    """Model -> CSS class of its colour, the same in every chart: base and the gate's two models have their own, the others take turns."""
    turns = {model: f"c-{i % 5 + 1}" for i, model in enumerate(others(models, against, candidate))}
    return {"base": "c-base", against: "c-against", candidate: "c-candidate"} | turns


def shades(scores: Mapping[str, Any]) -> dict[str, str]:
    """`colours` of the models that were evaluated."""
    return colours(models_of(scores), *gate_of(scores))


def gate_of(scores: Mapping[str, Any]) -> tuple[str, str]:
    """(what the gate compares with, what it judges)."""
    gate = scores["settings"]["gate"]
    return gate["against"], gate["candidate"]


def models_of(scores: Mapping[str, Any]) -> list[str]:
    """Models in the order of params (JSON on disk is sorted by name)."""
    return list(scores["settings"]["models"])


def last_k(figures: Mapping[str, Any]) -> str:
    """The largest k of a model's pass@k."""
    return max(figures["pass_at_k"], key=int)
