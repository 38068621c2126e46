r"""Texts as words, and the runs of words that two collections share, fast enough to compare millions of rows.

A word is a run of letters or a run of digits; case, punctuation, LaTeX's layout commands and the drawing code of figures
do not count, so `$\left( 3,\,x \right)$` and `(3, x)` are the same two words, and two figures are not one problem.

Everything is a window of a polynomial hash modulo 2^64, computed for a whole batch by a few vector operations (Karp and Rabin 1987):

    prefix_i = sum_{j<i} x_j M^j        hash(start, end) = (prefix_end - prefix_start) M^-start

over bytes a window is a word; over (scrambled) words it is an n-gram or a whole text. Equal hashes are confirmed on the
words themselves before anything is concluded.
"""

from __future__ import annotations

import copy
import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

LAYOUT = re.compile(
    r"\\(?:left|right|bigg?[lr]?|quad|qquad|displaystyle|textstyle|text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox|operatorname|limits|nolimits|circ|degree)(?![a-z])"
    r"|\\[dt](?=frac)"
)
THOUSANDS = re.compile(r",\\?!?(?<=\d.)(?=\d{3}(?!\d))|\{,\}(?=\d{3}(?!\d))")
FIGURE = re.compile(r"\[asy\][^\0]*?(?:\[/asy\]|\Z|(?=\0))")
_FOREIGN_MARK = re.compile(r"[^\w\x00-\x7f]")
_GAP = "\0"
_LETTER, _DIGIT = 1, 2
_KIND = np.array([_DIGIT if 48 <= c < 58 else _LETTER if 97 <= c < 123 or c >= 128 else 0 for c in range(256)], np.uint8)
_MULTIPLIER = 0x9E3779B97F4A7C15
_INVERSE = pow(_MULTIPLIER, -1, 2**64)
_FILTER_BITS = 20


class Words:
    """The words of a batch of texts: `hashes` of all in one array, text i holding those from starts[i] to starts[i + 1]."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._bytes = _cleaned(texts).encode()
        data = np.frombuffer(self._bytes, np.uint8)
        kind = np.concatenate([[0], _KIND[data], [0]])
        edges = np.flatnonzero(np.diff(kind))
        self._begin, self._end = edges[kind[edges + 1] > 0], edges[kind[edges] > 0]
        self.hashes = _scrambled(Windows(data.astype(np.uint64) + np.uint64(1)).hashes(self._begin, self._end))
        gaps = np.flatnonzero(data == 0)
        self.starts = np.concatenate([[0], np.searchsorted(self._begin, gaps), [len(self._begin)]])[: len(texts) + 1]

    @property
    def lengths(self) -> np.ndarray:
        """Number of words per text."""
        return np.diff(self.starts)

    def of(self, text: int) -> list[str]:
        """The words of one text."""
        span = range(self.starts[text], self.starts[text + 1])
        return [self._bytes[self._begin[i] : self._end[i]].decode() for i in span]

    def without_numbers(self, spelt: frozenset[str]) -> Words:
        """The same texts without numerals and the words `spelt`: with `four` among these, `3 nuts` and `four nuts` are one word each."""
        words = copy.copy(self)
        hashes, some = _vocabulary(spelt)
        number = _KIND[np.frombuffer(self._bytes, np.uint8)[self._begin]] == _DIGIT
        maybe = some[_slot(self.hashes)]
        number[maybe] |= np.isin(self.hashes[maybe], hashes)
        words.hashes, words._begin, words._end = self.hashes[~number], self._begin[~number], self._end[~number]
        words.starts = np.concatenate([[0], np.cumsum(~number)])[self.starts]
        return words

    def wholes(self) -> np.ndarray:
        """One hash per text."""
        return Windows(self.hashes).hashes(self.starts[:-1], self.starts[1:])

    def grams(self, n: int, texts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every n-gram of all texts, or of those numbered in `texts`: (text, position in the text, hash)."""
        owners = np.arange(len(self.starts) - 1) if texts is None else np.asarray(texts, np.int64)
        counts = np.maximum(self.starts[owners + 1] - self.starts[owners] - n + 1, 0)
        owner = np.repeat(owners, counts)
        position = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        at = self.starts[owner] + position
        return owner, position, Windows(self.hashes).hashes(at, at + n)


@functools.cache
def _vocabulary(words: frozenset[str]) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of words, and a filter that most others do not pass."""
    hashes = Words([" ".join(sorted(words))]).hashes
    return hashes, _filter(hashes)


class Windows:
    """Hashes of stretches of a sequence of 64-bit numbers."""

    def __init__(self, values: np.ndarray) -> None:
        powers = _powers(_MULTIPLIER, len(values))
        self._prefix = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * powers)])

    def hashes(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return (self._prefix[end] - self._prefix[start]) * _powers(_INVERSE, len(self._prefix))[start]


class Grams:
    """The n-grams of indexed texts, with the texts that contain each."""

    def __init__(self, words: Words, n: int, texts: np.ndarray | None = None) -> None:
        """Index all texts of `words`, or those numbered in `texts`."""
        self.n = n
        owner, _, hashes = words.grams(n, texts)
        self._grams, which = np.unique(hashes, return_inverse=True)
        pairs = np.unique(np.stack([which.ravel(), owner], axis=1), axis=0)
        self._texts = pairs[:, 1]
        self._first = np.searchsorted(pairs[:, 0], np.arange(len(self._grams) + 1))
        self._filter = _filter(self._grams)
        self.distinct = np.bincount(self._texts, minlength=len(words.starts) - 1)
        """Distinct n-grams per indexed text."""

    def find(self, words: Words, texts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every occurrence of an indexed n-gram: (text of `words`, indexed text, n-gram), in the order of the texts."""
        text, _, hashes = words.grams(self.n, texts)
        maybe = self._filter[_slot(hashes)]
        text, hashes = text[maybe], hashes[maybe]
        gram = np.searchsorted(self._grams, hashes)
        found = gram < len(self._grams)
        found[found] = self._grams[gram[found]] == hashes[found]
        text, gram = text[found], gram[found]
        owners = self._first[gram + 1] - self._first[gram]
        within = np.arange(owners.sum()) - np.repeat(np.cumsum(owners) - owners, owners)
        return np.repeat(text, owners), self._texts[np.repeat(self._first[gram], owners) + within], np.repeat(gram, owners)


def shared_span(one: Sequence[str], position: int, other: Sequence[str], n: int) -> tuple[int, int]:
    """Start and end in `one` of the run of equal words round one[position : position + n] and its first occurrence in `other`."""
    gram = list(one[position : position + n])
    at = next(i for i in range(len(other) - n + 1) if list(other[i : i + n]) == gram) - position
    start, end = position, position + n
    while start > 0 and start + at > 0 and one[start - 1] == other[start + at - 1]:
        start -= 1
    while end < len(one) and end + at < len(other) and one[end] == other[end + at]:
        end += 1
    return start, end


def _cleaned(texts: Sequence[str]) -> str:
    """All texts in one, a NUL between two, what does not count taken out. Beyond ASCII only letters and digits are left."""
    parts = [text if text.isascii() else _FOREIGN_MARK.sub(" ", unicodedata.normalize("NFKC", text)) for text in texts]
    joined = _GAP.join(parts)
    if joined.count(_GAP) != max(len(texts) - 1, 0):
        joined = _GAP.join(part.replace(_GAP, " ") for part in parts)
    return THOUSANDS.sub("", LAYOUT.sub(" ", FIGURE.sub(" ", joined.casefold())))


def _powers(base: int, count: int) -> np.ndarray:
    """1, base, base^2, ... modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)


def _scrambled(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: without it the hash of words would be linear in their letters."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _filter(hashes: np.ndarray) -> np.ndarray:
    """True at the slot of each hash: a table that fits the processor's cache and spares most searches."""
    table = np.zeros(2**_FILTER_BITS, bool)
    table[_slot(hashes)] = True
    return table


def _slot(hashes: np.ndarray) -> np.ndarray:
    return hashes >> np.uint64(64 - _FILTER_BITS)
