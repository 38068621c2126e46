"""What a curation step is given and what it gives back.

A step is `(problems, inputs) -> (kept, dropped)`: every row that goes in comes out on one side, a dropped one with its reason.
Steps may rewrite rows (normalise) but never invent any, and neither the order of the rows nor how they are split
into batches changes what is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.config.curation import CurationSettings
from pipelines.records import Dropped, Problem


@dataclass(frozen=True)
class Inputs:
    """What steps see beside the rows.

    benchmarks: name -> held-out problems. known: rows that are in the training set already, which new ones must not repeat.
    """

    settings: CurationSettings = field(default_factory=CurationSettings)
    benchmarks: dict[str, list[Problem]] = field(default_factory=dict)
    known: tuple[Problem, ...] = ()


Step = Callable[[list[Problem], Inputs], tuple[list[Problem], list[Dropped]]]


def prompt_key(prompt: str) -> str:
    """Two prompts are the same problem when this is equal: whitespace and case aside (as in `records.problem_id`)."""
    return " ".join(prompt.split()).casefold()
