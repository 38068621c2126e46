r"""The form of an answer: number, tuple, set, interval, union, matrix, list, and when two of them are the same thing.

`reading.parse` makes a Shape of a text; `equal` compares two and asks `same` about the leaves. Where only the symbolic engine can tell of
a leaf, `equal` is asked twice, taking it for the same and for another: if both agree, the engine is spared.

    tuple       (1, 2)                          ordered; a set, or an interval with other brackets, is another thing
    set         {1, 2}                          unordered
    interval    [0, 1), [0, 1[, 0 \le x < 1     ordered, brackets count
    union       A \cup B, x < 2 or x > 3        unordered
    except      x \ne 1, \mathbb{R} \setminus \{1\}, (-\infty, 1) \cup (1, \infty): all reals but these
    list        1, 2 and 3, a \pm b             unordered; a list is no answer to a question with one: a hedge is wrong
    record      x = 1, y = 2; (x, y) = (1, 2)   values by name, so that the order of statements says nothing
    either      x = 1 or y = 2                  of an answer: equal to the set {x = 1, y = 2} and nothing else
    family      \frac{\pi}{4} + k\pi, k \in \mathbb{Z}; \{2k \mid k \in \mathbb{Z}\}   what is counted, and the condition
    chain       2 + 2 = 4                       of an answer: every side must be the gold
    matrix      \begin{pmatrix} ... \end{pmatrix}, its rows in order
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAX_PARTS = 40
INFINITE = ("-\\infty", "\\infty")
ORDERED = ("tuple", "interval", "matrix", "row", "record", "family")
_OPENING, _CLOSING = ("(", "[", "{", "\\begin"), (")", "]", "}", "\\end")
IN_ORDER = ({"tuple", "interval"}, {"tuple", "list"}, {"record", "tuple"}, {"record", "list"})
"""Two kinds that may be the same thing part by part."""
Same = Callable[[str, str], bool]
_SIZING = re.compile(r"\\(?:left|right)(?![a-z])\s*")


@dataclass(frozen=True)
class Shape:
    """kind: see above, or leaf, row. edges: the brackets of an interval, braces of a record. text: what a leaf says, the names of a record, the
    one name whose values a list has."""

    kind: str
    parts: tuple[Shape, ...] = ()
    text: str = ""
    edges: str = ""


def leaf(text: str) -> Shape:
    return Shape("leaf", text=text.strip())


def interval(low: str, high: str, edges: str) -> Shape:
    return Shape("interval", (leaf(low), leaf(high)), edges=edges)


REALS = interval(*INFINITE, "()")


def split(text: str, separators: tuple[str, ...]) -> list[str]:
    """`text` at the separators that stand in no bracket; empty pieces are left out."""
    if not any(separator in text for separator in separators):
        return [text.strip()] if text.strip() else []
    pieces, depth, start = [], 0, 0
    for found in _marks(separators).finditer(text):
        mark = found[0]
        depth += (mark in _OPENING) - (mark in _CLOSING)
        if depth <= 0 and mark in separators:
            pieces.append(text[start : found.start()])
            start = found.end()
    return [piece.strip() for piece in [*pieces, text[start:]] if piece.strip()]


@functools.cache
def _marks(separators: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join([*map(re.escape, separators), r"\\begin|\\end|\\[^{}]|[()\[\]{}]"]), re.DOTALL)


def bracketed(text: str) -> tuple[str, str]:
    r"""(inside, "()", "[]", "[)", "(]" or "{}") of a text that is one bracket, else ("", "")."""
    text = _SIZING.sub("", text).strip()
    if text.startswith("\\{") and text.endswith("\\}"):
        inner, edges = text[2:-2], "{}"
    elif len(text) > 1 and text[0] in "([" and text[-1] in ")]":
        inner, edges = text[1:-1], text[0] + text[-1]
    elif text.startswith("{") and text.endswith("}") and "," in text:
        inner, edges = text[1:-1], "{}"
    else:
        return "", ""
    depth = 0
    for character in inner:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return "", ""
    return (inner, edges) if depth == 0 else ("", "")


def texts(shape: Shape) -> Iterator[str]:
    """What every leaf says."""
    if shape.kind == "leaf":
        yield shape.text
    for part in shape.parts:
        yield from texts(part)


def mapped(shape: Shape, change: Callable[[str], Shape]) -> Shape:
    """`shape` with every leaf replaced by what `change` makes of its text."""
    if shape.kind == "leaf":
        return change(shape.text)
    return Shape(shape.kind, tuple(mapped(part, change) for part in shape.parts), shape.text, shape.edges)


def leaves(gold: Shape, answer: Shape) -> Iterator[tuple[str, str]]:
    """Every pair of leaves that `equal` may ask about."""
    if answer.kind == "chain":
        for part in answer.parts:
            yield from leaves(gold, part)
    elif gold.kind == answer.kind == "leaf":
        yield gold.text, answer.text
    elif gold.kind == "record" and answer.kind in ("record", "either"):
        for part, other in zip(gold.parts, by_name(gold, answer), strict=False):
            yield from leaves(part, other)
    elif max(len(gold.parts), len(answer.parts)) <= MAX_PARTS:
        ordered = gold.kind in ORDERED and answer.kind in (*ORDERED, "list")
        for i, part in enumerate(gold.parts):
            for j, other in enumerate(answer.parts):
                if i == j or not ordered:
                    yield from leaves(part, other)


def equal(gold: Shape, answer: Shape, same: Same) -> bool:
    """Whether `answer` is the same thing as `gold`, given what `same` says of their leaves."""
    if answer.kind == "chain":
        return all(equal(gold, part, same) for part in answer.parts)
    if gold.kind == answer.kind == "leaf":
        return same(gold.text, answer.text)
    if len(gold.parts) != len(answer.parts) or len(gold.parts) > MAX_PARTS:
        return False
    kinds = {gold.kind, answer.kind}
    if kinds == {"interval"} and _edges(gold) != _edges(answer):
        return False
    if kinds == {"record"} or (gold.edges == "{}" and answer.kind == "either"):
        named = by_name(gold, answer)
        return bool(named) and all(equal(part, other, same) for part, other in zip(gold.parts, named, strict=True))
    if kinds == {"record", "list"} and (gold if gold.kind == "list" else answer).text:  # two values of one name
        return False
    if kinds == {"tuple", "interval"} and _edges(gold if gold.kind == "interval" else answer) != "()":
        return False
    if (len(kinds) == 1 and gold.kind in ORDERED) or kinds in IN_ORDER:
        return all(equal(part, other, same) for part, other in zip(gold.parts, answer.parts, strict=True))
    if len(kinds) == 1 or kinds in ({"set", "list"}, {"union", "list"}):
        return _matched(gold.parts, answer.parts, same)
    return False


def by_name(gold: Shape, answer: Shape) -> tuple[Shape, ...]:
    """The values of one record in the order of another's names; none where their names differ."""
    values = dict(zip(answer.text.split("\0"), answer.parts, strict=True))
    names = gold.text.split("\0")
    return tuple(values[name] for name in names) if set(names) == set(values) else ()


def _edges(of: Shape) -> str:
    """Brackets with those at infinity open."""
    low, high = (part.text.replace(" ", "") in (*INFINITE, "+\\infty") for part in of.parts)
    return ("(" if low else of.edges[0]) + (")" if high else of.edges[1])


def _matched(gold: tuple[Shape, ...], answer: tuple[Shape, ...], same: Same) -> bool:
    """Whether every part of one finds a partner of its own in the other (Kuhn's augmenting paths)."""
    partner: dict[int, int] = {}

    def place(i: int, tried: set[int]) -> bool:
        for j, other in enumerate(answer):
            if j not in tried and equal(gold[i], other, same):
                tried.add(j)
                if j not in partner or place(partner[j], tried):
                    partner[j] = i
                    return True
        return False

    return all(place(i, set()) for i in range(len(gold)))
