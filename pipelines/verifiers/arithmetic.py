r"""Exact comparison of single values in microseconds, without sympy.

Most golds of public maths sets are integers, decimals or fractions. For these the answer is decided here by
`fractions.Fraction`, which also avoids Math-Verify's rounding to six decimals (1/2^99 = 1/2^98 there). `compare` returns
True or False where it is certain and None where the symbolic engine must decide.

House rules, where no `Policy` says otherwise: a percent sign divides by 100 (50 % is 0.5 and is not 50); a decimal stands for a
fraction when they agree to a relative 1e-6 and the gold is no integer; a number in another base equals only itself; a unit counts only
where gold and answer both have one; a ratio is its quotient, a time of day is not.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from pipelines.verifiers.notation import TEXT, squeeze, without_text

MAX_DIGITS = 2000
_INTEGER = re.compile(r"[-+]?\d{1,30}")
_NUMBER = re.compile(r"([-+]?)(?:([1-9]\d{0,2}(?:,\d{3})+|\d+)(\.\d*)?|(\.\d+))(?:(?:[eE]|(?:\\times|\\cdot)10\^)\{?([-+]?\d{1,3})\}?)?")
_REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)(?:\\overline|\\bar)\{?(\d+)\}?")
_RATIO = re.compile(r"([-+]?)(\d*)\\frac(?:\{([-+]?[\d,.]+)\}\{([-+]?[\d,.]+)\}|(\d)(\d))")
_SLASH = re.compile(r"([-+]?[\d,.]+)/([-+]?[\d,.]+)")
_MIXED = re.compile(r"([-+]?)(\d+)\s+(\d+)/(\d+)")
_COLON = re.compile(r"(\d+):(\d+)")
_TIME = re.compile(r"\d{1,2}:\d\d")
_COMMA_DECIMAL = re.compile(r"[-+]?(?:0,\d+|\d+,\d{1,2}|\d+,\d{4,})")
_BASE = re.compile(r"([0-9A-Za-z]+)_\{?(\d+)\}?")
_PERCENT = re.compile(r"\s*(?:\\%|%|per\s?cent)")
_POWER = r"(?:\s*\^\s*\{?([23])\}?)?"
_MEASURED = re.compile(
    rf"(.*?[\d}}])(?:(?:\s|\\[ ,;])+((?:[A-Za-z]{{2}}|[mgshLJNWV]\b)[A-Za-z. /-]*){_POWER}|(cm|mm|km|kg|mg|ml|ft|lb|oz|mph|kph){_POWER})"
)
_UNIT = re.compile(rf"(.*[^\s{{(,+*/^=-])\s*{TEXT}\s*\{{\s*([A-Za-z][A-Za-z. /-]*){_POWER}\s*\}}{_POWER}")
_COMPOUND = re.compile(r"\b(?:[kcm]?m|ft|mi|in|k?g|m?l|k?J|N|W|V|rad|rev)\s?/\s?(?:[kc]?m|h|hr|min|m?s|sec|k?g|m?l)\b", re.IGNORECASE)
_SQUARED = re.compile(r"\A(?:(square|sq)|(cubic|cu))\.?\s+|\s+(?:(squared)|(cubed))\Z")
_SPREAD = re.compile(r"\d,\s+\d{3}(?!\d)")
_ABBREVIATIONS = {
    "meter": ("m", "metre"),
    "centimeter": ("cm", "centimetre"),
    "millimeter": ("mm", "millimetre"),
    "kilometer": ("km", "kilometre"),
    "gram": ("g",),
    "kilogram": ("kg",),
    "milligram": ("mg",),
    "liter": ("l", "litre"),
    "milliliter": ("ml",),
    "hour": ("h", "hr"),
    "minute": ("min",),
    "second": ("s", "sec"),
    "inch": ("in", "inche"),
    "foot": ("ft", "feet"),
    "pound": ("lb",),
    "ounce": ("oz",),
    "dollar": ("usd",),
}
_SYNONYMS = {short: name for name, shorts in _ABBREVIATIONS.items() for short in shorts}
_HOUR = re.compile(r"(\d{1,2}(?::\d\d)?)\s*([AaPp])\.?\s?[Mm]\.{0,2}")
_PREFIXED = re.compile(r"(?:USD?|Rs\.?|EUR|[£€¥₹])\s*(.*\d)|(.*\d)\s*[£€¥₹]")
_SCALES = re.compile(
    r"\b(?:hundred|thousand|million|billion|trillion|dozen|half|squared|cubed|factorial|choose|"
    r"over|times|plus|minus|by|maybe|perhaps|possibly|probably|wrong|incorrect|unsure|guess|no|percent|mod|bmod|if|when|to|and|or|not|is|[A-Za-z])\b"
)
_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"),
    *("fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_GREAT = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_WORDS = dict(zip(_ONES, range(20), strict=True)) | dict(zip(_TENS, range(20, 100, 10), strict=True))
_TEXT_GOLD = re.compile(r"(?=.*[A-Za-z]{3})[A-Za-z][A-Za-z' -]{3,}")
_LETTER = re.compile(r"\(?[A-J]\)?")


def in_words(text: str) -> int | None:
    """forty-two -> 42; None for anything that is no whole number in English words."""
    words = text.casefold().replace("-", " ").replace(" and ", " ").split()
    if not words or any(word not in _WORDS and word not in _GREAT for word in words):
        return None
    total = part = 0
    for word in words:
        if word in _WORDS:
            part += _WORDS[word]
        elif word == "hundred":
            part = max(part, 1) * 100
        else:
            total, part = total + max(part, 1) * _GREAT[word], 0
    return total + part


def _decimal(text: str) -> Fraction | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, places, bare, exponent = match.groups()
    digits = (whole or "").replace(",", "") + (places or bare or "")
    value = Fraction(digits.removesuffix(".") or "0")
    value = value * Fraction(10) ** int(exponent) if exponent else value
    return -value if sign == "-" else value


def _repeating(text: str) -> Fraction | None:
    r"""0.1\overline{6} -> 1/6."""
    match = _REPEATING.fullmatch(text)
    if match is None:
        return None
    sign, whole, fixed, period = match.groups()
    value = Fraction(int(whole + fixed or 0), 10 ** len(fixed)) + Fraction(int(period), 10 ** len(fixed) * (10 ** len(period) - 1))
    return -value if sign == "-" else value


def number(text: str, percent: str = "value") -> Fraction | None:
    r"""The exact value of an integer, decimal, scientific number, \frac, a/b, a:b, mixed number or percentage; None for all else."""
    if not text or len(text) > MAX_DIGITS:
        return None
    if (mixed := _MIXED.fullmatch(text.strip())) is not None:
        part = _quotient(mixed[3], mixed[4])
        if part is None or part >= 1:
            return None
        return -(part + int(mixed[2])) if mixed[1] == "-" else part + int(mixed[2])
    if "," in text and _SPREAD.search(text):  # a list
        return None
    text = re.sub(r"\^\{?\\circ\}?$", "", squeeze(text))
    while text.startswith("(") and text.endswith(")") and "," not in text and text.count("(") == 1:
        text = text[1:-1]
    if (found := _PERCENT.search(text)) is not None and found.end() == len(text):
        value = number(text[: found.start()])
        return value if value is None or percent == "ignore" else value / 100
    if (value := _decimal(text)) is not None or (value := _repeating(text)) is not None:
        return value
    if (slash := _SLASH.fullmatch(text) or _COLON.fullmatch(text)) is not None:
        return _quotient(slash.group(1), slash.group(2))
    if (ratio := _RATIO.fullmatch(text)) is not None:
        sign, whole, top, bottom, short_top, short_bottom = ratio.groups()
        part = _quotient(top or short_top, bottom or short_bottom)
        if part is None:
            return None
        value = part + int(whole or 0)
        return -value if sign == "-" else value
    return None


def numeral(text: str) -> bool:
    """Whether a cleaned text is a number, written or in words, with or without a unit."""
    value = measured(text)[0]
    return number(value) is not None or in_words(value) is not None or _COMMA_DECIMAL.fullmatch(squeeze(value)) is not None


def worked_out(gold: str, answer: str) -> bool:
    """Whether nothing is left to do in the cleaned `answer`: it is a number, and a quotient only where the cleaned `gold` is one."""
    return numeral(answer) and (not _is_quotient(answer) or _is_quotient(gold))


def _is_quotient(text: str) -> bool:
    value = measured(text)[0].strip()
    ratio = _RATIO.fullmatch(squeeze(value))
    return not _MIXED.fullmatch(value) and (_SLASH.fullmatch(squeeze(value)) is not None or (ratio is not None and not ratio[2]))


def _quotient(top: str, bottom: str) -> Fraction | None:
    above, below = _decimal(top), _decimal(bottom)
    return above / below if above is not None and below else None


@functools.lru_cache(maxsize=4096)
def measured(text: str) -> tuple[str, str]:
    """(value, unit) of `30 cm` or `$5`; the unit is "" where there is none."""
    if (hour := _HOUR.fullmatch(without_text(text).strip())) is not None:
        return hour[1], hour[2].casefold() + "m"
    if (wrapped := _UNIT.fullmatch(text.strip())) is not None and not _scaled(wrapped[2]):
        return wrapped[1].strip(), _unit(wrapped[2], wrapped[3] or wrapped[4])
    text = without_text(text).strip()
    if (money := _PREFIXED.fullmatch(text)) is not None:
        return (money[1] or money[2]).strip(), ""
    match = _MEASURED.fullmatch(text)
    if match is None or (match[2] and len(match[2]) > 1 and _scaled(match[2])):
        return text, ""
    return match[1].strip(), _unit(match[2] or match[4], match[3] or match[5])


def _scaled(words: str) -> bool:
    """Whether words behind a number change its value or doubt it, and so are no unit."""
    return _SCALES.search(_COMPOUND.sub("", _SQUARED.sub("", words.strip()))) is not None


def _unit(text: str, power: str | None) -> str:
    """One name for a unit, in the singular, with its power; "unit" for units of no kind."""
    name = " ".join(text.casefold().split()).rstrip(".")
    if (found := _SQUARED.search(name)) is not None:
        name, power = _SQUARED.sub("", name), "2" if found[1] or found[3] else "3"
    name = _SYNONYMS.get(name) or _SYNONYMS.get(name.rstrip("s")) or name.rstrip("s")
    return f"{name}^{power}" if power and name != "unit" else name


def conflicting(one: str, other: str) -> bool:
    """Whether two units are there and differ."""
    return bool(one and other and one != other and "unit" not in (one, other))


def _same_number(gold: Fraction, value: Fraction, written_as_decimal: bool) -> bool:
    if gold == value:
        return True
    return written_as_decimal and gold.denominator != 1 and abs(gold - value) <= abs(gold) / 10**6


@dataclass(frozen=True)
class Policy:
    """What a dataset means by signs and units.

    percent: `value` (50 % is 0.5) or `ignore` (the sign says nothing). units: `lenient` (they count where both sides have one), `ignore`, or
    `strict` (an answer without the gold's unit is wrong).
    """

    percent: Literal["value", "ignore"] = "value"
    units: Literal["lenient", "ignore", "strict"] = "lenient"

    def __post_init__(self) -> None:
        if self.percent not in ("value", "ignore") or self.units not in ("lenient", "ignore", "strict"):
            raise ValueError(f"percent is 'value' or 'ignore', units 'lenient', 'ignore' or 'strict', got {self.percent!r} and {self.units!r}")


def compare(gold: str, answer: str, policy: Policy = Policy()) -> bool | None:
    """Whether the cleaned `answer` equals the cleaned `gold`, two single values; None where only the symbolic engine can tell."""
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer):
        return int(gold) == int(answer)
    left, right = squeeze(gold), squeeze(answer)
    if not right:
        return False
    if left == right:
        return True
    gold_value, gold_unit = measured(gold)
    answer_value, answer_unit = measured(answer)
    gold_number, answer_number = number(gold_value, policy.percent), number(answer_value, policy.percent)
    if gold_number is not None and answer_number is not None:
        if policy.units == "strict" and gold_unit != answer_unit:
            return False
        if policy.units == "lenient" and conflicting(gold_unit, answer_unit):
            return False
        if ":" in left and ":" in right and (_TIME.fullmatch(left) or _TIME.fullmatch(right)):
            return False
        return _same_number(gold_number, answer_number, "." in left or "." in right)
    if _COMMA_DECIMAL.fullmatch(left if answer_number is not None else right) and (gold_number is None) != (answer_number is None):
        return number(left.replace(",", "."), policy.percent) == number(right.replace(",", "."), policy.percent)
    if (_BASE.fullmatch(left) and (answer_number is not None or _BASE.fullmatch(right))) or (_BASE.fullmatch(right) and gold_number is not None):
        return False
    if _LETTER.fullmatch(left):
        return left.strip("()") == right.strip("()").upper()
    return _compare_words(without_text(gold), without_text(answer), gold_number, answer_number)


def _compare_words(gold: str, answer: str, gold_number: Fraction | None, answer_number: Fraction | None) -> bool | None:
    """Numbers in words, and golds that are text: `even`, `Friday`, `no solution`."""
    plain_gold, plain_answer = " ".join(gold.split()).casefold(), " ".join(answer.split()).casefold()
    one, other = in_words(plain_gold), in_words(plain_answer)
    if one is not None or other is not None:
        first = gold_number if one is None else one
        second = answer_number if other is None else other
        if first is not None and second is not None:
            return first == second
    if _TEXT_GOLD.fullmatch(plain_gold) and "\\" not in plain_gold:
        return plain_gold == plain_answer.strip(" .!")
    return None
