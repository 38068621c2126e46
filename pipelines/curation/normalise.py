r"""One way of writing each row: characters, whitespace, the wrappers that datasets put round a prompt, the answer's form.

Unicode is composed (NFC) and compatibility characters become plain ones only where no meaning is lost: wide letters,
ligatures, odd spaces. Full NFKC would turn x² into x2 and ½ into 1⁄2, which are other problems.
Programs, and prompts in which layout carries meaning (programs, puzzles), keep their inner whitespace.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute

from pipelines.curation.steps import Apply, Batch, Inputs, Passed, Rows
from pipelines.records import Problem, problem_id

pc: Any = pyarrow.compute  # its functions are made when it is imported
WRAPPERS = (
    # DAPO-Math-17k (arXiv 2503.14476)
    re.compile(
        r"\A\s*Solve the following math problem step by step\. The last line of your response should be of the form "
        r"Answer: \$?\\?\$?Answer \(without quotes\) where \$?\\?\$?Answer is the answer to the problem\.\s*"
    ),
    re.compile(r'\s*Remember to put your answer on its own line after "Answer:"\.\s*\Z'),
    # DeepScaleR (rllm)
    re.compile(r"\s*Let's think step by step and output the final answer within \\boxed\{\}\.?\s*\Z"),
    # Qwen2.5-Math and everything evaluated with its template
    re.compile(r"\s*Please reason step by step, and put your final answer within \\boxed\{\}\.?\s*\Z"),
)
"""Instructions about the form of a response, taken off before and after the problem itself."""

_MARKS = ("step by step", "Remember")
"""Every wrapper holds one of these."""
_PLAIN = {ord(c): None for c in "\u200b\u2060\ufeff\u00ad"} | {0x2212: "-"}
_SAFE_FORMS = ("<wide>", "<narrow>", "<noBreak>", "<compat>")
_CALCULATOR = re.compile(r"<<[-+*/().,=\d\s%$]*>>")
_FINAL_LINE = re.compile(r"\n?####[^\n]*\s*\Z")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:(?:,|\{,\}|\\,|,\\!)\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def normalise(rows: Rows, inputs: Inputs) -> Apply:
    """Every row rewritten, with the problem id of its new text; a row of which nothing is left goes as `empty`."""
    return _rewritten


def _rewritten(batch: Batch) -> Passed:
    changed = [normalised(problem) for problem in batch.problems]
    empty = {
        place: ("empty", f"nothing is left of the {'answer' if row.prompt else 'prompt'}")
        for place, row in enumerate(changed)
        if not (row.prompt and row.answer)
    }
    return Passed(empty, Batch.of([batch.problems[place] if place in empty else row for place, row in enumerate(changed)], batch.rows))


def normalised(problem: Problem) -> Problem:
    """One row in its normal form. Doing it twice changes nothing."""
    program = problem.answer_type == "program"
    layout = program or problem.verifier == "logic"
    prompt = without_wrapper(_trimmed(problem.prompt) if layout else tidy(problem.prompt))
    if program:
        answer, solution = _trimmed(problem.answer), problem.solution
    elif problem.answer_type == "text":
        answer, solution = tidy(problem.answer), problem.solution
    else:
        answer, solution = canonical_answer(problem.answer), problem.solution and without_marks(problem.solution)
    return replace(problem, problem_id=problem_id(prompt, answer), prompt=prompt, answer=answer, solution=solution)


def without_wrapper(prompt: str) -> str:
    """The prompt without the instructions of known datasets."""
    while any(mark in prompt for mark in _MARKS):
        bare = prompt
        for wrapper in WRAPPERS:
            bare = wrapper.sub("", bare)
        if bare == prompt:
            break
        prompt = bare
    return prompt


def without_wrappers(prompts: Sequence[str] | pa.ChunkedArray) -> pa.Array:
    """`without_wrapper` of each, as a column."""
    column = pa.array(prompts, pa.string()) if isinstance(prompts, Sequence) else prompts.combine_chunks()
    likely = pc.or_(*(pc.match_substring(column, mark) for mark in _MARKS))
    bare = [without_wrapper(text) for text in column.filter(likely).to_pylist()]
    return pc.replace_with_mask(column, likely, pa.array(bare, column.type))


def tidy(text: str) -> str:
    """Plain characters, single spaces, no blanks at the ends of lines, at most one empty line in a row."""
    lines = [re.sub(r"[ \t\f\v]+", " ", line).strip() for line in plain(text).splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def plain(text: str) -> str:
    """Composed Unicode, compatibility characters made plain where that is safe, zero-width ones gone, minus signs as hyphens."""
    if text.isascii():
        return text
    return "".join(map(_plain_character, unicodedata.normalize("NFC", text.translate(_PLAIN))))


def canonical_answer(answer: str) -> str:
    r"""A mathematical answer without its dressing: $...$, \boxed{}, a full stop, a currency sign before and commas within a number."""
    answer = tidy(answer)
    while (bare := _undressed(answer)) != answer:
        answer = bare
    if _THOUSANDS.fullmatch(answer):
        answer = re.sub(r"[,{}\\!]", "", answer)
    return answer


def without_marks(solution: str) -> str:
    """GSM8K's calculator marks `<<48/2=24>>` and its last line `#### 72` taken out; the text round them stays as it is."""
    return _FINAL_LINE.sub("", _CALCULATOR.sub("", solution)).strip()


def _undressed(answer: str) -> str:
    """One layer less, or the same."""
    for start, end in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("\\boxed{", "}")):
        inner = answer[len(start) : len(answer) - len(end)]
        if len(answer) > len(start) + len(end) and answer.startswith(start) and answer.endswith(end) and _whole(inner, start):
            return inner.strip()
    for sign in ("\\$", "$"):
        number = answer.removeprefix(sign).strip()
        if number != answer and (_NUMBER.fullmatch(number) or _THOUSANDS.fullmatch(number)):
            return number
    return answer[:-1].rstrip() if answer.endswith(".") and not answer.endswith("..") else answer


def _whole(inner: str, start: str) -> bool:
    """Whether the mark at the start closes at the end and not before: `$1$ and $2$` is no single formula."""
    if start != "\\boxed{":
        return start.replace("\\", "") not in inner if start.startswith("$") else start not in inner
    depth = 0
    for character in inner:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0


def _trimmed(text: str) -> str:
    """Unix line ends, no blanks at line ends, no empty lines at the ends; indentation stays."""
    return "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")).strip("\n")


@functools.lru_cache(maxsize=65536)
def _plain_character(character: str) -> str:
    form, _, parts = unicodedata.decomposition(character).partition(" ")
    if form not in _SAFE_FORMS or (parts.startswith("0020 ")):  # a space with an accent: the accent would fall on what precedes it
        return character
    return unicodedata.normalize("NFKC", character)
