r"""Values with names: `x = 1, y = 2`, `(x, y) = (1, 2)`, `x = 1 or x = 2`; and sides of an equality that say one thing.

Statements about different names are a record, whatever their order; of one name they are a list of its values. Beside values without
names a record stands in the order of the alphabet where its names are neighbours there (x, y), and as it is written elsewhere (r, h).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from pipelines.verifiers.conditions import SEPARATOR
from pipelines.verifiers.estimate import estimate
from pipelines.verifiers.shapes import Shape, bracketed, leaf, split

_NAME = r"(?!\\(?:pi|infty)(?![a-z]))(?:\\(?:text|mathrm)\s*\{[A-Za-z ]+\}|\\?[A-Za-z]+)(?:_(?:\{[^{}]*\}|\w))?'*(?:\([^()=]*\))?"
_STATEMENT = re.compile(rf"({_NAME})\s*(?::=|=)\s*(\S.*)", re.DOTALL)
_TUPLE = re.compile(r"(\([A-Za-z](?:\s*,\s*[A-Za-z])+\))\s*=\s*(\S.*)", re.DOTALL)
_SUBSCRIPT = re.compile(r"_\{?[^{}]*\}?")
_ROOTS = ("x", "t", "z", "r", "\\lambda", "\\theta")
"""Names whose subscripts count solutions, in no order."""
_COMMAND = re.compile(r"\\(?:text|mathrm)\s*\{[^{}]*\}|\\[A-Za-z]+")
_CASES = re.compile(
    r"(?:\\left\s*\\\{)?\s*\\begin\{(cases|array|aligned|align\*?)\}(?:\{[lcr| ]*\})?(.*)\\end\{\1\}\s*(?:\\right\s*\.)?", re.DOTALL
)
NEAR = 0.05
"""How far a rounded value may be from what it rounds, as a share."""


def statement(text: str) -> tuple[str, str] | None:
    """(name, value) of `x = 1`; None for anything else."""
    found = _STATEMENT.fullmatch(text.strip())
    return (re.sub(r"[{}\s]", "", found[1]), found[2].rstrip(" .")) if found else None


def several(text: str) -> bool:
    """Whether there are statements about more than one name, or one about a tuple of names."""
    pieces = split(SEPARATOR.sub(",", text), (",", ";", "\\\\"))
    return _TUPLE.match(text) is not None or sum(statement(piece) is not None for piece in pieces) > 1


def tuple_of(text: str, parse: Callable[[str], Shape]) -> Shape | None:
    """`(x, y) = (1, 2)` as a record."""
    found = _TUPLE.fullmatch(text)
    value = parse(found[2]) if found else None
    names = [name.strip() for name in found[1].strip("()").split(",")] if found else []
    if value is None or value.kind not in ("tuple", "interval") or len(value.parts) != len(names) or len(set(names)) < len(names):
        return None
    return record(names, value.parts)


def gather(pieces: Sequence[str], parse: Callable[[str], Shape], joined_by_or: bool) -> Shape | None:
    """Statements as a record, or as the values of one name; None where the first piece is none."""
    said = [statement(piece) for piece in pieces]
    if said[0] is None:
        return None
    if all(each is None for each in said[1:]):
        return Shape("list", (parse(said[0][1]), *map(parse, pieces[1:]))) if len(pieces) > 1 else None
    if any(each is None for each in said):
        return None
    names, values = zip(*(each for each in said if each is not None), strict=True)
    bases = {_SUBSCRIPT.sub("", name) for name in names}
    parts = tuple(map(parse, values))
    if len(set(names)) == 1 or (len(bases) == 1 and bases <= set(_ROOTS)):
        return Shape("list", parts, names[0])
    if len(set(names)) < len(names):
        return None
    return Shape("either", parts, "\0".join(names)) if joined_by_or else record(names, parts)


def record(names: Sequence[str], parts: Sequence[Shape]) -> Shape:
    ordered = sorted(zip(names, parts, strict=True), key=lambda each: each[0])
    alphabet = [ord(name) if len(name) == 1 else -1 for name, _ in ordered]
    neighbours = all(one >= 0 and other == one + 1 for one, other in pairwise(alphabet))
    if not neighbours and len({_SUBSCRIPT.sub("", name) for name in names}) > 1:
        return Shape("record", tuple(parts), "\0".join(names))
    return Shape("record", tuple(part for _, part in ordered), "\0".join(name for name, _ in ordered))


def sides(text: str, symbolic: bool, decimal: bool) -> Shape:
    r"""`x = 2 + 2 = 4` as the chain of its sides without names. Beside a gold that is not `symbolic`, sides with symbols count only where all
    have some. Of `\sqrt{2} \approx 1.41` the first counts, the second where the gold is `decimal`, and neither where that is no rounding."""
    exact, *rounded = re.split(r"\\approx(?![a-z])", text)
    parts = [part for part in split(exact, ("=",)) if not re.fullmatch(_NAME, part.strip()) or (symbolic and "=" not in exact)]
    if rounded:
        return _rounded(parts, rounded, decimal)
    if len(parts) > 1 and not symbolic:
        parts = [part for part in parts if not has_symbols(part)] or parts
    if "=" not in exact or not parts:
        return leaf(text)
    return leaf(parts[0]) if len(parts) == 1 else Shape("chain", tuple(map(leaf, parts)))


def _rounded(parts: list[str], rounded: list[str], decimal: bool) -> Shape:
    values = [estimate(part) for part in (*parts, *rounded)]
    known = [value for value in values if value is not None]
    if any(abs(one - other) > NEAR * abs(one) for one in known for other in known):
        return Shape("either", tuple(map(leaf, (*parts, *rounded))))
    return leaf(rounded[-1] if decimal or not parts else parts[0])


def has_symbols(text: str) -> bool:
    """Whether letters other than e and i stand in a text, commands aside."""
    return re.search(r"[A-Za-df-hj-zA-HJ-Z]", _COMMAND.sub("", text)) is not None


def of_cases(text: str) -> str | None:
    r"""The lines of a cases environment as a list of statements; None for anything else, such as a function by pieces."""
    found = _CASES.fullmatch(text)
    if found is None:
        return None
    lines = [line.replace("&", "").strip().rstrip(".,;") for line in found[2].split("\\\\")]
    lines = [line for line in lines if line]
    return ", ".join(lines) if lines and all(statement(line) for line in lines) else None


def in_braces(text: str, parse: Callable[[str], Shape]) -> Shape | None:
    """`{x = 1, y = 2}` as a record; None for anything else."""
    inner, edges = bracketed(text)
    shape = parse(inner) if edges == "{}" and several(inner) else None
    return Shape("record", shape.parts, shape.text, "{}") if shape is not None and shape.kind == "record" else None
