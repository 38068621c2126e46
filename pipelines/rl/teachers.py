"""The roles `teachers` and `stored`: models that teach a student, by domain, and outputs of teachers that are kept with the rows."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config.distil import EVERY
from pipelines.records import Trajectory


@dataclass(frozen=True)
class Teacher:
    """policy: frozen. tokenizer: its own, where it reads other ids than the student; None: the same."""

    policy: Any
    tokenizer: Any = None


@dataclass(frozen=True)
class Teachers:
    """by_domain: `EVERY` stands for domains that have none of their own."""

    by_domain: Mapping[str, Teacher]

    def of(self, domain: str) -> Teacher:
        """Who teaches a domain.

        Raises:
            KeyError: nobody does.
        """
        return self.by_domain.get(domain) or self.by_domain[EVERY]


@dataclass(frozen=True)
class Output:
    """What a teacher said of each token of a response: its likeliest ids, as many as it gave, and their log-probabilities, nats."""

    ids: Sequence[Sequence[int]]
    logp: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Outputs:
    """by_response: (id of the problem, ids of the response) -> what the teacher said. Of a response that is not there it said the response itself."""

    by_response: Mapping[tuple[str, tuple[int, ...]], Output]

    @functools.cached_property
    def width(self) -> int:
        """Most ids that it gave of a token."""
        return max((len(ids) for output in self.by_response.values() for ids in output.ids), default=1)

    def of(self, trajectory: Trajectory) -> Output:
        response = trajectory.response_ids
        known = self.by_response.get((trajectory.problem_id, tuple(response)))
        return known or Output([[token] for token in response], [[0.0]] * len(response))


@dataclass(frozen=True)
class Span:
    """Ids of the student's response [a, b) and of the teacher's [c, d) that are the same text."""

    student: tuple[int, int]
    teacher: tuple[int, int]


def spans(student: Sequence[int], teacher: Sequence[int]) -> list[Span]:
    """The shortest spans at whose ends both have come to the same place in the text. student, teacher: where in it each token ends.

    Raises:
        ValueError: they do not end at the same place.
    """
    if (student[-1] if student else 0) != (teacher[-1] if teacher else 0):
        raise ValueError("the two tokenisations are not of one text")
    found: list[Span] = []
    i = j = begun_i = begun_j = 0
    while i < len(student) or j < len(teacher):
        if j >= len(teacher) or (i < len(student) and student[i] <= teacher[j]):
            i += 1
        else:
            j += 1
        if i and j and student[i - 1] == teacher[j - 1] and _complete(student, i) and _complete(teacher, j):
            found.append(Span((begun_i, i), (begun_j, j)))
            begun_i, begun_j = i, j
    return found


def _complete(ends: Sequence[int], count: int) -> bool:
    """Whether what follows the first `count` tokens begins behind them: a token without text of its own belongs to what stands before it."""
    return count == len(ends) or ends[count] > ends[count - 1]


def token_ends(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Where in the text of `ids`, in characters, each token ends. A token that ends inside a character ends where the last whole one does, so that
    spans are cut at boundaries of characters alone."""
    ends, length, before, read = [], 0, 0, 0
    for place in range(len(ids)):
        known = tokenizer.decode(ids[before:read])
        said = tokenizer.decode(ids[before : place + 1])
        if len(said) > len(known) and not said.endswith("�"):
            length += len(said) - len(known)
            before, read = read, place + 1
        ends.append(length)
    return ends
