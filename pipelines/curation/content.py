r"""What a problem is about whatever its words: its quantities and symbols. They tell a paraphrase from another problem of the same template.

Two texts that ask the same thing in other words hold the same numbers, letters, signs and functions; two of one template hold others
in the same places. So of two texts each of which has something that the other lacks, one is not a rewriting of the other
(`Against.excess`), and a text that only adds or only leaves out may be.

    quantities   "1,200", "twenty-six", "26 hundred", \frac{3}{4}, "3/4", "0.75", "75%" and "three quarters" by their value
    symbols      letters of formulas, one by one; capitals that name points; + - = < >; functions and Greek letters

Numerals, symbols and large spelt numbers weigh 1, small spelt ones 1/2 ("two friends" comes and goes in a rewriting), everyday words for
numbers 0 ("one", "half", "twice").
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from pipelines.curation.words import FIGURE, LAYOUT, THOUSANDS

Content = dict[tuple[str, int], float]
"""(token, how often it came before) -> weight, the heaviest occurrence first; so what two texts share is what keys they share."""

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SPOKEN = {word: number for number, word in enumerate(_UNITS)} | {word: 10 * number for number, word in enumerate(_TENS, 2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_ORDINALS = ("third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4} | {f"{word}{s}": part for part, word in enumerate(_ORDINALS, 3) for s in ("", "s")}
_EVERYDAY = {"once": "1", "single": "1", "half": "1/2", "halves": "1/2", "quarter": "1/4", "quarters": "1/4", "third": "1/3", "fourth": "1/4"} | {
    "twice": "2", "double": "2", "doubled": "2", "doubles": "2", "couple": "2", "pair": "2",
    "thrice": "3", "triple": "3", "tripled": "3", "dozen": "12",
}  # fmt: skip
NUMBER_WORDS = frozenset(_SPOKEN) | frozenset(_SCALES)
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "exp", "sqrt", "gcd", "lcm"}
    | {"det", "binom", "lim", "prod", "lfloor", "lceil", "infty", "pi", "theta", "phi", "rho", "alpha", "beta", "gamma", "delta", "lambda"}
    | {"mu", "sigma", "omega", "epsilon", "tau"}
)
_OPERATORS = _FUNCTIONS | {"sum", "max", "min", "angle", "triangle", "overline", "cup", "cap"}
"""Commands that count; as bare words only those of _FUNCTIONS that are no English."""
_BARE = _FUNCTIONS - {"log", "lim", "exp", "det"}
_SIGNS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2044": "/", "\u2264": "<", "\u2265": ">", "\u2019": "'"})
_GREEK = {"\u221a": r"\sqrt ", "\u03c0": r"\pi ", "\u03b8": r"\theta ", "\u221e": r"\infty ", "\u2220": r"\angle ", "\u25b3": r"\triangle "}
_COMPARISON = re.compile(r"\\(?:([lg])(?:eq?|eqslant|t))(?![a-zA-Z])")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))|\((\d+)\)\s*/\s*\((\d+)\)")
_FORMULA = re.compile(r"\$\$(.*?)\$\$|\$((?!\s)[^$]*?)(?<!\s)\$(?!\d)|\\\[(.*?)\\\]|\\\((.*?)\\\)", re.DOTALL)
_IN_TEXT = re.compile(r"\\(?:text\w*|mbox|operatorname|mathrm|begin|end)\s*\{[^{}]*\}")
_PROSE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{4,}")
_TOKEN = re.compile(r"\\[a-zA-Z]+|\d+(?:\.\d+)?(?:/\d+(?![.\d]))?|[a-zA-Z]+|\\?%|[-+=<>]")
_OPERAND = re.compile(r"[\s{($\\]*(?:\d|\\|[a-zA-Z](?![a-zA-Z]))")
_WORDS_IN_FORMULAS = frozenset(["mod", "and", "if", "for", "or", "cm"])
_FORM = re.compile(r"(?:\bthe (?:original )?answer is (?:in|of)|\bexpress (?:your|the) (?:final )?answer)\b.{0,250}\Z", re.IGNORECASE | re.DOTALL)
"""How to write the answer, at the end of a problem: DAPO-17k asks for m + n of a fraction m/n where a benchmark asks for the fraction."""
_NOT_SYMBOLS = frozenset("aAIstmd")
"""Single letters of prose: articles, the pronoun, what an apostrophe cuts off."""


class _Token(NamedTuple):
    text: str
    start: int
    end: int
    formula: bool


def content(text: str) -> Content:
    """The quantities and symbols of a text."""
    weights: dict[str, list[float]] = defaultdict(list)
    for token, weight in _found(_plain(text)):
        weights[token].append(weight)
    return {(token, place): weight for token, all_ in weights.items() for place, weight in enumerate(sorted(all_, reverse=True))}


def without_form(text: str) -> str:
    """A problem without what its end says of the form of the answer."""
    return _FORM.sub("", text)


def signs(text: str) -> Counter[str]:
    """How many plus, minus, equality and inequality signs a text holds, those of numerals with them."""
    return Counter(token[0] for token, _ in content(text) if token[0] in "+-=<>")


class Against:
    """Indexed texts, with which the content of others is compared."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._contents = [content(text) for text in texts]
        postings: dict[tuple[str, int], list[tuple[int, float]]] = defaultdict(list)
        for number, held in enumerate(self._contents):
            for key, weight in held.items():
                postings[key].append((number, weight))
        self._postings = {key: (np.array([n for n, _ in held]), np.array([weight for _, weight in held])) for key, held in postings.items()}
        self._sizes = np.array([len(held) for held in self._contents], float)
        self._weights = np.array([sum(held.values()) for held in self._contents], float)

    def compare(self, held: Content) -> tuple[np.ndarray, np.ndarray]:
        """Of a text against each indexed one: (share, excess).

        share: what both have / what the larger has, in [0, 1]; 1 where neither has anything. excess: the smaller of the weights that
        either has and the other lacks; from 1 on something was replaced.
        """
        shared = [(*self._postings[key], weight) for key, weight in held.items() if key in self._postings]
        count, theirs, ours = (np.zeros(len(self._contents)) for _ in range(3))
        if shared:
            texts = np.concatenate([numbers for numbers, _, _ in shared])
            count = np.bincount(texts, minlength=len(count)).astype(float)
            theirs = np.bincount(texts, np.concatenate([weights for _, weights, _ in shared]), len(count))
            ours = np.bincount(texts, np.repeat([weight for _, _, weight in shared], [len(numbers) for numbers, _, _ in shared]), len(count))
        larger = np.maximum(self._sizes, len(held))
        share = np.where(larger > 0, count / np.maximum(larger, 1), 1.0)
        return share, np.minimum(self._weights - theirs, sum(held.values()) - ours)


def _plain(text: str) -> str:
    if not text.isascii():
        for character, command in _GREEK.items():
            text = text.replace(character, command)
        text = unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)
    text = _COMPARISON.sub(lambda match: "<" if match[1] == "l" else ">", FIGURE.sub(" ", text))
    text = _FRACTION.sub(lambda match: " {}/{} ".format(*(part for part in match.groups() if part)), text)
    return THOUSANDS.sub("", LAYOUT.sub(" ", _IN_TEXT.sub(" ", text)))


def _found(text: str) -> Iterator[tuple[str, float]]:
    """(token, weight) in order, each occurrence."""
    if sum(map(str.isupper, text)) > sum(map(str.islower, text)):
        text = text.lower()  # all of it is in capitals, so none of them means anything
    tokens = list(_tokens(text))
    at = 0
    while at < len(tokens):
        token = tokens[at]
        word = token.text.lower()
        spoken = None if token.formula else _spoken(tokens, at, text)
        if spoken:
            value, at = spoken
            divided, at = _percent(tokens, at)
            yield str(value / divided), 0.0 if value.numerator == 1 == divided else 0.5 if value <= 10 else 1.0
            continue
        at += 1
        if word[0].isdigit():
            number, _, below = word.partition("/")
            value: Fraction | int = int(word) if word.isdecimal() else Fraction(number) / (int(below or 1) or 1)
            if at < len(tokens) and tokens[at].text.lower() in _SCALES and not token.formula:
                value *= _SCALES[tokens[at].text.lower()]
                at += 1
            divided, at = _percent(tokens, at)
            value = value if divided == 1 else Fraction(value) / divided
            yield str(-value if _negative(token, text) else value), 1.0
        elif word[0] == "\\":
            if word[1:] in _OPERATORS:
                yield word[1:], 1.0
        elif word in _EVERYDAY and not token.formula:
            yield _EVERYDAY[word], 0.0
        elif word in (_FUNCTIONS if token.formula else _BARE):
            yield word, 1.0
        elif word.isalpha():
            if len(word) > 4:
                if token.text.isupper():
                    yield word, 1.0
            elif (token.formula and word not in _WORDS_IN_FORMULAS) or _is_name(token.text):
                yield from ((letter, 1.0) for letter in word)
        elif word in "+=<>" or (word == "-" and _minus(token, text)):
            yield word, 1.0


def _is_name(word: str) -> bool:
    """Whether a word of prose names a point, a variable or itself, as in `the letters of TARTAR`."""
    return word not in _NOT_SYMBOLS if len(word) == 1 else word.isupper()


def _tokens(text: str) -> Iterator[_Token]:
    formulas = [*_formulas(text), (len(text), len(text))]
    number = 0
    for match in _TOKEN.finditer(text):
        while formulas[number][1] <= match.start() and number < len(formulas) - 1:
            number += 1
        yield _Token(match.group(), match.start(), match.end(), formulas[number][0] <= match.start() < formulas[number][1])


def _formulas(text: str) -> Iterator[tuple[int, int]]:
    """Stretches between delimiters. `$5 and her sister $` holds words, so these dollars are money."""
    position = 0
    while match := _FORMULA.search(text, position):
        inner = next(group for group in match.groups() if group is not None)
        if match.group(2) is not None and _PROSE.search(inner):
            position = match.start() + 1
            continue
        yield match.span()
        position = match.end()


def _spoken(tokens: list[_Token], at: int, text: str) -> tuple[Fraction, int] | None:
    """The value of a number in words that begins at `at`, and the place after it: twenty-six, two hundred and fourteen, three quarters."""
    if tokens[at].text.lower() not in _SPOKEN:
        return None
    total = current = 0
    place, last = at, ""
    while place < len(tokens):
        word = tokens[place].text.lower()
        if place > at and text[tokens[place - 1].end : tokens[place].start].strip():
            break
        if word in _SPOKEN:
            kind = "ten" if word in _TENS else "unit"
            if last == "unit" or (last == "ten" and (kind == "ten" or _SPOKEN[word] > 9)):
                break
            current += _SPOKEN[word]
            last = kind
        elif word in _SCALES:
            if word == "hundred":
                current *= 100
            else:
                total, current = total + current * _SCALES[word], 0
            last = "scale"
        elif not (word == "-" and last == "ten") and not (word == "and" and last == "scale" and _says_number(tokens, place + 1)):
            break
        place += 1
    while tokens[place - 1].text in ("-", "and"):
        place -= 1
    value = Fraction(total + current)
    after = place + (place < len(tokens) and tokens[place].text == "-")
    if after < len(tokens) and tokens[after].text.lower() in _PARTS and not text[tokens[after - 1].end : tokens[after].start].strip():
        return value / _PARTS[tokens[after].text.lower()], after + 1
    return value, place


def _says_number(tokens: list[_Token], at: int) -> bool:
    return at < len(tokens) and tokens[at].text.lower() in _SPOKEN


def _percent(tokens: list[_Token], at: int) -> tuple[int, int]:
    """(100, place after the sign) at a per cent sign or word, else (1, at)."""
    says = at < len(tokens) and (tokens[at].text.endswith("%") or tokens[at].text.lower() == "percent")
    return (100, at + 1) if says else (1, at)


def _negative(token: _Token, text: str) -> bool:
    """Whether the minus before a numeral is its sign: nothing stands before it that could be subtracted from."""
    before = text[: token.start].rstrip(" {(")
    return before.endswith("-") and _is_sign(text, len(before) - 1)


def _minus(token: _Token, text: str) -> bool:
    """Whether a hyphen subtracts or negates a symbol: an operand follows, and no word precedes. The sign of a numeral belongs to the numeral."""
    if not _OPERAND.match(text, token.end):
        return False
    if _is_sign(text, token.start):
        return not re.compile(r"[\s{(]*\d").match(text, token.end)
    return token.formula or not re.search(r"[a-zA-Z]{2,}\Z", text[max(0, token.start - 8) : token.start].rstrip())


def _is_sign(text: str, at: int) -> bool:
    """Whether the hyphen at `at` has nothing on its left to subtract from; of `is -3` the spaces tell."""
    before = text[max(0, at - 8) : at]
    if not re.search(r"[\w)}\]!'|]\Z", before.rstrip()):
        return True
    return before.endswith(" ") and bool(re.search(r"[a-zA-Z]{2,}\Z", before.rstrip())) and not text[at + 1 : at + 2].isspace()
