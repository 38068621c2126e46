"""No training row may hold a benchmark problem.

Rules, in the order in which they are tried; the first that fires is reported:

    exact        the same words (case, punctuation and LaTeX layout aside), of the row or of one of its paragraphs
    any          one shared word n-gram suffices (open-r1 with n = 8; GPT-3 with n = 13, arXiv 2005.14165)
    containment  the share of the row's n-grams that the item has, or of the item's distinct n-grams that the row has, reaches `threshold`
    whole        a text of SHORTEST to n - 1 words, too short for an n-gram, that lies inside the other as a whole; open-r1 is blind there
    reworded     enough shared n-grams of the words that are no numbers, the same numbers and symbols, and no other number for an answer
    paraphrase   embeddings close enough, and as before

A shorter text can only match exactly: "Compute sin 60" is part of too much. Under `siblings: keep` a row is spared of which a number,
sign or symbol was replaced (content.py; under the first rule a sign): most of what n-grams find in real training sets is another
problem of a benchmark's template.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.config.curation import DecontaminationSettings, ParaphraseSettings
from pipelines.curation.content import NUMBER_WORDS, Against, content, signs, without_form
from pipelines.curation.normalise import canonical_answer, without_wrapper, without_wrappers
from pipelines.curation.steps import Apply, Batch, Inputs, Passed, Rows
from pipelines.curation.words import Grams, Words, shared_span, words_of

SHORTEST = 8
SHORTEST_PARAGRAPH = 3
WHOLLY, SAME = 0.8, 0.75
"""Share of n-grams from which on a text counts as contained in the other, and of numbers and symbols from which on they have the same."""
SPAN_CHARS = 300
_NUMBER = re.compile(r"[-+]?\d{1,15}(?:\.\d{1,15})?")

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row, item and score of each."""


@dataclass(frozen=True)
class Hit:
    """A row's overlap with benchmark item number `item`: by which rule, and the longest run of words they share."""

    item: int
    rule: str
    span: str
    cosine: float | None = None


def decontaminate(rows: Rows, inputs: Inputs) -> Apply:
    """Drop rows that overlap a benchmark, as `benchmark_<rule>`; the detail names item, rule and shared words.

    Raises:
        UserError: the embedding model is not there.
    """
    items = [(name, problem) for name in sorted(inputs.benchmarks) for problem in inputs.benchmarks[name]]
    names = [f"{name} {problem.source_id}" for name, problem in items]
    index = Index([problem.prompt for _, problem in items], inputs.settings.decontamination, [problem.answer for _, problem in items])
    return functools.partial(_overlapping, index, names)


def _overlapping(index: Index, names: list[str], batch: Batch) -> Passed:
    objections = {}
    for place, hit in enumerate(index.hits(batch.table.column("prompt"), batch.texts("answer"))):
        if hit:
            objections[place] = f"benchmark_{hit.rule}", f"{names[hit.item]} ({index.describe(hit)}): {hit.span[:SPAN_CHARS]}"
    return Passed(objections)


class Index:
    """Benchmark prompts, ready to be compared with any number of rows."""

    def __init__(self, prompts: Sequence[str], settings: DecontaminationSettings, answers: Sequence[str] | None = None) -> None:
        """answers: those of the items, where they are known; "" for one that is not."""
        self._settings = settings
        self._texts = [without_wrapper(prompt) for prompt in prompts]
        self._words = Words(self._texts)
        self._items = [self._words.of(i) for i in range(len(prompts))]
        self._order = np.argsort(self._words.wholes(), kind="stable")
        self._wholes = self._words.wholes()[self._order]
        self._grams = Grams(self._words, settings.n)
        short = {m: np.flatnonzero(self._words.lengths == m) for m in range(SHORTEST, settings.n)}
        self._short_items = [Grams(self._words, m, items) for m, items in short.items() if len(items)]
        self._inside = {m: Grams(self._words, m) for m in short}
        self._contents = Against(self._texts), Against([without_form(text) for text in self._texts])
        self._paraphrases = None
        if settings.paraphrases:
            self._paraphrases = _Paraphrases(self._texts, answers or [""] * len(prompts), self._words, settings.paraphrases)

    def describe(self, hit: Hit) -> str:
        """The rule for a reader."""
        return {
            "exact": "same words",
            "any": f"shared {self._settings.n}-gram",
            "containment": f"{self._settings.n}-gram containment of at least {self._settings.threshold:g}",
            "whole": "the shorter inside the other as a whole",
            "reworded": "most of its words and the same numbers and symbols",
            "paraphrase": f"cosine {hit.cosine:.3f} and the same numbers and symbols" if hit.cosine is not None else "",
        }[hit.rule]

    def hits(self, prompts: Sequence[str] | pa.ChunkedArray, answers: Sequence[str] | None = None) -> list[Hit | None]:
        """The overlap of each row, None for none. answers: those of the rows, where they are known."""
        texts = without_wrappers(prompts)
        rows = Words(texts)
        found: dict[int, Hit] = {}
        self._same(found, texts, rows)
        compared = _Compared(*self._contents, texts)
        self._confirm(found, rows, compared, self._overlaps(rows), self._settings.rule, self._grams.n)
        for grams in self._short_items:
            self._confirm(found, rows, compared, _whole(grams.find(rows)), "whole", grams.n)
        for m, grams in self._inside.items():
            self._confirm(found, rows, compared, _whole(grams.find(rows, np.flatnonzero(rows.lengths == m))), "whole", m)
        if self._paraphrases:
            for row, (item, rule, cosine) in self._paraphrases.find(found, texts, answers or [""] * len(texts), rows, compared):
                found[row] = Hit(item, rule, _common_run(rows.of(row), self._items[item]), cosine)
        return [found.get(row) for row in range(len(prompts))]

    def _same(self, found: dict[int, Hit], texts: pa.Array, rows: Words) -> None:
        """Rows with the words of an item, then rows of which a paragraph has them; a text without words equals nothing."""
        for whole, (owners, lengths, hashes) in ((True, (np.arange(len(rows)), rows.lengths, rows.wholes())), (False, rows.paragraphs())):
            at = np.minimum(np.searchsorted(self._wholes, hashes), len(self._wholes) - 1)
            same = np.flatnonzero((self._wholes[at] == hashes) & (lengths >= 1)) if len(self._wholes) else []
            for place in same:
                row, item = int(owners[place]), int(self._order[at[place]])
                if row not in found and self._repeats(texts[row].as_py(), item, whole=whole):
                    found[row] = Hit(item, "exact", " ".join(self._items[item]))

    def _repeats(self, text: str, item: int, *, whole: bool) -> bool:
        """Whether a text, or one of its paragraphs, has the words of an item and, unless siblings go too, its signs."""
        for part in [text] if whole else text.split("\n\n"):
            words = words_of(part)
            if words == self._items[item] and (whole or len(words) >= SHORTEST_PARAGRAPH):
                return self._settings.siblings == "drop" or not _other_signs(part, self._texts[item])
        return False

    def _overlaps(self, rows: Words) -> Pairs:
        """Every overlap that the rule finds guilty, with the larger share of the two."""
        row, item, of_row, of_item = _shares(self._grams, rows)
        score = np.maximum(of_row, of_item)
        guilty = score >= (self._settings.threshold if self._settings.rule == "containment" else 0)
        return row[guilty], item[guilty], score[guilty]

    def _confirm(self, found: dict[int, Hit], rows: Words, compared: _Compared, pairs: Pairs, rule: str, n: int) -> None:
        """Add rows not yet found with their first item, best first, that is no sibling and agrees in n words, not just their hashes.

        No sibling is what replaces nothing and, where it adds or leaves out much, contains or is contained wholly.
        """
        for row, items, scores in _by_row(*pairs):
            if row in found:
                continue
            if self._settings.siblings == "keep":
                share, excess = compared[row]
                items = items[(excess[items] < 1) & ((share[items] >= SAME) | (scores >= WHOLLY))]
            for item in items.tolist():
                span = _longest_span(rows.of(row), self._items[item], n)
                if span:
                    found[row] = Hit(item, rule, " ".join(span))
                    break


class _Compared:
    """Row -> share and excess (`Against.compare`) with every item, computed when asked for.

    A row that ends with the form of its answer is also compared without it, with the items without theirs; the more alike counts.
    """

    def __init__(self, items: Against, bare: Against, texts: pa.Array) -> None:
        self._items, self._bare, self._texts = items, bare, texts
        self._known: tuple[int, tuple[np.ndarray, np.ndarray]] | None = None

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        if self._known is None or self._known[0] != row:
            text = self._texts[row].as_py()
            share, excess = self._items.compare(content(text))
            bare = without_form(text)
            if bare != text:
                others = self._bare.compare(content(bare))
                share, excess = np.maximum(share, others[0]), np.minimum(excess, others[1])
            self._known = row, (share, excess)
        return self._known[1]


class _Paraphrases:
    """Items in other words: proposed by shared words or by embeddings, decided by content."""

    def __init__(self, texts: Sequence[str], answers: Sequence[str], words: Words, settings: ParaphraseSettings) -> None:
        self._settings, self._texts, self._answers = settings, texts, list(answers)
        self._grams = Grams(words.without_numbers(NUMBER_WORDS), settings.n)
        self._vectors: dict[int, np.ndarray] = {}
        self._embed = None
        if settings.embedding:
            from pipelines.models.embedding import Embedder

            self._embed = Embedder(settings.embedding)

    def find(
        self, found: Mapping[int, Hit], texts: pa.Array, answers: Sequence[str], rows: Words, compared: _Compared
    ) -> Iterator[tuple[int, tuple[int, str, float | None]]]:
        """(row, (item, rule, cosine)) of rows not yet found. Where most words are the same, most of the content must be too."""
        by_row, by_item, of_row, of_item = _shares(self._grams, rows.without_numbers(NUMBER_WORDS), self._settings.overlap)
        score = np.minimum(of_row, of_item)
        likely = score >= self._settings.overlap
        near = {row: items for row, items, _ in _by_row(by_row[likely], by_item[likely], score[likely]) if row not in found}
        reworded = set()
        for row, items in near.items():
            same = items[self._same(compared[row], max(self._settings.content, SAME))[items]]
            same = [item for item in same.tolist() if not _contradict(answers[row], self._answers[item])]
            if same:
                reworded.add(row)
                yield row, (same[0], "reworded", None)
        if self._embed:
            for row in range(len(texts)):
                if row in found or row in reworded or not rows.lengths[row]:
                    continue
                likely = self._same(compared[row], self._settings.content)
                if row in near:  # what shares most of its words has been judged by them
                    likely[near[row]] = False
                items = [item for item in np.flatnonzero(likely).tolist() if not _contradict(answers[row], self._answers[item])]
                item, cosine = self._nearest(texts[row].as_py(), items)
                if cosine >= self._settings.cosine:
                    yield row, (item, "paraphrase", cosine)

    def _nearest(self, text: str, items: list[int]) -> tuple[int, float]:
        """Of `items` the one whose embedding is nearest, of equal ones the first, with the cosine; those of items are kept."""
        if not self._embed or not items:
            return -1, -1.0
        for item in items:
            if item not in self._vectors:
                self._vectors[item] = self._embed([self._texts[item]])[0]
        vector = self._embed([text])[0]
        return max(((item, float(self._vectors[item] @ vector)) for item in items), key=lambda pair: (pair[1], -pair[0]))

    def _same(self, compared: tuple[np.ndarray, np.ndarray], least: float) -> np.ndarray:
        """Which items hold the same content: nothing replaced and enough in common."""
        share, excess = compared
        return (excess < 1) & (share >= least)


def _shares(grams: Grams, rows: Words, least: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(row, item, share of the row's n-grams, share of the item's distinct ones) of every pair that shares one; rows below `least` are left out."""
    row, item, gram = grams.find(rows, least=least)
    items = len(grams.distinct)
    pairs, which, positions = np.unique(row * items + item, return_inverse=True, return_counts=True)
    row, item = np.divmod(pairs, max(items, 1))
    of_row = positions / np.maximum(rows.lengths[row] - grams.n + 1, 1)
    of_item = _distinct(which, gram) / grams.distinct[item]
    return row, item, of_row, of_item


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


def _other_signs(row: str, item: str) -> bool:
    """Whether two texts of the same words differ in a sign; a row without any has lost its punctuation."""
    of_row = signs(row)
    return bool(of_row) and of_row != signs(item)


def _contradict(one: str, other: str) -> bool:
    """Whether both answers are plain numbers, and not the same."""
    first, second = (canonical_answer(answer).replace(",", "") for answer in (one, other))
    return bool(_NUMBER.fullmatch(first) and _NUMBER.fullmatch(second)) and float(first) != float(second)


def _common_run(row: list[str], item: list[str]) -> str:
    """The longest run of words that both have."""
    match = difflib.SequenceMatcher(None, row, item, autojunk=False).find_longest_match()
    return " ".join(row[match.a : match.a + match.size])


def _whole(found: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Pairs:
    """Pairs of which the shorter is in the other as a whole."""
    return found[0], found[1], np.ones(len(found[0]))


def _by_row(row: np.ndarray, item: np.ndarray, score: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each row with its items and their scores, the highest first, of equal ones the first."""
    order = np.lexsort((item, -score, row))
    starts = np.flatnonzero(np.diff(row[order], prepend=-1))
    parts = zip(np.split(item[order], starts[1:]), np.split(score[order], starts[1:]), strict=True)
    yield from ((first, *part) for first, part in zip(row[order[starts]].tolist(), parts, strict=False))


def _distinct(which: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Number of different n-grams per value of `which`."""
    return np.bincount(np.unique(np.stack([which, gram], axis=1), axis=0)[:, 0])
