"""Refusals at any place of an answer (DeRTa, Refuse Whenever You Feel Unsafe, arXiv 2407.09121): rows {prompt, chosen, rejected}, a request with its
refusal and with an answer that it should not have had, and the two examples that each row makes.

    prefix          request, the first k words of the rejected answer, refusal: the loss is of the refusal
    transition      request, rejected answer: at some of its tokens the refusal's first token is what should stand there

k is even in 1 .. words - 2, and every third row has none. As in the released code a transition has ceil(N / 20) of its N tokens drawn, and those that
are of the request count for nothing; N counts the row's own tokens here, there those of the padded batch, so the share of the answer is the same.
There they are drawn anew when a row comes again, here once. The refusal is tokenised by itself, so it begins with the same token wherever it stands.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import prompting, row_files, seeding
from pipelines.config.common import PromptSettings
from pipelines.config.training import RefusalSettings
from pipelines.errors import UserError
from pipelines.records import Problem, problem_id
from pipelines.row_files import Malformed
from pipelines.sft.conversations import framing
from pipelines.sft.examples import Example

FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Refusal:
    """of: hash of the request."""

    of: str
    prompt: str
    chosen: str
    rejected: str


def holds(path: Path) -> bool:
    """Whether a file's first row has a better and a worse answer."""
    return set(FIELDS[1:]) <= set(row_files.first(path))


def read(path: Path, tokenizer: Any) -> list[Refusal]:
    """The rows of a JSONL or Parquet file.

    Raises:
        UserError: a row lacks a text, or its text would open or close a turn; says which row.
    """
    return list(_read(path, framing(tokenizer)))


def _read(path: Path, frames: list[str]) -> Iterator[Refusal]:
    for number, row in row_files.rows(path):
        try:
            if isinstance(row, Malformed):
                raise row
            texts = [_text(row, name, frames) for name in FIELDS]
        except Malformed as wrong:
            raise UserError(f"{path.name}:{number}: {wrong}") from None
        yield Refusal(problem_id(texts[0], ""), *texts)


def _text(row: dict[str, Any], name: str, frames: list[str]) -> str:
    text = row_files.value(row, name)
    if not isinstance(text, str) or not text.strip():
        raise Malformed(f"{name}: expected a text, got {text!r}"[:200])
    if found := next((token for token in frames if token in text), None):
        raise Malformed(f"{name}: holds {found}, which frames turns: its text could open or close one; remove it")
    return text


def examples(tokenizer: Any, refusals: list[Refusal], settings: RefusalSettings, template: PromptSettings, key: tuple[object, ...]) -> list[Example]:
    """Both examples of each row; of a transition without a token none. key: of what is drawn."""
    found = []
    for place, row in enumerate(refusals):
        draw = seeding.generator(*key, row.of, place)
        prompt = prompting.prompt_ids(tokenizer, Problem(row.of, "", row.prompt, "", "text", "exact"), template)
        refusal = _ids(tokenizer, row.chosen)
        words = 0 if place % settings.bare_every == settings.bare_every - 1 else _words(row.rejected, draw)
        begun = [*prompt, *_ids(tokenizer, first_words(row.rejected, words))]
        found.append(Example.after([*begun, *refusal, tokenizer.eos_token_id], len(begun), row.of))
        whole = [*prompt, *_ids(tokenizer, row.rejected)]
        spans = tuple((at, at + 1, 1.0) for at in places(len(whole), settings.share, draw) if at >= len(prompt))
        found += [Example(whole, spans, row.of, refusal[0])] if spans else []
    return found


def _words(text: str, draw: np.random.Generator) -> int:
    words = len(text.split())
    return int(draw.integers(1, words - 1)) if words > 2 else 0


def first_words(text: str, words: int) -> str:
    """A text up to the end of so many words."""
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    return text[: ends[words - 1]] if words else ""


def places(tokens: int, share: float, draw: np.random.Generator) -> list[int]:
    """Which of so many tokens are drawn: this share of them, one at least; with a share of 0 none."""
    count = max(1, math.ceil(tokens * share)) if share else 0
    return sorted(draw.permutation(tokens)[:count].tolist())


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
