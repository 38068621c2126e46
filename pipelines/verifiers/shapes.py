r"""The form of an answer: number, tuple, set, interval, union, matrix, list, and when two of them are the same thing.

`parse` splits an answer at its outermost brackets and separators; `equal` compares two forms and asks `same` about the leaves. Where
only the symbolic engine can tell of a leaf, `equal` is asked twice, taking it for the same and for another: if both agree, the engine
is spared.

    (1, 2)        tuple       ordered                 a set, or an interval with other brackets, is another thing
    {1, 2}        set         unordered
    [0, 1)        interval    ordered, brackets count; 0 \le x < 1 and x > 3 are intervals too
    A \cup B      union       unordered; so is x < 2 or x > 3
    1, 2 and 3    list        unordered; a list is no answer to a question with one: a hedge is wrong
    a \pm b       list        both values
    \begin{pmatrix} ... \end{pmatrix}   matrix, its rows in order
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAX_PARTS = 40
Same = Callable[[str, str], bool]


@dataclass(frozen=True)
class Shape:
    """kind: leaf, tuple, set, interval, union, list, matrix, row. edges: the brackets of an interval. text: what a leaf says."""

    kind: str
    parts: tuple[Shape, ...] = ()
    text: str = ""
    edges: str = ""


_MATRIX = re.compile(r"\\begin\{([pbBv]?matrix|array)\}(?:\{[lcr| ]*\})?((?:(?!\\begin).)*)\\end\{\1\}", re.DOTALL)
_SEPARATOR = re.compile(r"\\text\s*\{\s*(?:,?\s*(?:and|or)|,|;)\s*\}|\b(?:and|or)\b|\\(?:lor|vee|land)(?![a-z])")
_RELATION = re.compile(r"\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt)(?![a-z])|<=|>=|<|>")
_VARIABLE = re.compile(r"\\?[A-Za-z]+(?:_\{?[A-Za-z0-9]+\}?)?")
_SPACING = re.compile(r"(?<!\\)\\[,;:! ]|\\q?quad(?![a-z])|~")
_MEMBER = re.compile(r"\A\\?[A-Za-z]+\s*\\in(?![a-z])\s*")
_FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
INFINITE = ("-\\infty", "\\infty")


def parse(text: str) -> Shape:
    """The form of a cleaned answer."""
    text = _MEMBER.sub("", _SPACING.sub(" ", text).strip())
    if found := _MATRIX.fullmatch(text):
        rows = [row for row in found[2].split("\\\\") if row.strip()]
        return Shape("matrix", tuple(Shape("row", tuple(map(parse, row.split("&")))) for row in rows))
    if region := _inequality(text):
        return region
    pieces = list(split(text, ("\\cup",)))
    if len(pieces) > 1:
        parts = [parse(piece) for piece in pieces]
        return Shape("union", tuple(inner for part in parts for inner in (part.parts if part.kind == "union" else (part,))))
    pieces = split(_SEPARATOR.sub(",", text), (",", ";"))
    if len(pieces) > 1:
        parts = tuple(map(parse, pieces))
        return Shape("union" if all(part.kind in ("interval", "union") for part in parts) else "list", parts)
    if text in ("\\emptyset", "\\{\\}", "\\{ \\}"):
        return Shape("set")
    inner, edges = _bracketed(text)
    if edges:
        parts = tuple(map(parse, split(inner, (",", ";"))))
        if len(parts) == 1 and (parts[0].kind == "matrix" or (edges == "()" and parts[0].kind != "leaf")):
            return parts[0]
        if edges == "{}":
            return Shape("set", parts)
        if len(parts) == 2 and edges != "()":
            return Shape("interval", parts, edges=edges)
        if len(parts) > 1:
            return Shape("tuple", parts)
    if "\\pm" in text or "\\mp" in text:
        swapped = text.replace("\\pm", "\0").replace("\\mp", "\\pm").replace("\0", "\\mp")
        return Shape("list", tuple(Shape("leaf", text=each.replace("\\pm", "+").replace("\\mp", "-").removeprefix("+")) for each in (text, swapped)))
    return Shape("leaf", text=text)


def split(text: str, separators: tuple[str, ...]) -> list[str]:
    """`text` at the separators that stand in no bracket; empty pieces are left out."""
    pieces, depth, start, i = [], 0, 0, 0
    while i < len(text):
        character = text[i]
        depth += (character in "([{" or text.startswith("\\begin", i)) - (character in ")]}" or text.startswith("\\end", i))
        if depth <= 0 and (found := next((s for s in separators if text.startswith(s, i)), None)):
            pieces.append(text[start:i])
            i = start = i + len(found)
            continue
        i += 2 if character == "\\" and text[i + 1 : i + 2] not in ("{", "}", "") else 1
    return [piece.strip() for piece in [*pieces, text[start:]] if piece.strip()]


def _bracketed(text: str) -> tuple[str, str]:
    """(inside, "()", "[]", "[)", "(]" or "{}") of a text that is one bracket, else ("", "")."""
    text = re.sub(r"\\(?:left|right)(?![a-z])\s*", "", text).strip()
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


def _inequality(text: str) -> Shape | None:
    """`a <= x < b`, `x > 3`, `3 > x` as an interval; None for anything else."""
    parts = _RELATION.split(text)
    signs = [_sign(found) for found in _RELATION.findall(text)]
    if len(parts) not in (2, 3) or any("=" in part or "," in part or _SEPARATOR.search(part) for part in parts):
        return None
    parts = [part.strip() for part in parts]
    if len(parts) == 3 and signs[0][0] == signs[1][0] and _VARIABLE.fullmatch(parts[1]):
        low, high = (0, 1) if signs[0][0] == "<" else (1, 0)
        edges = ("[" if "=" in signs[low] else "(") + ("]" if "=" in signs[high] else ")")
        return Shape("interval", (Shape("leaf", text=parts[2 * low]), Shape("leaf", text=parts[2 * high])), parts[1], edges)
    if len(parts) != 2:
        return None
    left, right = parts
    if _VARIABLE.fullmatch(right) and not _VARIABLE.fullmatch(left):
        left, right, signs = right, left, [_FLIP[signs[0]]]
    if not _VARIABLE.fullmatch(left) or not right or re.search(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])", right):
        return None
    closed = "=" in signs[0]
    if signs[0][0] == "<":
        return Shape("interval", (Shape("leaf", text=INFINITE[0]), Shape("leaf", text=right)), left, "(]" if closed else "()")
    return Shape("interval", (Shape("leaf", text=right), Shape("leaf", text=INFINITE[1])), left, "[)" if closed else "()")


def _sign(found: str) -> str:
    if found in _FLIP:
        return found
    return ("<" if found.startswith("\\l") else ">") + ("" if found in ("\\lt", "\\gt") else "=")


def leaves(gold: Shape, answer: Shape) -> Iterator[tuple[str, str]]:
    """Every pair of leaves that `equal` may ask about."""
    if gold.kind == answer.kind == "leaf":
        yield gold.text, answer.text
    elif max(len(gold.parts), len(answer.parts)) <= MAX_PARTS:
        ordered = gold.kind in ("tuple", "interval", "matrix", "row") and answer.kind in ("tuple", "interval", "matrix", "row", "list")
        for i, part in enumerate(gold.parts):
            for j, other in enumerate(answer.parts):
                if i == j or not ordered:
                    yield from leaves(part, other)


def equal(gold: Shape, answer: Shape, same: Same) -> bool:
    """Whether `answer` is the same thing as `gold`, given what `same` says of their leaves."""
    if gold.kind == answer.kind == "leaf":
        return same(gold.text, answer.text)
    if len(gold.parts) != len(answer.parts) or len(gold.parts) > MAX_PARTS:
        return False
    kinds = {gold.kind, answer.kind}
    if kinds == {"interval"} and _edges(gold) != _edges(answer):
        return False
    if kinds == {"tuple", "interval"}:
        interval = gold if gold.kind == "interval" else answer
        if _edges(interval) != "()":
            return False
    if (len(kinds) == 1 and gold.kind in ("tuple", "interval", "matrix", "row")) or kinds in ({"tuple", "interval"}, {"tuple", "list"}):
        return all(equal(part, other, same) for part, other in zip(gold.parts, answer.parts, strict=True))
    if len(kinds) == 1 or kinds in ({"set", "list"}, {"union", "list"}):
        return _matched(gold.parts, answer.parts, same)
    return False


def _edges(interval: Shape) -> str:
    """Brackets with those at infinity open."""
    low, high = (part.text.replace(" ", "") in (*INFINITE, "+\\infty") for part in interval.parts)
    return ("(" if low else interval.edges[0]) + (")" if high else interval.edges[1])


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
