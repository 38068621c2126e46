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
from collections.abc import Iterator

import numba
import numpy as np
import pyarrow as pa
from rensa import RMinHash  # type: ignore[attr-defined]  # a compiled module without stubs

from pipelines.config.curation import NearDuplicateSettings
from pipelines.curation.deduplication import in_order
from pipelines.curation.normalise import without_wrappers
from pipelines.curation.steps import Apply, Batch, Decided, Inputs, Rows, label, preference
from pipelines.curation.words import Words

NEIGHBOURS = 32
"""In a bucket of more rows than this a row is compared with the preceding and the first so many."""
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
    if known:
        sketch = pa.concat_tables([sketched(settings, Batch.of(known)), sketch])
    shingles = Shingles(sketch, np.concatenate([np.arange(len(known)), order + len(known)]))
    del sketch
    later, earlier = shingles.pairs(equal_numbers=settings.numbers == "equal")
    similarity = shingles.jaccard(later, earlier)
    close = (similarity >= settings.threshold) & (later >= len(known))
    goes: dict[int, tuple[int, float]] = {}
    for one, other, share in zip(later[close].tolist(), earlier[close].tolist(), similarity[close].tolist(), strict=True):
        if one not in goes and other not in goes:
            goes[one] = other, share
    row_of = numbers[order]
    stays = sorted({other for other, _ in goes.values() if other >= len(known)})
    there = rows.take(row_of[np.array(stays, np.int64) - len(known)]) if stays else {}
    named = {other: label(known[other] if other < len(known) else there[row_of[other - len(known)]]) for other, _ in goes.values()}
    return Decided(
        {
            int(row_of[one - len(known)]): ("near_known" if other < len(known) else "near_duplicate", f"Jaccard {share:.3f} with {named[other]}")
            for one, (other, share) in goes.items()
        }
    )


def sketched(settings: NearDuplicateSettings, batch: Batch) -> pa.Table:
    """row; the hashes of a row's distinct shingles, sorted; one key per band of their signature; a hash of the prompt's numbers."""
    texts = without_wrappers(batch.table.column("prompt"))
    owner, hashes = Words(texts).grams(settings.shingle)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(texts)))])
    hashes, offsets = _distinct(hashes, offsets)
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
    """Texts as the sets of their shingles, numbered in the order in which `order` takes the rows of what `sketched` says of them."""

    def __init__(self, sketch: pa.Table, order: np.ndarray) -> None:
        shingles = sketch.column("shingles").combine_chunks()
        self._hashes, offsets = shingles.values.to_numpy(), shingles.offsets.to_numpy()
        self._starts, self._ends = offsets[:-1][order], offsets[1:][order]
        bands = sketch.column("bands").combine_chunks()
        self._bands = bands.flatten().to_numpy().reshape(len(bands), bands.type.list_size)
        self._order = order
        self._numbers = sketch.column("numbers").to_numpy()[order]

    def of(self, text: int) -> np.ndarray:
        """Sorted hashes of one text."""
        return self._hashes[self._starts[text] : self._ends[text]]

    def jaccard(self, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Shared shingles / all shingles of both, for each pair."""
        return _jaccard(self._hashes, self._starts, self._ends, ones, others)

    def pairs(self, *, equal_numbers: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(later, earlier) texts that share a band and, if asked for, hold equal numbers; by later, then earlier, each once.

        A text without shingles is in none. Of a bucket of many rows each is compared with the preceding and the first NEIGHBOURS.
        """
        full = np.flatnonzero(self._ends > self._starts)
        found = [np.empty(0, np.int64)]
        for band in range(self._bands.shape[1]):
            keys = self._bands[:, band][self._order[full]]
            order = np.argsort(keys, kind="stable")
            for later, earlier in _within_buckets(keys[order]):
                one, other = full[order[later]], full[order[earlier]]
                if equal_numbers:
                    same = self._numbers[one] == self._numbers[other]
                    one, other = one[same], other[same]
                found.append(one * _CODE + other)
        return np.divmod(np.unique(np.concatenate(found)), _CODE)


def _within_buckets(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(later, earlier) places of sorted keys that are equal: the preceding NEIGHBOURS of each, then the first so many of its bucket."""
    places = np.arange(len(keys))
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else places
    first = np.repeat(starts, np.diff(np.append(starts, len(keys))))
    for step in range(1, NEIGHBOURS + 1):
        later = places[places - first >= step]
        if not len(later):
            return
        yield later, later - step
    for step in range(NEIGHBOURS):
        later = places[places - first > step + NEIGHBOURS]
        yield later, first[later] + step


def _numbers(text: str) -> list[str]:
    return sorted(_NUMBER.findall(text))


@numba.njit(cache=True, nogil=True)
def _distinct(hashes, offsets):  # noqa: ANN001, ANN202
    """Each stretch between offsets sorted and without repeats, in place; what is left, and its offsets."""
    ends = np.zeros_like(offsets)
    count = 0
    for text in range(len(offsets) - 1):
        part = np.sort(hashes[offsets[text] : offsets[text + 1]])
        for i in range(len(part)):
            if i == 0 or part[i] != part[i - 1]:
                hashes[count] = part[i]
                count += 1
        ends[text + 1] = count
    return hashes[:count], ends


@numba.njit(cache=True, nogil=True)
def _jaccard(hashes, starts, ends, ones, others):  # noqa: ANN001, ANN202
    similarity = np.zeros(len(ones))
    for pair in range(len(ones)):
        i, j, shared = starts[ones[pair]], starts[others[pair]], 0
        first, second = ends[ones[pair]], ends[others[pair]]
        total = first - i + second - j
        while i < first and j < second:
            if hashes[i] == hashes[j]:
                shared += 1
                i += 1
                j += 1
            elif hashes[i] < hashes[j]:
                i += 1
            else:
                j += 1
        similarity[pair] = shared / max(total - shared, 1)
    return similarity
