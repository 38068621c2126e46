"""The confidence that a response states in words, for rewards (RLCR) and for calibration: one reader for both.

It is what the final text says after the word "confidence" (`Confidence: 80%`, `confidence is 0.8`, `8/10`, `<confidence>0.8</confidence>`) or
before the words "confident", "sure" or "certain" (`80 % sure`); the last such statement counts. A number without a unit is a probability up
to 1 and a percentage from 10 on; between them it says neither. A response that states none has none: nothing is inferred from its wording
or from token probabilities.
"""

from __future__ import annotations

import re

from pipelines.verifiers.text import final_text

LEAST_PERCENTAGE = 10
_NUMBER = r"(\d{1,3}(?:\.\d{1,6})?|\.\d{1,6})"
_UNIT = r"\s{0,3}(\\?%|percent\b|/\s{0,3}100?\b)?"
_STATED = re.compile(
    rf"(?<!/)\bconfidence\b(?:\s{{1,3}}(?:level|score))?[\s:=*_>]{{0,8}}(?:(?:is|of)\b[\s*_]{{0,6}})?{_NUMBER}(?![\d.]*\d){_UNIT}"
    rf"|(?<![\d./]){_NUMBER}\s{{0,3}}(\\?%|percent\b)\s{{1,3}}(?:confident|sure|certain)\b",
    re.IGNORECASE,
)


def stated_confidence(response: str) -> float | None:
    """The probability of being right that a response states last, in [0, 1]; None where it states none or one outside."""
    statements = list(_STATED.finditer(final_text(response) or ""))
    if not statements:
        return None
    found = statements[-1]
    value, unit = float(found[1] or found[3]), (found[2] or found[4] or "").replace(" ", "")
    if not unit and 1 < value < LEAST_PERCENTAGE:
        return None
    scale = 10 if unit == "/10" else 100 if unit or value > 1 else 1
    return value / scale if value <= scale else None
