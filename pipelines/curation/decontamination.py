"""No training row may hold a benchmark problem.

Rules, in the order in which they are tried; the first that fires is reported:

    exact        the same words (case, punctuation and LaTeX layout aside)
    any          one shared word n-gram suffices (open-r1 with n = 8; GPT-3 with n = 13, arXiv 2005.14165)
    containment  the share of the row's n-grams that the item has, or of the item's distinct n-grams that the row has, reaches `threshold`
    whole        a text of SHORTEST to n - 1 words, too short for an n-gram, that lies inside the other as a whole; open-r1 is blind there

A shorter text can only match exactly: "Compute sin 60" is part of too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.config.curation import DecontaminationSettings
from pipelines.curation.normalise import without_wrapper
from pipelines.curation.steps import Inputs
from pipelines.curation.words import Grams, Words, shared_span
from pipelines.records import Dropped, Problem

SHORTEST = 8
BATCH = 8192
"""Rows compared at once; it bounds memory and changes no result."""
SPAN_CHARS = 300


@dataclass(frozen=True)
class Hit:
    """A row's overlap with benchmark item number `item`: by which rule, and the longest run of words they share."""

    item: int
    rule: str
    span: str


def decontaminate(problems: list[Problem], inputs: Inputs) -> tuple[list[Problem], list[Dropped]]:
    """Drop rows that overlap a benchmark, as `benchmark_<rule>`; the detail names item, rule and shared words."""
    items = [(name, problem) for name in sorted(inputs.benchmarks) for problem in inputs.benchmarks[name]]
    index = Index([problem.prompt for _, problem in items], inputs.settings.decontamination)
    kept, dropped = [], []
    for start in range(0, len(problems), BATCH):
        batch = problems[start : start + BATCH]
        for problem, hit in zip(batch, index.hits([row.prompt for row in batch]), strict=True):
            if hit is None:
                kept.append(problem)
                continue
            benchmark, item = items[hit.item]
            detail = f"{benchmark} {item.source_id} ({index.describe(hit.rule)}): {hit.span[:SPAN_CHARS]}"
            dropped.append(Dropped(problem, "decontaminate", f"benchmark_{hit.rule}", detail))
    return kept, dropped


class Index:
    """Benchmark prompts, ready to be compared with any number of rows."""

    def __init__(self, prompts: Sequence[str], settings: DecontaminationSettings) -> None:
        self._settings = settings
        self._words = Words([without_wrapper(prompt) for prompt in prompts])
        self._items = [self._words.of(i) for i in range(len(prompts))]
        self._order = np.argsort(self._words.wholes(), kind="stable")
        self._wholes = self._words.wholes()[self._order]
        self._grams = Grams(self._words, settings.n)
        short = {m: np.flatnonzero(self._words.lengths == m) for m in range(SHORTEST, settings.n)}
        self._short_items = [Grams(self._words, m, items) for m, items in short.items() if len(items)]
        self._inside = {m: Grams(self._words, m) for m in short}

    def describe(self, rule: str) -> str:
        """The rule for a reader."""
        return {
            "exact": "same words",
            "any": f"shared {self._settings.n}-gram",
            "containment": f"{self._settings.n}-gram containment of at least {self._settings.threshold:g}",
            "whole": "the shorter inside the other as a whole",
        }[rule]

    def hits(self, prompts: Sequence[str]) -> list[Hit | None]:
        """The overlap of each row, None for none."""
        rows = Words([without_wrapper(prompt) for prompt in prompts])
        found: dict[int, Hit] = {}
        for row, item in self._same(rows):
            if rows.of(row) == self._items[item]:
                found[row] = Hit(item, "exact", " ".join(self._items[item]))
        self._confirm(found, rows, self._overlaps(rows), self._settings.rule, self._grams.n)
        for grams in self._short_items:
            self._confirm(found, rows, _first_pairs(*grams.find(rows)[:2]), "whole", grams.n)
        for m, grams in self._inside.items():
            short = np.flatnonzero(rows.lengths == m)
            self._confirm(found, rows, _first_pairs(*grams.find(rows, short)[:2]), "whole", m)
        return [found.get(row) for row in range(len(prompts))]

    def _same(self, rows: Words) -> list[tuple[int, int]]:
        """(row, first item) with equal hashes of the whole text; a text without words equals nothing."""
        hashes = rows.wholes()
        at = np.searchsorted(self._wholes, hashes)
        candidates = np.flatnonzero((at < len(self._wholes)) & (rows.lengths > 0))
        return [(int(row), int(self._order[at[row]])) for row in candidates if self._wholes[at[row]] == hashes[row]]

    def _overlaps(self, rows: Words) -> list[tuple[int, int]]:
        """(row, item) of the strongest overlap of each row that the rule finds guilty; ties go to the first item."""
        row, item, gram = self._grams.find(rows)
        pairs, which, positions = np.unique(row * len(self._items) + item, return_inverse=True, return_counts=True)
        row, item = np.divmod(pairs, max(len(self._items), 1))
        score = positions.astype(float)
        if self._settings.rule == "containment":
            of_row = positions / np.maximum(rows.lengths[row] - self._grams.n + 1, 1)
            of_item = _distinct(which, gram) / self._grams.distinct[item]
            score = np.maximum(of_row, of_item)
            guilty = score >= self._settings.threshold
            row, item, score = row[guilty], item[guilty], score[guilty]
        return _first_pairs(row, item, score)

    def _confirm(self, found: dict[int, Hit], rows: Words, pairs: list[tuple[int, int]], rule: str, n: int) -> None:
        """Add the pairs of rows not yet found whose words, not just hashes, agree on n words in a row."""
        for row, item in pairs:
            span = [] if row in found else _longest_span(rows.of(row), self._items[item], n)
            if span:
                found[row] = Hit(item, rule, " ".join(span))


def _longest_span(row: list[str], item: list[str], n: int) -> list[str]:
    """The longest run of words that holds a shared n-gram."""
    known = {tuple(item[i : i + n]) for i in range(len(item) - n + 1)}
    best: list[str] = []
    position = 0
    while position <= len(row) - n:
        if tuple(row[position : position + n]) in known:
            start, end = shared_span(row, position, item, n)
            best = max(best, row[start:end], key=len)
            position = max(position, end - n)
        position += 1
    return best


def _first_pairs(row: np.ndarray, item: np.ndarray, score: np.ndarray | None = None) -> list[tuple[int, int]]:
    """For each row its item of the highest score, of equal ones the first."""
    order = np.lexsort((item, row) if score is None else (item, -score, row))
    first = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
    return list(zip(row[first].tolist(), item[first].tolist(), strict=True))


def _distinct(which: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Number of different n-grams per value of `which`."""
    return np.bincount(np.unique(np.stack([which, gram], axis=1), axis=0)[:, 0])
