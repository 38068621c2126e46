"""Plain text to go on pre-training with: files of documents, and examples of them.

A document is ended by the end token and cut into pieces of the longest length; each piece begins with the last token of the one before, so every
token but a document's first is predicted, and once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines import row_files
from pipelines.config.stage import FILES, TEXT
from pipelines.errors import UserError
from pipelines.row_files import Malformed
from pipelines.sft.examples import Example

FIELD, SENTENCES = "text", "texts"
"""Where a row of a JSONL or Parquet file holds its document, whole or as sentences that follow each other."""
ANSWERS = ("answer", "gold")
"""A row with one of these is a problem, wherever its prompt stands."""


def holds(path: Path) -> bool:
    """Whether a file holds documents: text, or rows with `text` and no answer, by its schema or its first row."""
    if path.suffix == TEXT:
        return True
    if path.suffix not in FILES or not path.is_file():
        return False
    names = row_files.first(path)
    return (FIELD in names or SENTENCES in names) and not any(answer in names for answer in ANSWERS)


def read(path: Path) -> dict[str, str]:
    """Digest of each distinct document -> its text; a file of text is one.

    Raises:
        UserError: no such file, a row without text, or no document at all; says which.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    found: dict[str, str] = {}
    for text in _texts(path):
        if text.strip():
            found[hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]] = text
    if not found:
        raise UserError(f"{path.name}: holds no document")
    return found


def examples(tokenizer: Any, documents: Mapping[str, str], longest: int) -> list[Example]:
    """The pieces of all documents. longest: tokens of one."""
    found = []
    tokenised: list[list[int]] = tokenizer(list(documents.values()))["input_ids"] if documents else []
    for of, ids in zip(documents, tokenised, strict=True):
        whole = ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]
        found += [Example.after(piece, 1, of) for _, piece in cut(whole, longest)]
    return found


def cut(ids: list[int], longest: int) -> Iterator[tuple[int, list[int]]]:
    """The pieces of a document, each with where it begins."""
    return ((start, ids[start : start + longest]) for start in range(0, len(ids) - 1, longest - 1))


def _texts(path: Path) -> Iterator[str]:
    """The text of each row; of a file of text, its own."""
    if path.suffix == TEXT:
        yield path.read_text(encoding="utf-8", errors="replace")
        return
    field = FIELD if FIELD in row_files.first(path) else SENTENCES
    for number, row in row_files.rows(path, [field]):
        try:
            if isinstance(row, Malformed):
                raise row
            text = row_files.value(row, field)
            if field == SENTENCES and isinstance(text, list) and all(isinstance(sentence, str) for sentence in text):
                text = "".join(text)
            if not isinstance(text, str):
                raise Malformed(f"{field}: expected {'a string' if field == FIELD else 'a list of strings'}, got {type(text).__name__}")
        except Malformed as wrong:
            raise UserError(f"{path.name}:{number}: {wrong}; a file that is read must be read whole") from None
        yield text
