"""The answer goes on from the first parts of the worked solution."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace

from pipelines import prompting, seeding
from pipelines.records import GUIDE, Segment
from pipelines.rl.demands import Need, needs
from pipelines.rl.episodes import Asking, Task

_PARAGRAPH = re.compile(r"(?<=\n\n)(?=\S)")
_HEADING = re.compile(r"^(?=(?:\#+ *)?(?:step *)?\d+[.):])", re.IGNORECASE | re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?]\s)(?=\S)|(?<=\n)(?=\S)")
_CLAUSE = re.compile(r"(?<=[,;]\s)(?=\S)")


@needs(Need.SOLUTIONS)
def solution_chunks(task: Task, path: int, at: Asking, *, chunks: int = 4, longest: int = 1024) -> Task:
    """SPARKLE (arXiv 2506.04723): all episodes of a group go on, inside the opened think block, from the first k of at most `chunks` parts of the
    worked solution; k is drawn anew for each group, from 0 to all that do not hold the answer. The parts do not train. longest: tokens that prompt
    and parts may have together; k is less where they have more, or no room is left for the answer. The figure `given` is k.
    """
    parts = before_answer(split(task.problem.solution or "", chunks), task.problem.answer)
    level = int(seeding.generator(*task.key, "chunks").integers(len(parts) + 1))
    while level:
        ids = at.tokenizer(f"{prompting.THINK} {''.join(parts[:level]).rstrip()}", add_special_tokens=False)["input_ids"]
        if len(task.prompt.ids) + len(ids) <= min(longest, at.longest):
            return replace(task, opening=(Segment(GUIDE, ids),), figures={"given": float(level)})
        level -= 1
    return replace(task, figures={"given": 0.0})


def split(solution: str, most: int) -> list[str]:
    """The solution in at most `most` parts, which make it up again: of paragraphs where there are as many, else of what stands under numbered
    headings, shared out evenly; else of sentences, or of clauses, as many a part as it takes."""
    for pattern, least in ((_PARAGRAPH, most), (_HEADING, 2)):
        pieces = [piece for piece in pattern.split(solution) if piece]
        if len(pieces) >= least:
            ends = [int(number * max(len(pieces) / most, 1)) for number in range(min(most, len(pieces)) + 1)]
            return ["".join(pieces[first:last]) for first, last in itertools.pairwise(ends)]
    pieces = _sentences(solution)
    size = math.ceil(len(pieces) / most)
    return ["".join(pieces[first : first + size]) for first in range(0, len(pieces), size)] if solution else []


def solution_steps(solution: str) -> list[str]:
    """The steps of a solution, which make it up again: its paragraphs where it has several, else what stands under numbered headings, else sentences,
    else clauses."""
    found = ([piece for piece in pattern.split(solution) if piece] for pattern in (_PARAGRAPH, _HEADING))
    return next((pieces for pieces in found if len(pieces) > 1), _sentences(solution)) if solution else []


def _sentences(solution: str) -> list[str]:
    """Its sentences, or where there is but one its clauses."""
    pieces = _SENTENCE.split(solution)
    return pieces if len(pieces) > 1 else _CLAUSE.split(solution)


def before_answer(parts: Sequence[str], answer: str) -> list[str]:
    """The parts before the first one that holds the answer."""
    whole = re.compile(rf"(?<!\w){re.escape(answer.strip())}(?!\w)") if answer.strip() else None
    return list(parts[: next((place for place, part in enumerate(parts) if whole and whole.search(part)), len(parts))])
