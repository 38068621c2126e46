r"""From the text of an answer to its Shape: split at the outermost brackets and separators, conditions and statements read as what they say."""

from __future__ import annotations

import functools
import re

from pipelines.verifiers import conditions, statements
from pipelines.verifiers.conditions import RELATION, SEPARATOR, UNEQUAL, VARIABLE
from pipelines.verifiers.notation import without_text
from pipelines.verifiers.shapes import Shape, bracketed, leaf, split

_MATRIX = re.compile(r"\\begin\{([pbBv]?matrix|array)\}(?:\{[lcr| ]*\})?((?:(?!\\begin).)*)\\end\{\1\}", re.DOTALL)
_SPACING = re.compile(r"(?<!\\)\\[,;:! ]|\\q?quad(?![a-z])|~")
_WIDE = re.compile(r"\\q?quad(?![a-z])")
_MEMBER = re.compile(
    rf"\A(?:{VARIABLE}|\((?:a, ?b|m, ?n|p, ?q|u, ?v|x, ?y|a, ?b, ?c|x, ?y, ?z)\))\s*(?:\\in(?![a-z])|=(?=\s*(?:\\left\s*)?(?:\\\{{|[\[\]])))\s*"
)
_OR = re.compile(r"\\text\s*\{\s*,?\s*or\s*\}|\bor\b|\\(?:lor|vee)(?![a-z])|;")
_END = r"(?:[^\[\](),;]|\\sqrt\[\d+\]|\([^()]*\))+"
_ENDS = re.compile(rf"([\[\](])({_END}[,;]{_END})([\[\])])")
_DECLARED = re.compile(
    rf"(?:(?:where|for|with)\s+)?(?:(?:all|any|some)\s+)?({VARIABLE})\s*\\in(?![a-z])\s*(\\mathbb\{{[RZNQ]\}}(?:[\^_]\{{?[-+*>\\a-z0-9]+\}}?)?)"
    r"|(?:(?:where|for|with)\s+)?(?:(?:all|any|some)\s+)?integers?\s+(?P<of>[a-z])|(?:where\s+|for\s+|with\s+)?(?P<an>[a-z])\s+(?:is\s+)?(?:an|any)\s+integer"
)
_DECLARED_LAST = re.compile(rf"\(\s*({VARIABLE}\s*\\in(?![a-z])\s*\\mathbb\{{[RZNQ]\}})\s*\)\Z")
_SUCH_THAT = ("\\mid", "\\vert", "\\colon", "|", ":", " such that ", " where ")
_PIECES = ("interval", "union", "except")


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Shape:
    """The form of a cleaned answer."""
    text = _spaced(text)
    text = statements.of_cases(text) or text
    if found := _MATRIX.fullmatch(text):
        rows = [row for row in found[2].split("\\\\") if row.strip()]
        return Shape("matrix", tuple(Shape("row", tuple(map(parse, row.split("&")))) for row in rows))
    if special := statements.tuple_of(text, parse) or statements.in_braces(text, parse) or _set_builder(text) or conditions.condition(text):
        return special
    pieces = split(text, ("\\cup",))
    if len(pieces) > 1:
        return _union([parse(piece) for piece in pieces])
    return _joined_by_or(text) or _solutions(text) or _list(text) or _single(text)


def _spaced(text: str) -> str:
    """Without spacing commands, membership of the whole, and with intervals such as ]0, 1[ written (0, 1)."""
    pieces = _WIDE.split(text)
    if len(pieces) > 1 and all(statements.statement(piece) for piece in pieces):
        text = ", ".join(piece.strip().rstrip(",;") for piece in pieces)
    text = _MEMBER.sub("", _SPACING.sub(" ", text).replace("\\langle", "(").replace("\\rangle", ")").strip())
    text = _DECLARED_LAST.sub(r", \1", text)
    if "]" in text or "[" in text:
        text = _ENDS.sub(_one_notation, re.sub(r"\\(?:left|right)(?=\s*[\[\]])\s*", "", text))
    return text


def _one_notation(found: re.Match[str]) -> str:
    if found[1] != "]" and found[3] != "[":
        return found[0]
    return ("(" if found[1] == "]" else found[1]) + found[2] + (")" if found[3] == "[" else found[3])


def _union(parts: list[Shape]) -> Shape:
    pieces = [inner for part in parts for inner in (part.parts if part.kind == "union" else (part,))]
    pieces = [Shape("interval", piece.parts, edges="()") if piece.kind == "tuple" and len(piece.parts) == 2 else piece for piece in pieces]
    return conditions.punctured(Shape("union", tuple(pieces)))


def _joined_by_or(text: str) -> Shape | None:
    """Regions or whole solutions with `or` or semicolons between them; None where a flat list says the same."""
    if _OR.search(text) is None:
        return None
    pieces = split(_OR.sub("\0", text), ("\0",))
    if len(pieces) < 2 or any(bracketed(text)):
        return None
    parts = [parse(piece.rstrip(" ,")) for piece in pieces]
    if all(part.kind in ("interval", "union") for part in parts):
        return _union(parts)
    if any(part.kind == "record" for part in parts) or (parts[0].kind == "tuple" and all(part.kind == "tuple" for part in parts)):
        return Shape("list", tuple(parts))
    return statements.gather(pieces, parse, joined_by_or=True) if ";" not in text else None


def _solutions(text: str) -> Shape | None:
    """`p = 5, q = 2 and p = 7, q = 2`: several statements on either side of the word."""
    pieces = split(SEPARATOR.sub("\0", text), ("\0",))
    if len(pieces) < 2 or not all(statements.several(piece) for piece in pieces):
        return None
    return Shape("list", tuple(parse(piece) for piece in pieces))


def _list(text: str) -> Shape | None:
    """What commas, semicolons and words divide: conditions that hold together, statements, a family, or a list."""
    pieces = split(SEPARATOR.sub(",", text), (",", ";"))
    if len(pieces) < 2:
        return None
    declared = [found for piece in pieces if (found := _DECLARED.fullmatch(without_text(piece).strip()))]
    if len(declared) == 1 and len(pieces) > 1:
        rest = [piece for piece in pieces if _DECLARED.fullmatch(without_text(piece).strip()) is None]
        return _family(", ".join(rest), declared[0])
    if together := _conjunction(text, pieces):
        return together
    if (said := statements.gather(pieces, parse, joined_by_or=False)) is not None:
        return said
    parts = tuple(map(parse, pieces))
    return _union(list(parts)) if all(part.kind in ("interval", "union") for part in parts) else Shape("list", parts)


def _conjunction(text: str, pieces: list[str]) -> Shape | None:
    """Conditions of which all hold. Where commas divide half-lines that have nothing in common they are alternatives, so not this."""
    parts = [conditions.condition(_MEMBER.sub("", piece)) for piece in pieces]
    if not any(part is not None for part in parts) or not all(part is not None and part.kind in _PIECES for part in parts):
        return None
    if not any(RELATION.search(piece) or UNEQUAL.search(piece) for piece in pieces):
        return None
    whole: Shape | None = parts[0]
    for part in parts[1:]:
        whole = conditions.meet(whole, part) if whole is not None and part is not None else None
    if whole is not None and whole.kind == "set" and SEPARATOR.search(text) is None:
        return None
    return whole


def _family(text: str, declared: re.Match[str]) -> Shape:
    r"""`\frac{\pi}{4} + k\pi` with `k \in \mathbb{Z}`. A bound variable is called k, and a domain that bounds a region meets it."""
    name = declared[1] or declared["of"] or declared["an"]
    numbers = conditions.domain(declared[2].replace(" ", "") if declared[2] else "\\mathbb{Z}")
    region = parse(text)
    if numbers is not None and region.kind in _PIECES and (met := conditions.meet(numbers, region)) is not None:
        return met
    renamed = _renamed(text, name)
    return Shape("family", (parse(renamed) if renamed != text else region, *([numbers] if numbers is not None else [])))


def _renamed(text: str, name: str) -> str:
    letters = re.compile(r"\\[A-Za-z]+|" + re.escape(name))
    if len(name) > 1 or "k" in re.sub(r"\\[A-Za-z]+", "", text):
        return text
    return letters.sub(lambda found: " k" if found[0] == name else found[0], text)


def _set_builder(text: str) -> Shape | None:
    r"""`\{x \mid x > 2\}` as its region; `\{2k \mid k \in \mathbb{Z}\}` and other sets by condition as a family."""
    inner, edges = bracketed(text)
    if edges != "{}":
        return None
    pieces: list[str] = []
    for mark in _SUCH_THAT:
        pieces = split(without_text(inner) if mark.startswith(" ") else inner, (mark,))
        if len(pieces) > 1:
            break
    if len(pieces) < 2 or pieces[0].count("|") % 2:
        return None
    head, rule = pieces[0], inner[inner.index(pieces[1]) :] if pieces[1] in inner else pieces[1]
    rule = _spaced(rule)
    declared = _DECLARED.fullmatch(head)
    if declared is not None:
        return _family(rule, declared)
    region = parse(rule)
    if re.fullmatch(VARIABLE, head) and region.kind in (*_PIECES, "family", "set"):
        return region
    if re.fullmatch(VARIABLE, head) and region.kind == "list":
        return Shape("set", region.parts)
    bound = _DECLARED.fullmatch(without_text(rule).strip()) or _DECLARED.fullmatch(without_text(pieces[1]).strip())
    if bound is not None:
        return _family(head, bound)
    return Shape("family", (parse(head), region))


def _single(text: str) -> Shape:
    """One bracket, a value with two signs, or a leaf."""
    if text in ("\\emptyset", "\\{\\}", "\\{ \\}"):
        return Shape("set")
    inner, edges = bracketed(text)
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
        return Shape("list", tuple(leaf(each.replace("\\pm", "+").replace("\\mp", "-").removeprefix("+")) for each in (text, swapped)))
    return leaf(text)
