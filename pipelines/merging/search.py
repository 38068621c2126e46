"""Which merge: methods and weights tried under a budget, judged by validation problems, the winner compared with the best single expert.

The validation problems are cut in two. One half chooses, the best expert and the best merge alike; only the two that it chose see the
other half, so the interval of their difference is free of the winner's luck. What a candidate scores is the caller's business.

Greedy soup (arXiv 2203.05482): experts in the order of their scores; each joins the average if the score does not fall.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UserError

Part = Literal["choose", "confirm"]
Scores = NDArray[np.float64]
"""One score in [0, 1] per problem."""
GREEDY = "greedy_soup"


@dataclass(frozen=True)
class Candidate:
    """A merge to try: of `models`, or of all when there are none named; `method` None is the one model as it is."""

    name: str
    method: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """A candidate with what it scored on the half that chooses."""

    candidate: Candidate
    mean: float


@dataclass(frozen=True)
class Choice:
    """The outcome: every trial in order, the winning merge, the best expert, and the winner's scores minus the expert's on the other half."""

    trials: tuple[Trial, ...]
    winner: Candidate
    expert: Candidate
    difference: Scores


def search(candidates: Sequence[Candidate], experts: Sequence[str], score: Callable[[Candidate, Part], Scores], budget: int, greedy: bool) -> Choice:
    """Try every expert as it is, then merges in the order given, then the greedy soup, until `budget` merges have been scored.

    score(candidate, part): per problem of that half, the same problems for every candidate. Of equal means the earlier trial wins.

    Raises:
        UserError: nothing to try.
    """
    if not experts or budget < 1 or not (candidates or greedy):
        raise UserError("merging.search: there is nothing to try; it needs models, a candidate or greedy, and a budget of 1 at least")
    trials = [Trial(single, float(score(single, "choose").mean())) for single in (Candidate(name, None, {}, (name,)) for name in experts)]
    order = sorted(trials, key=lambda trial: -trial.mean)
    expert = order[0]
    merges: list[Trial] = []
    # what the soup needs is set aside first: one merge per expert after the best
    reserved = min(len(experts) - 1, budget) if greedy else 0
    for candidate in candidates[: budget - reserved]:
        merges.append(Trial(candidate, float(score(candidate, "choose").mean())))
    if greedy:
        merges += greedy_soup(order, score, budget - len(merges))
    winner = max(merges, key=lambda trial: trial.mean)
    difference = score(winner.candidate, "confirm") - score(expert.candidate, "confirm")
    return Choice((*trials, *merges), winner.candidate, expert.candidate, difference)


def greedy_soup(order: Sequence[Trial], score: Callable[[Candidate, Part], Scores], budget: int) -> Iterator[Trial]:
    """Averages tried one after another, from the best expert on; at last the soup itself, which is none of them if no other joined.

    order: the experts' own trials, best first.
    """
    chosen, best = order[0].candidate.models, order[0].mean
    for trial in order[1 : 1 + budget]:
        models = (*chosen, *trial.candidate.models)
        tried = Candidate(f"{GREEDY}: {' + '.join(models)}", "linear", {}, models)
        mean = float(score(tried, "choose").mean())
        yield Trial(tried, mean)
        if mean >= best:
            chosen, best = models, mean
    if len(chosen) == 1:
        yield Trial(Candidate(f"{GREEDY}: {chosen[0]}", "linear", {}, chosen), best)


def grid(method: str, settings: Mapping[str, Any], values: Mapping[str, Sequence[Any]]) -> Iterator[Candidate]:
    """One candidate for every combination of `values`, the last key changing fastest."""
    for combination in itertools.product(*values.values()):
        chosen = {**settings, **dict(zip(values, combination, strict=True))}
        yield Candidate(" ".join([method, ", ".join(f"{key} {value}" for key, value in chosen.items())]).rstrip(), method, chosen)
