r"""Exact comparison of numbers and short texts, in microseconds and without sympy.

Most golds of public maths sets are integers, decimals or fractions. For these the answer is decided here by
`fractions.Fraction`, which also avoids Math-Verify's rounding to six decimals (1/2^99 = 1/2^98 there). `compare` returns
True or False where it is certain and None where the symbolic engine must decide.

House rules: a percent sign divides by 100 (50 % is 0.5 and is not 50; `{"percent": "ignore"}` drops the sign); a
decimal stands for a fraction when they agree to a relative 1e-6 and the gold is no integer; a number in another base
equals only itself; a set is not a tuple.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MAX_DIGITS = 2000
_INTEGER = re.compile(r"[-+]?\d{1,30}")
_NUMBER = re.compile(r"([-+]?)(?:(\d{1,3}(?:,\d{3})+|\d+)(\.\d*)?|(\.\d+))(?:(?:e|\\times10\^)\{?([-+]?\d{1,3})\}?)?")
_RATIO = re.compile(r"([-+]?)(\d*)\\frac(?:\{([-+]?[\d,.]+)\}\{([-+]?[\d,.]+)\}|(\d)(\d))")
_SLASH = re.compile(r"([-+]?[\d,.]+)/([-+]?[\d,.]+)")
_BASE = re.compile(r"([0-9A-Za-z]+)_\{?(\d+)\}?")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathit|operatorname|boxed|fbox)\{([^{}]*)\}")
_SPACES = re.compile(r"\\[!,;: ]|\\left(?![a-z])|\\right(?![a-z])|~|\\q?quad|\s+")
_UNICODE = str.maketrans(
    {"−": "-", "–": "-", "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "≥": r"\ge ", "≤": r"\le "}
    | {"∈": r"\in ", "°": r"^\circ ", "∪": r"\cup ", "∅": r"\emptyset ", "√": r"\sqrt ", "⁄": "/", "\u200b": "", "\u2060": "", "\ufeff": ""}
)


def clean(text: str) -> str:
    """Typographic variants made one: Unicode forms, dollar signs, fraction commands, wrappers such as \\text{...}."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_UNICODE)).translate(_UNICODE)
    text = text.replace("\\$", "").replace("$", "").replace("{,}", ",").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]"), ("**", "**")):
        stripped = text.strip()
        if stripped.startswith(opening) and stripped.endswith(closing):
            text = stripped[len(opening) : -len(closing)]
    text = text.strip()
    while (inner := _WRAPPED.fullmatch(text)) is not None:
        text = inner.group(1).strip()
    return text.removesuffix(".").rstrip() if not text.endswith("..") else text


def squeeze(cleaned: str) -> str:
    """Without any spacing, LaTeX spacing commands and sizing of brackets."""
    return _SPACES.sub("", cleaned)


def _decimal(text: str) -> Fraction | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, places, bare, exponent = match.groups()
    digits = (whole or "").replace(",", "") + (places or bare or "")
    value = Fraction(digits.removesuffix(".") or "0")
    value = value * Fraction(10) ** int(exponent) if exponent else value
    return -value if sign == "-" else value


def number(squeezed: str, percent: str = "value") -> Fraction | None:
    r"""The exact value of an integer, decimal, scientific number, \frac, a/b, mixed number or percentage; None for all else."""
    if not squeezed or len(squeezed) > MAX_DIGITS:
        return None
    text = re.sub(r"\^\{?\\circ\}?$", "", squeezed)
    if text.endswith("%"):
        value = number(text.removesuffix("%").removesuffix("\\"))
        return value if value is None or percent == "ignore" else value / 100
    if (value := _decimal(text)) is not None:
        return value
    if (slash := _SLASH.fullmatch(text)) is not None:
        return _quotient(slash.group(1), slash.group(2))
    if (ratio := _RATIO.fullmatch(text)) is not None:
        sign, whole, top, bottom, short_top, short_bottom = ratio.groups()
        part = _quotient(top or short_top, bottom or short_bottom)
        if part is None:
            return None
        value = part + int(whole or 0)
        return -value if sign == "-" else value
    return None


def _quotient(top: str, bottom: str) -> Fraction | None:
    above, below = _decimal(top), _decimal(bottom)
    return above / below if above is not None and below else None


def _same_number(gold: Fraction, value: Fraction, written_as_decimal: bool) -> bool:
    if gold == value:
        return True
    return written_as_decimal and gold.denominator != 1 and abs(gold - value) <= abs(gold) / 10**6


def compare(gold: str, answer: str, percent: str = "value") -> bool | None:
    """Whether `answer` equals `gold`, or None where only the symbolic engine can tell."""
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer):
        return int(gold) == int(answer)
    clean_gold, clean_answer = clean(gold), clean(answer)
    left, right = squeeze(clean_gold), squeeze(clean_answer)
    if not right:
        return False
    if left == right:
        return True
    gold_number, answer_number = number(left, percent), number(right, percent)
    if gold_number is not None and answer_number is not None:
        return _same_number(gold_number, answer_number, "." in left or "." in right)
    if _BASE.fullmatch(left) and (answer_number is not None or _BASE.fullmatch(right)):
        return False
    if _BASE.fullmatch(right) and gold_number is not None:
        return False
    if re.fullmatch(r"\(?[A-J]\)?", left):
        return left.strip("()") == right.strip("()").upper()
    if "\\text" in gold and re.fullmatch(r"[A-Za-z ]+", clean_gold):
        return clean_gold.casefold() == clean_answer.casefold()
    if {_bracket(left), _bracket(right)} == {"(", "{"}:
        return False
    return None


def _bracket(squeezed: str) -> str:
    return "{" if squeezed.startswith("\\{") else "(" if squeezed.startswith("(") and squeezed.endswith(")") and "," in squeezed else ""
