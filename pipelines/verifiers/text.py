r"""What of a response counts: the final text, the last \boxed{}, the last fenced program.

Verifiers judge only what follows the last `</think>`: an answer that a model drops while it thinks and later withdraws is
not an answer. All functions are linear in the length of the text, because responses are hostile and may be long.
"""

from __future__ import annotations

import re

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-z])")
_JOINED = re.compile(
    r"(?:[\s$]|\\q?quad|\\[,;()\[\] ]|\\text\s*\{)*(?:,|;|\band\b|\bor\b)(?:[\s$},;]|\band\b|\bor\b|\\q?quad|\\[,;()\[\] ])*(?:\w+\s*=\s*[\s$]*)?"
)
MOST_BOXES = 20
_PYTHON = {"", "python", "python3", "py"}


def final_text(response: str) -> str | None:
    """The text after the last `</think>`; None if a `<think>` is opened and never closed. Without tags: everything."""
    text = response.rpartition("</think>")[2]
    return None if "<think>" in text else text


def boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` or `\boxed 4` (braces matched); None without a box or when the last one never closes."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    return None if start < 0 else _box_at(text, start)[0]


def boxes(text: str) -> str | None:
    r"""As `boxed`, but boxes with nothing except `,`, `and` or `or` between them are one list: `\boxed{1}, \boxed{2}` -> `1, 2`."""
    starts = [found.start() for found in _BOX.finditer(text)][-MOST_BOXES:]
    contents: list[str] = []
    after = len(text)
    for start in reversed(starts):
        content, end = _box_at(text, start)
        if content is None or (contents and not _JOINED.fullmatch(text[end:after])):
            break
        contents.append(content)
        after = start
    return ", ".join(reversed(contents)) or (None if not contents else "")


def all_boxes(text: str) -> list[str]:
    """Contents of every box, in order."""
    found, after = [], 0
    for mark in _BOX.finditer(text):
        if mark.start() >= after:
            content, after = _box_at(text, mark.start())
            found += [content] if content else []
    return found


def _box_at(text: str, start: int) -> tuple[str | None, int]:
    """Content and end of the box that begins at `start`; None when it never closes."""
    opening = re.compile(r"\\(?:boxed|fbox)\s*").match(text, start)
    assert opening is not None
    if not text.startswith("{", opening.end()):
        bare = re.compile(r"[-+]?[\d.,/]*\d").match(text, opening.end())
        return (bare[0], bare.end()) if bare and opening[0][-1].isspace() else (None, opening.end())
    depth, escaped = 0, False
    for position in range(opening.end(), len(text)):
        character = text[position]
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                content = text[opening.end() + 1 : position].strip()
                inner = boxed(content) if content.startswith(("\\boxed{", "\\fbox{")) else content
                return inner, position + 1
    return None, len(text)


def tagged(text: str) -> str | None:
    """What the last `<answer>...</answer>` holds; None without one."""
    _, opening, inside = text.rpartition("<answer>")
    return inside.partition("</answer>")[0].strip() if opening else None


def has_box(text: str) -> bool:
    return "\\boxed" in text or "\\fbox" in text


def stated_answer(text: str) -> str | None:
    """The answer behind the last `####`, on a last line `A: ...`, or behind the last 'answer is' or 'answer:', cut at the end of its sentence."""
    _, mark, rest = text.rpartition("####")
    if mark:
        return rest.strip().partition("\n")[0].strip() or None
    last = text.rstrip().rpartition("\n")[2]
    if last.startswith(("A:", "A :")):
        return last.partition(":")[2].strip() or None
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
