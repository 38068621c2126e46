"""What the report is made from. Everything is optional: a part that is missing leaves its section out with a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.evaluation.scores import experts


@dataclass(frozen=True)
class StageNode:
    """One stage of the graph as its manifest tells it. made: folder -> digest; read: name -> digest ("" for a hub id).
    origins: name of what it read -> where that came from and how it was converted, where there is more to say. notices: what somebody should
    look at."""

    stage: str
    parents: tuple[str, ...]
    made: Mapping[str, str]
    read: Mapping[str, str]
    seed: int
    settings: Any
    code: str
    commit: str
    versions: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    notices: Sequence[str] = ()


@dataclass(frozen=True)
class Graded:
    """Pass rate of one problem under the SFT policy, and whether RL got to see it."""

    domain: str
    pass_rate: float
    pass_n: int
    selected: bool


@dataclass(frozen=True)
class Inputs:
    """Content of the data folders.

    scores: scores.json. diagnostics: diagnostics.json. card: the data card. ledgers, metrics: stage -> its JSON. curves: stage -> rows of its plot.
    samples: (model, benchmark) -> rows of stored samples, of the models that `samples.compared` names.
    """

    scores: Mapping[str, Any] | None = None
    diagnostics: Mapping[str, Any] | None = None
    ledgers: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    card: Mapping[str, Any] | None = None
    graded: Sequence[Graded] = ()
    samples: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    graph: Sequence[StageNode] = ()


def colours(models: Sequence[str]) -> dict[str, str]:
    """Model -> CSS class of its colour, the same in every chart: base, sft and merged have their own, experts take turns."""
    return {"base": "c-base", "sft": "c-sft", "merged": "c-merged"} | {model: f"c-{i % 5 + 1}" for i, model in enumerate(experts(models))}


def models_of(scores: Mapping[str, Any]) -> list[str]:
    """Models in the order of params (JSON on disk is sorted by name)."""
    return list(scores["settings"]["models"])


def last_k(figures: Mapping[str, Any]) -> str:
    """The largest k of a model's pass@k."""
    return max(figures["pass_at_k"], key=int)
