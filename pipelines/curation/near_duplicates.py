"""Rows that say nearly the same, once.

MinHash signatures of word shingles (Broder 1997) in bands (LSH) propose pairs; a pair counts when the Jaccard similarity of the
shingles themselves reaches the threshold and, unless told otherwise, both hold the same numbers: "Ann has 3 nuts" and
"Ann has 4 nuts" are two problems of one template. Rows are taken in the order of preference of `exact_dedup`, and one goes
when it resembles a row that stays, so a chain of small changes is not one duplicate.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from rensa import RMinHash  # type: ignore[attr-defined]  # a compiled module without stubs

from pipelines.config.curation import NearDuplicateSettings
from pipelines.curation.deduplication import in_order
from pipelines.curation.normalise import without_wrappers
from pipelines.curation.steps import Apply, Batch, Decided, Inputs, Rows, label, preference
from pipelines.curation.words import Words

NEIGHBOURS = 32
"""In a bucket of more rows than this a row is compared with the first and the preceding so many."""
SEED = 1
_CODE = 2**31
_ODD = (np.arange(1, 513, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def near_dedup(rows: Rows, inputs: Inputs) -> Apply:
    """Drop rows that resemble one that stays, as `near_duplicate`, or one of `known`, as `near_known`.

    What it knows of a row takes about 0.6 KB: its shingles, the keys of its bands, a hash of its numbers.
    """
    settings = inputs.settings.near_duplicates
    known = sorted(inputs.known, key=preference)
    sketch = rows.sketch(functools.partial(sketched, settings))
    numbers = sketch.column("row").to_numpy()
    order = in_order(numbers, rows.preferred())
    shingles = Shingles([sketched(settings, Batch.of(known)), sketch], np.concatenate([np.arange(len(known)), order + len(known)]))
    goes: dict[int, tuple[int, float]] = {}
    for later, earlier in shingles.pairs():
        if later < len(known) or later in goes or earlier in goes:
            continue
        if settings.numbers == "any" or shingles.numbers[earlier] == shingles.numbers[later]:
            similarity = shingles.jaccard(earlier, later)
            if similarity >= settings.threshold:
                goes[later] = earlier, similarity
    row_of = numbers[order]
    stays = sorted({other for other, _ in goes.values() if other >= len(known)})
    there = rows.take(row_of[np.array(stays, np.int64) - len(known)]) if stays else {}
    named = {other: label(known[other] if other < len(known) else there[row_of[other - len(known)]]) for other, _ in goes.values()}
    return Decided(
        {
            int(row_of[later - len(known)]): (
                "near_known" if other < len(known) else "near_duplicate",
                f"Jaccard {similarity:.3f} with {named[other]}",
            )
            for later, (other, similarity) in goes.items()
        }
    )


def sketched(settings: NearDuplicateSettings, batch: Batch) -> pa.Table:
    """row; the hashes of a row's distinct shingles, sorted; one key per band of their signature; a hash of the prompt's numbers."""
    texts = without_wrappers(batch.table.column("prompt"))
    owner, hashes = Words(texts).grams(settings.shingle)
    order = np.lexsort((hashes, owner))
    owner, hashes = owner[order], hashes[order]
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
    owner, hashes = owner[new], hashes[new]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(texts)))])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), settings.permutations, SEED)
    signatures = np.array(matrix.to_rows(), np.uint64).reshape(len(texts), settings.bands, settings.permutations // settings.bands)
    keys = (signatures * _ODD[: signatures.shape[2]]).sum(axis=2, dtype=np.uint64)  # equal bands have equal keys
    numbers = [int.from_bytes(hashlib.blake2b(" ".join(_numbers(text)).encode(), digest_size=8).digest()) for text in texts.to_pylist()]
    return pa.table(
        {
            "row": batch.rows,
            "shingles": pa.LargeListArray.from_arrays(offsets, hashes),
            "bands": pa.FixedSizeListArray.from_arrays(pa.array(keys.ravel()), settings.bands),
            "numbers": np.array(numbers, np.uint64),
        }
    )


class Shingles:
    """Texts as the sets of their shingles, numbered in the order in which `order` takes the rows of the tables."""

    def __init__(self, tables: Sequence[pa.Table], order: np.ndarray) -> None:
        chunks = [table.column("shingles").combine_chunks() for table in tables]
        self._hashes = np.concatenate([chunk.flatten().to_numpy() for chunk in chunks])
        counts = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks])
        starts = np.concatenate([[0], np.cumsum(counts)])
        self._starts, self._counts = starts[:-1][order], counts[order]
        bands = [table.column("bands").combine_chunks() for table in tables]
        self._bands = [keys.flatten().to_numpy().reshape(len(keys), keys.type.list_size) for keys in bands]
        self._order = order
        self.numbers = np.concatenate([table.column("numbers").to_numpy() for table in tables])[order]
        """A hash of the numbers of each text."""

    def of(self, text: int) -> np.ndarray:
        """Sorted hashes of one text."""
        return self._hashes[self._starts[text] : self._starts[text] + self._counts[text]]

    def jaccard(self, one: int, other: int) -> float:
        """Shared shingles / all shingles of both."""
        first, second = self.of(one), self.of(other)
        shared = len(np.intersect1d(first, second, assume_unique=True))
        return shared / max(len(first) + len(second) - shared, 1)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(later, earlier) texts that share a band, by later, then earlier, each once. A text without shingles is in none."""
        full = np.flatnonzero(self._counts)
        found = [np.empty(0, np.int64)]
        for band in range(self._bands[0].shape[1]):
            keys = np.concatenate([keys[:, band] for keys in self._bands])[self._order][full]
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
