r"""What of a response counts: the final text, the last \boxed{}, the last fenced program.

Verifiers judge only what follows the last `</think>`: an answer that a model drops while it thinks and later withdraws is
not an answer. All functions are linear in the length of the text, because responses are hostile and may be long.
"""

from __future__ import annotations

import re

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_PYTHON = {"", "python", "python3", "py"}


def final_text(response: str) -> str | None:
    """The text after the last `</think>`; None if a `<think>` is opened and never closed. Without tags: everything."""
    text = response.rpartition("</think>")[2]
    return None if "<think>" in text else text


def boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` or `\boxed 4` (braces matched); None without a box or when the last one never closes."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].lstrip("\\abcdefghijklmnopqrstuvwxyz").lstrip()
    if not rest.startswith("{"):
        bare = re.match(r"\\(?:boxed|fbox)\s+([-+]?[\d.,/]*\d)", text[start:])
        return bare.group(1) if bare else None
    depth, escaped = 0, False
    for position, character in enumerate(rest):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                content = rest[1:position].strip()
                return boxed(content) if content.startswith(("\\boxed{", "\\fbox{")) else content
    return None


def has_box(text: str) -> bool:
    return "\\boxed" in text or "\\fbox" in text


def stated_answer(text: str) -> str | None:
    """The answer behind the last `####` or the last 'answer is' or 'answer:': the rest of that line, cut at the end of its sentence."""
    _, mark, rest = text.rpartition("####")
    if mark:
        return rest.strip().partition("\n")[0].strip() or None
    lower = text.lower()
    at = max(lower.rfind("answer is"), lower.rfind("answer:"))
    if at < 0:
        return None
    rest = text[at + len("answer") :].removeprefix(" is").lstrip(" :*")
    sentence = re.split(r"[.;!?](?:\s|$)|\n|, (?:not|but) | \(not ", rest, maxsplit=1)[0]
    return sentence.strip(" *") or None


def program(text: str) -> str | None:
    """The last fenced block that is marked as Python or not marked at all."""
    blocks = [code for language, code in _FENCE.findall(text) if language.lower() in _PYTHON]
    return blocks[-1] if blocks and blocks[-1].strip() else None
