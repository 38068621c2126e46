r"""Texts as words, and the runs of words that two collections share, fast enough to compare millions of rows.

A word is a run of letters or a run of digits; case, punctuation, LaTeX's layout commands and the drawing code of figures
do not count, so `$\left( 3,\,x \right)$` and `(3, x)` are the same two words, and two figures are not one problem.
`words_of` says so for one text, in a few lines; `Words` does the same for a batch in one pass over the bytes of an Arrow column, compiled by
Numba, and keeps a 64-bit hash of each word. The hash of a run of words is a polynomial of theirs modulo 2^64, which rolls from one run to
the next (Karp and Rabin 1987). Equal hashes are confirmed on the words themselves before anything is concluded.
"""

from __future__ import annotations

import copy
import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # its functions are made when it is imported
_COMMANDS = (
    *("left", "right", "big", "bigl", "bigr", "bigg", "biggl", "biggr", "quad", "qquad", "displaystyle", "textstyle", "text", "textbf"),
    *("textit", "textrm", "mathrm", "mathbf", "mathit", "mbox", "operatorname", "limits", "nolimits", "circ", "degree"),
)
LAYOUT = re.compile(rf"\\(?:{'|'.join(_COMMANDS)})(?![a-z])|\\[dt](?=frac)")
THOUSANDS = re.compile(r"(?<=[0-9]),(?:\\!)?(?=[0-9]{3}(?![0-9]))|\{,\}(?=[0-9]{3}(?![0-9]))")
FIGURE = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.DOTALL)
_FOREIGN_MARK = re.compile(r"[^\w\x00-\x7f]")
_WORD = re.compile(r"[a-z\x80-\U0010ffff]+|[0-9]+")
_FILTER_BITS = 20
_U = np.uint64
_MULTIPLIER, _BASIS, _PRIME = _U(0x9E3779B97F4A7C15), _U(0xCBF29CE484222325), _U(0x100000001B3)
_INVERSE = _U(pow(0x9E3779B97F4A7C15, -1, 2**64))
_LOWER = np.array([c + 32 if 65 <= c <= 90 else c for c in range(256)], np.uint8)
_KIND = np.array([2 if 48 <= c <= 57 else 1 if chr(c).isalpha() or c >= 128 else 0 for c in range(256)], np.uint8)
"""1 a letter, 2 a digit, 0 neither. All that is left beyond ASCII are letters."""


def words_of(text: str) -> list[str]:
    """The words of one text."""
    return _WORD.findall(THOUSANDS.sub("", LAYOUT.sub(" ", FIGURE.sub(" ", _plain(text)))))


def _plain(text: str) -> str:
    """Lower case; compatibility characters as plain ones; beyond ASCII only letters and digits."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _FOREIGN_MARK.sub(" ", folded if unicodedata.is_normalized("NFKC", folded) else unicodedata.normalize("NFKC", folded))


class Words:
    """The words of a batch of texts: `hashes` of all in one array, text i holding those from starts[i] to starts[i + 1]."""

    def __init__(self, texts: Sequence[str] | pa.Array | pa.ChunkedArray) -> None:
        column = texts if isinstance(texts, pa.Array | pa.ChunkedArray) else pa.array(texts, pa.large_string())
        self._texts = _ascii_or_plain(column)
        data, offsets = _buffers(self._texts)
        size = len(data)
        hashes, numerals, paragraphs = np.empty(size, _U), np.empty(size, np.bool_), np.empty(size, np.bool_)
        self.starts = np.zeros(len(offsets), np.int64)
        count = _scan(data, offsets, _layout(), hashes, numerals, paragraphs, self.starts)
        self.hashes, self._numerals, self._paragraphs = hashes[:count].copy(), numerals[:count].copy(), paragraphs[:count].copy()

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of words per text."""
        return np.diff(self.starts)

    def of(self, text: int) -> list[str]:
        """The words of one text, those without numbers too."""
        return words_of(self._texts[text].as_py())

    def without_numbers(self, spelt: frozenset[str]) -> Words:
        """The same texts without numerals and the words `spelt`: with `four` among these, `3 nuts` and `four nuts` are one word each."""
        words = copy.copy(self)
        stays = ~(self._numerals | np.isin(self.hashes, _vocabulary(spelt)))
        words.hashes, words._numerals, words._paragraphs = self.hashes[stays], self._numerals[stays], self._paragraphs[stays]
        words.starts = np.concatenate([[0], np.cumsum(stays)])[self.starts]
        return words

    def wholes(self) -> np.ndarray:
        """One hash per text."""
        return _spans(self.hashes, self.starts[:-1], self.starts[1:])

    def paragraphs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(text, number of words, hash) of each paragraph (an empty line parts two) of the texts that have several."""
        begin = np.flatnonzero(self._paragraphs)
        end = np.append(begin[1:], len(self.hashes))
        text = np.searchsorted(self.starts, begin, side="right") - 1
        several = np.bincount(text, minlength=len(self))[text] > 1
        begin, end, text = begin[several], end[several], text[several]
        return text, end - begin, _spans(self.hashes, begin, end)

    def grams(self, n: int, texts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Every n-gram of all texts, or of those numbered in `texts`: (text, hash)."""
        owners = np.arange(len(self)) if texts is None else np.asarray(texts, np.int64)
        counts = np.maximum(self.starts[owners + 1] - self.starts[owners] - n + 1, 0)
        hashes = np.empty(counts.sum(), _U)
        _roll(self.hashes, self.starts, owners, n, hashes)
        return np.repeat(owners, counts), hashes


class Grams:
    """The n-grams of indexed texts, with the texts that contain each."""

    def __init__(self, words: Words, n: int, texts: np.ndarray | None = None) -> None:
        """Index all texts of `words`, or those numbered in `texts`."""
        self.n = n
        owner, hashes = words.grams(n, texts)
        self._grams, which = np.unique(hashes, return_inverse=True)
        pairs = np.unique(np.stack([which.ravel(), owner], axis=1), axis=0)
        self._texts = pairs[:, 1]
        self._first = np.searchsorted(pairs[:, 0], np.arange(len(self._grams) + 1))
        self._filter = np.zeros(2**_FILTER_BITS, np.bool_)  # fits the processor's cache and spares most searches
        self._filter[self._grams >> _U(64 - _FILTER_BITS)] = True
        self.distinct = np.bincount(self._texts, minlength=len(words))
        """Distinct n-grams per indexed text."""

    def find(self, words: Words, texts: np.ndarray | None = None, least: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every occurrence of an indexed n-gram: (text of `words`, indexed text, n-gram), in the order of the texts.

        Texts of which a share of less than `least` of the n-grams is indexed are passed over.
        """
        looked = np.arange(len(words)) if texts is None else np.asarray(texts, np.int64)
        size = len(words.hashes)
        text, gram = np.empty(size, np.int64), np.empty(size, np.int64)
        count = _probe(words.hashes, words.starts, looked, self.n, self._filter, self._grams, least, text, gram)
        text, gram = text[:count], gram[:count]
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


@functools.cache
def _vocabulary(words: frozenset[str]) -> np.ndarray:
    return Words([" ".join(sorted(words))]).hashes


@functools.cache
def _layout() -> np.ndarray:
    """The names of layout commands as the scan hashes them."""
    names = np.empty(len(_COMMANDS), _U)
    for place, name in enumerate(_COMMANDS):
        names[place] = _name(np.frombuffer(name.encode(), np.uint8), 0, len(name))
    return names


def _ascii_or_plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The texts as one array of large strings, those beyond ASCII made plain."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array = array.cast(pa.large_string())
    foreign = pc.invert(pc.string_is_ascii(array))
    if pc.any(foreign).as_py():
        array = pc.replace_with_mask(array, foreign, pa.array([_plain(text) for text in array.filter(foreign).to_pylist()], pa.large_string()))
    return array


def _buffers(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, offsets) of an array of large strings."""
    _, offsets, data = array.buffers()
    places = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1] if offsets else np.zeros(1, np.int64)
    return np.frombuffer(data, np.uint8)[: places[-1]] if data else np.empty(0, np.uint8), places


@numba.njit(cache=True, nogil=True)
def _scan(data, offsets, layout, hashes, numerals, paragraphs, starts):  # noqa: ANN001, ANN202
    """Write hash, whether it is a numeral and whether it begins a paragraph for every word; starts per text. Returns how many words."""
    count = 0
    for text in range(len(offsets) - 1):
        starts[text] = count
        i, end = offsets[text], offsets[text + 1]
        kind, value, lines, fresh, first = 0, _BASIS, 0, True, True
        while i <= end:
            byte = _LOWER[data[i]] if i < end else np.uint8(0)
            now = _KIND[byte]
            jump = _removed(data, i, end, byte, layout) if i < end and now == 0 else 0
            if jump < 0:  # inside a number: the digits on either side are one
                i -= jump
                continue
            if now != kind:
                if kind:
                    hashes[count], numerals[count], paragraphs[count] = _scrambled(value), kind == 2, first
                    count += 1
                kind, value = now, _BASIS
                if kind:
                    first, fresh = fresh, False
            if kind:
                value = (value ^ _U(byte)) * _PRIME
            lines = lines + 1 if byte == 10 else 0
            if lines == 2:
                fresh, lines = True, 0
            i += max(jump, 1)
    starts[len(offsets) - 1] = count
    return count


@numba.njit(cache=True, nogil=True)
def _removed(data, i, end, byte, layout):  # noqa: ANN001, ANN202
    """Bytes from i on that are a figure or a layout command; below 0 those within a number; 0 for none."""
    if byte == 91 and _is(data, i, end, 91, 97, 115, 121, 93):  # [asy]
        i, start = i + 5, i
        while i < end and not (data[i] == 91 and i + 1 < end and data[i + 1] == 47 and _is(data, i + 1, end, 47, 97, 115, 121, 93)):
            i += 1
        return (i + 6 if i < end else end) - start
    if byte == 92:  # a backslash
        after = i + 1
        while after < end and _KIND[data[after]] == 1 and data[after] < 128:
            after += 1
        name = _name(data, i + 1, after)
        for known in layout:
            if known == name:
                return after - i
        letter = _LOWER[data[i + 1]] if i + 1 < end else np.uint8(0)
        return 2 if (letter == 100 or letter == 116) and _is(data, i + 2, end, 102, 114, 97, 99, 0) else 0
    if byte == 44 and i > 0 and _KIND[data[i - 1]] == 2:  # ,
        if _three(data, i + 1, end):
            return -1
        if i + 2 < end and data[i + 1] == 92 and data[i + 2] == 33 and _three(data, i + 3, end):
            return -3
    if byte == 123 and i + 2 < end and data[i + 1] == 44 and data[i + 2] == 125 and _three(data, i + 3, end):  # {,}
        return -3
    return 0


@numba.njit(cache=True, nogil=True)
def _is(data, i, end, a, b, c, d, e):  # noqa: ANN001, ANN202
    """Whether these bytes stand at i, of which a last 0 says nothing."""
    if i + (5 if e else 4) > end:
        return False
    first = _LOWER[data[i]] == a and _LOWER[data[i + 1]] == b and _LOWER[data[i + 2]] == c and _LOWER[data[i + 3]] == d
    return first and (e == 0 or data[i + 4] == e)


@numba.njit(cache=True, nogil=True)
def _three(data, i, end):  # noqa: ANN001, ANN202
    """Whether exactly three digits stand at i."""
    if i + 3 > end or _KIND[data[i]] != 2 or _KIND[data[i + 1]] != 2 or _KIND[data[i + 2]] != 2:
        return False
    return i + 3 == end or _KIND[data[i + 3]] != 2


@numba.njit(cache=True, nogil=True)
def _name(data, start, end):  # noqa: ANN001, ANN202
    value = _BASIS
    for i in range(start, end):
        value = (value ^ _U(_LOWER[data[i]])) * _PRIME
    return value


@numba.njit(cache=True, nogil=True)
def _scrambled(value):  # noqa: ANN001, ANN202
    """The finaliser of SplitMix64: without it the hash of words would be linear in their letters."""
    value = (value ^ (value >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> _U(27))) * _U(0x94D049BB133111EB)
    return value ^ (value >> _U(31))


@numba.njit(cache=True, nogil=True)
def _span(hashes, start, end):  # noqa: ANN001, ANN202
    """sum of hashes[start + k] M^k, and M^(length - 1)."""
    value, power, last = _U(0), _U(1), _U(1)
    for i in range(start, end):
        value += hashes[i] * power
        last = power
        power *= _MULTIPLIER
    return value, last


@numba.njit(cache=True, nogil=True)
def _spans(hashes, starts, ends):  # noqa: ANN001, ANN202
    values = np.empty(len(starts), np.uint64)
    for i in range(len(starts)):
        values[i] = _span(hashes, starts[i], ends[i])[0]
    return values


@numba.njit(cache=True, nogil=True)
def _roll(hashes, starts, texts, n, values):  # noqa: ANN001, ANN202
    """The hash of every n-gram of the texts."""
    count = 0
    for text in texts:
        start, end = starts[text], starts[text + 1]
        if end - start < n:
            continue
        value, last = _span(hashes, start, start + n)
        values[count] = value
        count += 1
        for i in range(start, end - n):
            value = (value - hashes[i]) * _INVERSE + hashes[i + n] * last
            values[count] = value
            count += 1


@numba.njit(cache=True, nogil=True)
def _probe(hashes, starts, texts, n, table, grams, least, text_of, gram_of):  # noqa: ANN001, ANN202
    """Write (text, number of the n-gram) for every n-gram that is in `grams`, sorted. Returns how many."""
    count = 0
    for text in texts:
        start, end = starts[text], starts[text + 1]
        if end - start < n:
            continue
        before = count
        value, last = _span(hashes, start, start + n)
        for i in range(start, end - n + 1):
            if table[value >> _U(64 - _FILTER_BITS)]:
                place = np.searchsorted(grams, value)
                if place < len(grams) and grams[place] == value:
                    text_of[count], gram_of[count] = text, place
                    count += 1
            if i < end - n:
                value = (value - hashes[i]) * _INVERSE + hashes[i + n] * last
        if count - before < least * (end - start - n + 1):
            count = before
    return count
