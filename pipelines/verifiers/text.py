r"""What of a response counts: the final text, the last \boxed{}, the last fenced program.

Verifiers judge only what follows the last `</think>`: an answer that a model drops while it thinks and later withdraws is
not an answer. All functions are linear in the length of the text, because responses are hostile and may be long.
"""

from __future__ import annotations

import functools
import re

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-z])")
_JOINED = re.compile(
    r"(?:[\s$]|\\q?quad|\\[,;()\[\] ]|\\text\s*\{)*(?:,|;|\band\b|\bor\b)(?:[\s$},;]|\band\b|\bor\b|\\q?quad|\\[,;()\[\] ])*(?:\w+\s*=\s*[\s$]*)?"
)
_NAMED = re.compile(r"(\\?[A-Za-z]+(?:_\{?\w+\}?)?)\s*=[\s$]*\Z")
MOST_BOXES = 20
MOST_NAME = 40
_OPENING = re.compile(r"\\(?:boxed|fbox)\s*")
_BARE_BOX = re.compile(r"[-+]?[\d.,/]*\d")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
Place = tuple[int, int, str | None]
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
    run = last_boxes(text)
    return ", ".join(run) if run else None


def last_boxes(text: str) -> list[str]:
    """Contents of the boxes of that list, in order and with the names that stand before them; none where the last box never closes."""
    run: list[tuple[int, str]] = []
    after = len(text)
    for start, end, content in reversed(box_places(text)):
        if content is None or (run and not _JOINED.fullmatch(text[end:after])):
            break
        run.insert(0, (start, content))
        after = start
    if len(run) > 1:
        names = [name[1] for start, _ in run if (name := _NAMED.search(text[max(0, start - MOST_NAME) : start]))]
        if len(set(names)) == len(run):
            return [f"{name} = {content}" for name, (_, content) in zip(names, run, strict=True)]
    return [content for _, content in run]


def tag_places(text: str) -> list[Place]:
    """(start, end, content) of the last <answer>s."""
    places, end = [], 0
    for piece in text.split("<answer>"):
        content, closing, _ = piece.partition("</answer>")
        places.append((end - len("<answer>"), end + len(content) + len(closing), content.strip()))
        end += len(piece) + len("<answer>")
    return places[1:][-MOST_BOXES:]


@functools.lru_cache(maxsize=8)  # several questions are asked of one text
def box_places(text: str) -> list[Place]:
    """(start, end, content) of the last boxes that stand in no other box."""
    places: list[Place] = []
    for found in list(_BOX.finditer(text))[-MOST_BOXES:]:
        if not places or found.start() >= places[-1][1]:
            content, end = _box_at(text, found.start())
            places.append((found.start(), found.end() if content is None else end, content))
    return places


def boxes_in_a_row(text: str) -> list[str]:
    """Contents of the last boxes with nothing between them but signs, or words that hold an `and`, `or` or comma: what a solution's gold is."""
    contents: list[str] = []
    after = len(text)
    for start, end, content in reversed(box_places(text)):
        between = text[end:after]
        if content is None or (contents and re.search(r"[A-Za-z]", between) and not re.search(r"\b(?:and|or)\b|,|;", between)):
            break
        contents.append(content)
        after = start
    return contents[::-1]


def _box_at(text: str, start: int) -> tuple[str | None, int]:
    """Content and end of the box that begins at `start`; None when it never closes."""
    opening = _OPENING.match(text, start)
    assert opening is not None
    if not text.startswith("{", opening.end()):
        bare = _BARE_BOX.match(text, opening.end())
        return (bare[0], bare.end()) if bare and opening[0][-1].isspace() else (None, opening.end())
    depth = 0
    for brace in _BRACE.finditer(text, opening.end()):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0 and brace[0] == "}":
            content = text[opening.end() + 1 : brace.start()].strip()
            inner = boxed(content) if content.startswith(("\\boxed{", "\\fbox{")) else content
            return inner, brace.end()
    return None, len(text)


def working(response: str) -> str:
    r"""What an answer works out before it gives its result: the think block where one holds something, else all before the result (the last fenced
    program, the last `\boxed{}`, `<answer>`, `####`, 'answer is' or 'answer:'), without the sign of mathematics that opens there. "" where it gives
    the result alone."""
    thought, closed, said = response.rpartition("</think>")
    inside = thought.partition("<think>")[2] if "<think>" in thought else thought
    if closed and inside.strip():
        return inside.strip()
    blocks = list(_FENCE.finditer(said))
    lower = said.lower()
    marks = [blocks[-1].start() if blocks else -1, max(said.rfind("\\boxed"), said.rfind("\\fbox"))]
    marks += [said.rfind("<answer>"), said.rfind("####"), max(lower.rfind("answer is"), lower.rfind("answer:"))]
    end = next((mark for mark in marks if mark >= 0), 0)
    return said[:end].rstrip(" \n\t$")


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
    return sentence.strip(" *").removeprefix("either ") or None


def program(text: str) -> str | None:
    """The last fenced block that is marked as Python or not marked at all."""
    blocks = [code for language, code in _FENCE.findall(text) if language.lower() in _PYTHON]
    return blocks[-1] if blocks and blocks[-1].strip() else None
