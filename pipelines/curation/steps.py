"""What a curation step is given and what it gives back.

A step is `step(rows, inputs) -> apply`, and `apply(batch)` names the rows of a batch that go, each with its reason, and may rewrite
those that stay. Every row comes out on one side; none is invented, and neither the order of the rows nor how they are cut
into batches changes what is kept. A step that looks at one row at a time takes no notice of `rows`; one that compares rows with each
other (`WHOLE` in __init__.py) looks at all of them first and decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipelines.chat import ChatClient
from pipelines.config.curation import CurationSettings
from pipelines.records import PROBLEM_SCHEMA, Problem
from pipelines.store import problem_table, to_problems


@dataclass(frozen=True)
class Inputs:
    """What steps see beside the rows.

    benchmarks: name -> held-out problems. known: rows that are in the training set already, which new ones must not repeat.
    client: an OpenAI-compatible endpoint, None where there is none.
    """

    settings: CurationSettings = field(default_factory=CurationSettings)
    benchmarks: dict[str, list[Problem]] = field(default_factory=dict)
    known: tuple[Problem, ...] = ()
    client: ChatClient | None = None


class Batch:
    """Some rows: a table of PROBLEM_SCHEMA with `row`, the place of each in the whole."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    @classmethod
    def of(cls, problems: list[Problem], rows: np.ndarray | None = None) -> Batch:
        places = np.arange(len(problems)) if rows is None else rows
        return cls(problem_table(problems).append_column("row", pa.array(places, pa.int64())))

    @property
    def rows(self) -> np.ndarray:
        return self.table.column("row").to_numpy()

    def texts(self, column: str) -> list[Any]:
        return self.table.column(column).to_pylist()

    @cached_property
    def problems(self) -> list[Problem]:
        return to_problems(self.table.select(PROBLEM_SCHEMA.names))


Reason = tuple[str, str]
"""A short word that is counted, and what exactly was seen."""


@dataclass(frozen=True)
class Passed:
    """Place in the batch -> why it goes; and the batch with the others rewritten, None where nothing is."""

    objections: Mapping[int, Reason]
    rewritten: Batch | None = None


Apply = Callable[[Batch], Passed]


class Rows(Protocol):
    """All rows that reach a step."""

    def sketch(self, look: Callable[[Batch], pa.Table]) -> pa.Table:
        """What `look` says of each batch, one table, by its column `row`. `look` may run in other processes."""
        ...

    def batches(self) -> Iterator[Batch]: ...

    def preferred(self) -> np.ndarray:
        """The numbers of all rows, those first that should stay before others: with a worked solution, then by source, source id, problem id."""
        ...

    def take(self, rows: np.ndarray) -> dict[int, Problem]:
        """Some rows by number."""
        ...


Step = Callable[[Rows, Inputs], Apply]


class Skipped(Exception):
    """A step cannot run here and says why; all rows stay."""


@dataclass(frozen=True)
class Decided:
    """What a step found out about all rows before: row -> why it goes, row -> what it is now."""

    goes: Mapping[int, Reason]
    becomes: Mapping[int, Problem] = field(default_factory=dict)

    def __call__(self, batch: Batch) -> Passed:
        places = list(enumerate(batch.rows.tolist()))
        objections = {place: self.goes[row] for place, row in places if row in self.goes}
        if not any(row in self.becomes for _, row in places):
            return Passed(objections)
        changed = [self.becomes.get(row, problem) for (_, row), problem in zip(places, batch.problems, strict=True)]
        return Passed(objections, Batch.of(changed, batch.rows))


def prompt_key(prompt: str) -> str:
    """Two prompts are the same problem when this is equal: whitespace and case aside (as in `records.problem_id`)."""
    return " ".join(prompt.split()).casefold()


def preference(problem: Problem) -> tuple[bool, str, str, str, str]:
    """Sorts a row that should stay before one that may go; `Rows.preferred` in Python."""
    return (problem.solution is None, problem.source, problem.source_id, problem.problem_id, problem.solution or "")


def label(problem: Problem) -> str:
    """A row for a reader."""
    return f"{problem.source} {problem.source_id}"
