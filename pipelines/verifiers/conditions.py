r"""Sets of real numbers that a condition gives: 0 \le x < 1, |x| < 3, x \ne 1, \mathbb{R} \setminus \{1\}, real numbers except 1.

`condition` reads one of them, `meet` says what two conditions leave together. What an order of symbolic ends would decide stays open.
"""

from __future__ import annotations

import math
import re

from pipelines.verifiers.arithmetic import compare
from pipelines.verifiers.estimate import estimate
from pipelines.verifiers.notation import without_text
from pipelines.verifiers.shapes import INFINITE, MAX_PARTS, REALS, Shape, bracketed, interval, leaf, split

VARIABLE = r"\\?[A-Za-z]+(?:_\{?[A-Za-z0-9]+\}?)?"
SEPARATOR = re.compile(r"\\text\s*\{\s*(?:,?\s*(?:and|or)|,|;)\s*\}|\b(?:and|or)\b|\\(?:lor|land|vee|wedge)(?![a-z])")
RELATION = re.compile(r"\\(?:leqslant|geqslant|leqq|geqq|leq|geq|le|ge|lt|gt)(?![a-z])|<=|>=|<|>")
UNEQUAL = re.compile(r"\\neq?(?![a-z])|\\not\s*=|!=")
_ALL_REALS = r"(?:the\s+set\s+of\s+)?(?:all\s+|any\s+)?real(?:s|\s+numbers?)?(?:\s+[a-z])?"
_DOMAIN = re.compile(rf"(\\mathbb\{{[RZNQC]\}}(?:[\^_]\{{?[-+*<>=\\a-z0 ]{{1,6}}\}}?)?|{_ALL_REALS})(?!\w)", re.IGNORECASE)
_HALVES = {
    "^+": interval("0", INFINITE[1], "()"),
    "_>0": interval("0", INFINITE[1], "()"),
    "_\\ge0": interval("0", INFINITE[1], "[)"),
    "_>=0": interval("0", INFINITE[1], "[)"),
    "^-": interval(INFINITE[0], "0", "()"),
    "_<0": interval(INFINITE[0], "0", "()"),
    "_\\le0": interval(INFINITE[0], "0", "(]"),
    "_<=0": interval(INFINITE[0], "0", "(]"),
    "^*": Shape("except", (leaf("0"),)),
    "": REALS,
}
_WITHOUT = re.compile(r"\s*(?:\\(?:setminus|backslash|smallsetminus)(?![a-z])|-|\b(?:except(?:\s+for)?|excluding|other\s+than|but\s+not|without)\b)")
_LED = re.compile(rf"({VARIABLE})\s*(?:=|\\in(?![a-z]))\s*")
_NOT_IN = re.compile(rf"({VARIABLE})\s*\\not(?:in(?![a-z])|\s*\\in(?![a-z]))\s*")
_MODULUS = re.compile(rf"\|\s*{VARIABLE}\s*\|")
_BARS = re.compile(r"\\(?:left|right|middle)?\s*\||\\[lr]vert(?![a-z])")
_LETTER = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])")
_FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def condition(text: str) -> Shape | None:
    """The set of reals that one condition or name describes, as an interval, union or except; None for anything else."""
    plain = " ".join(_BARS.sub("|", without_text(text)).split())
    if (named := domain(plain)) is not None:
        return named
    if found := RELATION.search(plain):
        return _absolute(plain) if plain.startswith("|") and found else _inequality(plain)
    if UNEQUAL.search(plain) or "\\not" in plain:
        return _unequal(plain)
    return _remainder(plain)


def domain(plain: str) -> Shape | None:
    r"""\mathbb{R} and its halves, in signs or words; other sets of numbers are leaves of one spelling."""
    found = _DOMAIN.fullmatch(plain)
    if found is None:
        return None
    name = re.sub(r"[{}\s]|leq?slant|(?<=\\[gl]e)q", "", plain)
    if name.startswith("\\mathbb") and not name.startswith("\\mathbbR"):
        return leaf(name)
    return _HALVES.get(name.removeprefix("\\mathbbR") if name.startswith("\\mathbb") else "")


def _remainder(plain: str) -> Shape | None:
    """All reals but some: `R - {1}`, `real numbers except 1`, `R \\setminus [0, 1]`."""
    found = _DOMAIN.match(plain)
    base = domain(found[1]) if found else None
    cut = _WITHOUT.match(plain, found.end()) if found else None
    if base is None or cut is None:
        return None
    rest = plain[cut.end() :].strip()
    inner, edges = bracketed(rest)
    ends = split(inner, (",", ";"))
    if edges and edges != "{}" and len(ends) == 2 and base == REALS:
        below, above = (")" if edges[0] == "[" else "]"), ("(" if edges[1] == "]" else "[")
        return Shape("union", (interval(INFINITE[0], ends[0], "(" + below), interval(ends[1], INFINITE[1], above + ")")))
    return meet(base, but(rest)) if base.kind != "leaf" and rest else None


def but(text: str) -> Shape:
    r"""All reals except the values of a list, with or without braces, `x =` before it and \pm inside."""
    text = _LED.sub("", text, count=1)
    inner, edges = bracketed(text)
    points = split(SEPARATOR.sub(",", inner if edges == "{}" else text), (",", ";"))
    signed = [point.replace("\\pm", sign).strip() for point in points for sign in (("", "-") if "\\pm" in point else ("",))]
    return Shape("except", tuple(map(leaf, signed)))


def _unequal(plain: str) -> Shape | None:
    r"""x \ne 1, x \ne 1, 2, x \notin \{1, 2\}."""
    if (outside := _NOT_IN.match(plain)) is not None:
        return but(plain[outside.end() :])
    sides = UNEQUAL.split(plain)
    if len(sides) != 2 or "=" in sides[1] or "\\in" in sides[1].replace("\\infty", ""):
        return None
    left, right = (side.strip() for side in sides)
    if re.fullmatch(VARIABLE, right) and not re.fullmatch(VARIABLE, left):
        left, right = right, left
    return but(right) if re.fullmatch(VARIABLE, left) and right else None


def _absolute(plain: str) -> Shape | None:
    """|x| < 3 and its like."""
    parts, signs = RELATION.split(plain), [_sign(found) for found in RELATION.findall(plain)]
    if len(parts) != 2 or _MODULUS.fullmatch(parts[0].strip()) is None or _LETTER.search(parts[1]) or "," in parts[1]:
        return None
    size = parts[1].strip()
    closed = "=" in signs[0]
    low = f"-{size}" if re.fullmatch(r"[\d.]+|\\sqrt\{[^{}]*\}", size) else f"-({size})"
    if signs[0][0] == "<":
        return interval(low, size, "[]" if closed else "()")
    return Shape("union", (interval(INFINITE[0], low, "(]" if closed else "()"), interval(size, INFINITE[1], "[)" if closed else "()")))


def _inequality(text: str) -> Shape | None:
    """`a <= x < b`, `x > 3`, `3 > x` as an interval; None for anything else."""
    parts = RELATION.split(text)
    signs = [_sign(found) for found in RELATION.findall(text)]
    if len(parts) not in (2, 3) or any("=" in part or "," in part or ";" in part or SEPARATOR.search(part) for part in parts):
        return None
    parts = [part.strip() for part in parts]
    if len(parts) == 3 and signs[0][0] == signs[1][0] and re.fullmatch(VARIABLE, parts[1]):
        low, high = (0, 1) if signs[0][0] == "<" else (1, 0)
        edges = ("[" if "=" in signs[low] else "(") + ("]" if "=" in signs[high] else ")")
        return interval(parts[2 * low], parts[2 * high], edges)
    if len(parts) != 2:
        return None
    left, right = parts
    if re.fullmatch(VARIABLE, right) and not re.fullmatch(VARIABLE, left):
        left, right, signs = right, left, [_FLIP[signs[0]]]
    if not re.fullmatch(VARIABLE, left) or not right or _LETTER.search(right):
        return None
    closed = "=" in signs[0]
    if signs[0][0] == "<":
        return interval(INFINITE[0], right, "(]" if closed else "()")
    return interval(right, INFINITE[1], "[)" if closed else "()")


def _sign(found: str) -> str:
    if found in _FLIP:
        return found
    return ("<" if found.startswith("\\l") else ">") + ("" if found in ("\\lt", "\\gt") else "=")


def meet(one: Shape, other: Shape) -> Shape | None:
    """What two sets of reals have in common; None where that depends on symbols."""
    if other == REALS or one == REALS:
        return one if other == REALS else other
    if one.kind == other.kind == "except":
        extra = [point for point in other.parts if all(compare(point.text, known.text) is not True for known in one.parts)]
        return Shape("except", (*one.parts, *extra))
    if {one.kind, other.kind} == {"interval", "except"}:
        return _pierced(*((one, other) if one.kind == "interval" else (other, one)))
    if "leaf" in (one.kind, other.kind):
        within, numbers = (other, one) if one.kind == "leaf" else (one, other)
        return _integers(within) if numbers.text == "\\mathbbZ" and within.kind == "interval" else None
    return _overlap(one, other) if one.kind == other.kind == "interval" else None


def _overlap(one: Shape, other: Shape) -> Shape | None:
    ends = [[estimate(part.text) for part in each.parts] for each in (one, other)]
    if any(end is None for end in ends[0] + ends[1]):
        for first, second in ((one, other), (other, one)):
            if first.parts[1].text == INFINITE[1] and second.parts[0].text == INFINITE[0]:
                return interval(first.parts[0].text, second.parts[1].text, first.edges[0] + second.edges[1])
        return None
    low = max(((value, each.edges[0] == "(", each.parts[0].text) for each, (value, _) in zip((one, other), ends, strict=True)))  # type: ignore[type-var]
    high = min(((value, each.edges[1] == "]", each.parts[1].text) for each, (_, value) in zip((one, other), ends, strict=True)))  # type: ignore[type-var]
    assert low[0] is not None and high[0] is not None
    if low[0] > high[0] or (low[0] == high[0] and (low[1] or not high[1])):
        return Shape("set")
    return interval(low[2], high[2], ("(" if low[1] else "[") + ("]" if high[1] else ")"))


def _pierced(within: Shape, holes: Shape) -> Shape | None:
    """An interval without some points, as a union."""
    low, high = (estimate(part.text) for part in within.parts)
    placed = [(value, part.text) for part in holes.parts if (value := estimate(part.text)) is not None]
    if low is None or high is None or len(placed) < len(holes.parts) or any(value in (low, high) for value, _ in placed):
        return None
    cuts = [text for value, text in sorted(placed) if low < value < high]
    ends = [within.parts[0].text, *cuts, within.parts[1].text]
    edges = [within.edges[0] + ")", *["()"] * (len(cuts) - 1), "(" + within.edges[1]] if cuts else [within.edges]
    pieces = tuple(interval(ends[i], ends[i + 1], edge) for i, edge in enumerate(edges))
    return pieces[0] if len(pieces) == 1 else Shape("union", pieces)


def _integers(within: Shape) -> Shape | None:
    """The whole numbers in a bounded interval, as a set."""
    low, high = (estimate(part.text) for part in within.parts)
    if low is None or high is None or math.isinf(low) or math.isinf(high) or high - low > MAX_PARTS:
        return None
    first = math.floor(low) + 1 if within.edges[0] == "(" else math.ceil(low)
    last = math.ceil(high) - 1 if within.edges[1] == ")" else math.floor(high)
    return Shape("set", tuple(leaf(str(number)) for number in range(first, last + 1)))


def punctured(union: Shape) -> Shape:
    r"""(-\infty, 1) \cup (1, 2) \cup (2, \infty) as all reals but 1 and 2; any other union as it is."""
    starts = {part.parts[0].text.replace(" ", ""): part for part in union.parts if part.kind == "interval"}
    if len(starts) != len(union.parts):
        return union
    at, points = INFINITE[0], []
    for _ in union.parts:
        if (piece := starts.get(at)) is None or piece.edges != "()":
            return union
        at = piece.parts[1].text.replace(" ", "").replace("+\\infty", INFINITE[1])
        points.append(piece.parts[1])
    return Shape("except", tuple(points[:-1])) if at == INFINITE[1] else union
