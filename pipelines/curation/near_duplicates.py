"""Rows that say nearly the same, once.

MinHash signatures of word shingles (Broder 1997) in bands (LSH) propose pairs; a pair counts when the Jaccard similarity of the
shingles themselves reaches the threshold and, unless told otherwise, both hold the same numbers: "Ann has 3 nuts" and
"Ann has 4 nuts" are two problems of one template. Rows are taken in the order of preference of `exact_dedup`, and one goes
when it resembles a row that stays, so a chain of small changes is not one duplicate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from rensa import RMinHash  # type: ignore[attr-defined]  # a compiled module without stubs

from pipelines.config.curation import NearDuplicateSettings
from pipelines.curation.deduplication import label, preference
from pipelines.curation.normalise import without_wrapper
from pipelines.curation.steps import Inputs
from pipelines.curation.words import Words
from pipelines.records import Dropped, Problem

BATCH = 8192
"""Rows signed at once; it bounds memory and changes no result."""
NEIGHBOURS = 32
"""In a bucket of more rows than this a row is compared with the first and the preceding so many."""
SEED = 1
_CODE = 2**31
_ODD = (np.arange(1, 513, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def near_dedup(problems: list[Problem], inputs: Inputs) -> tuple[list[Problem], list[Dropped]]:
    """Drop rows that resemble one that stays, as `near_duplicate`, or one of `known`, as `near_known`."""
    settings = inputs.settings.near_duplicates
    rows = [*sorted(inputs.known, key=preference), *sorted(problems, key=preference)]
    known = len(inputs.known)
    texts = [without_wrapper(row.prompt) for row in rows]
    shingles = Shingles(texts, settings)
    goes: dict[int, tuple[int, float]] = {}
    for later, earlier in shingles.pairs():
        if later < known or later in goes or earlier in goes:
            continue
        similarity = shingles.jaccard(earlier, later)
        if similarity >= settings.threshold and (settings.numbers == "any" or _numbers(texts[earlier]) == _numbers(texts[later])):
            goes[later] = earlier, similarity
    kept = [row for place, row in enumerate(rows) if place >= known and place not in goes]
    dropped = [
        Dropped(rows[place], "near_dedup", "near_known" if other < known else "near_duplicate", f"Jaccard {similarity:.3f} with {label(rows[other])}")
        for place, (other, similarity) in goes.items()
    ]
    return kept, dropped


class Shingles:
    """The distinct word shingles of texts, as hashes, with their signatures."""

    def __init__(self, texts: Sequence[str], settings: NearDuplicateSettings) -> None:
        parts, counts, signatures = [], [], []
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            owner, _, hashes = Words(batch).grams(settings.shingle)
            order = np.lexsort((hashes, owner))
            owner, hashes = owner[order], hashes[order]
            new = np.ones(len(hashes), bool)
            new[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
            owner, hashes = owner[new], hashes[new]
            count = np.bincount(owner, minlength=len(batch))
            offsets = np.concatenate([[0], np.cumsum(count)]).astype(np.uint64)
            matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, settings.permutations, SEED)
            parts.append(hashes)
            counts.append(count)
            signatures.append(np.array(matrix.to_rows(), np.uint64).reshape(len(batch), settings.permutations))
        self._hashes = np.concatenate(parts) if parts else np.empty(0, np.uint64)
        self._counts = np.concatenate(counts) if counts else np.empty(0, np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64)
        self._signatures = np.concatenate(signatures) if signatures else np.empty((0, settings.permutations), np.uint64)
        self._bands = settings.bands

    def of(self, text: int) -> np.ndarray:
        """Sorted hashes of one text."""
        return self._hashes[self._starts[text] : self._starts[text + 1]]

    def jaccard(self, one: int, other: int) -> float:
        """Shared shingles / all shingles of both."""
        first, second = self.of(one), self.of(other)
        shared = len(np.intersect1d(first, second, assume_unique=True))
        return shared / max(len(first) + len(second) - shared, 1)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(later, earlier) texts that share a band, by later, then earlier, each once. A text without shingles is in none."""
        full = np.flatnonzero(self._counts)
        found = [np.empty(0, np.int64)]
        for band in np.array_split(self._signatures[full], self._bands, axis=1):
            keys = (band * _ODD[: band.shape[1]]).sum(axis=1, dtype=np.uint64)  # equal bands have equal keys
            order = np.argsort(keys, kind="stable")
            starts = np.flatnonzero(np.concatenate([[True], keys[order][1:] != keys[order][:-1]]))
            sizes = np.diff(np.append(starts, len(order)))
            twos = starts[sizes == 2]
            found.append(_coded(full[order[twos + 1]], full[order[twos]]))
            found += [_within(full[order[start : start + size]]) for start, size in zip(starts, sizes, strict=True) if size > 2]
        later, earlier = np.divmod(np.unique(np.concatenate(found)), _CODE)
        yield from zip(later.tolist(), earlier.tolist(), strict=True)


def _coded(later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """A pair of places as one number."""
    return later * _CODE + earlier


def _within(rows: np.ndarray) -> np.ndarray:
    """The coded pairs of a bucket."""
    if len(rows) <= NEIGHBOURS:
        later, earlier = np.tril_indices(len(rows), -1)
        return _coded(rows[later], rows[earlier])
    places = np.arange(len(rows))
    before = [(places[step:], places[:-step]) for step in range(1, NEIGHBOURS + 1)]
    first = [(places[one + 1 :], np.full(len(rows) - one - 1, one)) for one in range(NEIGHBOURS)]
    later, earlier = (np.concatenate(column) for column in zip(*before, *first, strict=True))
    return _coded(rows[later], rows[earlier])


def _numbers(text: str) -> list[str]:
    return sorted(_NUMBER.findall(text))
