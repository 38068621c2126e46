"""The compiled scan against the few lines that say what a word is."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.curation.words import Grams, Words, words_of

TASKS = Path(__file__).parents[3] / "shared" / "data" / "tasks"
PIECES = [
    *"abzAZ059 \n\t,.{}[]\\/!^_$()-",
    "\n\n", ",000", "{,}123", ",\\!456", "1,234,567", "[asy]", "[/asy]", "[ASY]", "\\left", "\\Left(", "\\leftarrow", "\\dfrac", "\\tfrac12",
    "\\dfr", "\\text{if}", "\\textbf", "\\circ", "caf\u00e9", "\u0416", "\u2167", "\u00bd", "\u2019", "\ufb01", "\u0130", "\u1e9e", "\u2460", "\0", "e\u0301", "\U0001d465",
]  # fmt: skip


def known(words: Words) -> dict[str, int]:
    """Hash of every word of a batch, by the word; equal words have equal hashes and others others."""
    table: dict[str, int] = {}
    for text in range(len(words)):
        for word, value in zip(words.of(text), words.hashes[words.starts[text] : words.starts[text + 1]].tolist(), strict=True):
            assert table.setdefault(word, value) == value
    assert len(set(table.values())) == len(table)
    return table


def test_the_scan_agrees_with_the_definition_on_random_texts() -> None:
    rng = random.Random(11)
    texts = ["".join(rng.choices(PIECES, k=rng.randrange(0, 25))) for _ in range(6000)]
    words = Words(texts)
    assert len(known(words)) > 900
    assert [words.of(i) for i in range(50)] == [words_of(text) for text in texts[:50]]


@pytest.mark.skipif(not TASKS.exists(), reason="the shared real data is not here")
def test_the_scan_agrees_with_the_definition_on_real_texts() -> None:
    texts = [json.loads(line)["question"] for name in ("math500", "deepscaler_sub1209", "aime24") for line in (TASKS / f"{name}.jsonl").open()]
    assert len(known(Words(texts))) > 3000


def test_slices_of_a_column_and_empty_batches() -> None:
    column = pa.chunked_array([["a b", "c d"], ["e", "f g h"]])
    assert [Words(column.slice(1, 3)).of(i) for i in range(3)] == [["c", "d"], ["e"], ["f", "g", "h"]]
    assert Words(column.slice(1, 2)).lengths.tolist() == [2, 1]
    empty = Words([])
    assert len(empty) == 0 and len(empty.hashes) == 0 and empty.grams(2)[0].tolist() == []
    assert Words(["", "  "]).lengths.tolist() == [0, 0]


def test_rolled_hashes_are_those_of_the_runs_themselves() -> None:
    words = Words(["a b c a b c d", "x a b c"])
    owner, hashes = words.grams(3)
    assert owner.tolist() == [0] * 5 + [1] * 2
    assert hashes[0] == hashes[3] == hashes[6] and len(set(hashes.tolist())) == 5
    assert Words(["a b c"]).wholes()[0] == hashes[0]
    assert words.grams(3, np.array([1]))[1].tolist() == hashes[5:].tolist()


def test_paragraphs_of_texts_with_several() -> None:
    words = Words(["one two\n\nthree", "a b c", "\n\nd\n\n\n\ne f\n \nstill"])
    text, lengths, hashes = words.paragraphs()
    assert text.tolist() == [0, 0, 2, 2] and lengths.tolist() == [2, 1, 1, 3]
    assert hashes[0] == Words(["One, two!"]).wholes()[0]


def test_occurrences_and_the_least_share() -> None:
    index = Grams(Words(["p q r s", "q r s t", "lone"]), 3)
    assert index.distinct.tolist() == [2, 2, 0]
    rows = Words(["p q r s t", "x q r s y z w v", "p q"])
    text, item, _ = index.find(rows)
    assert list(zip(text.tolist(), item.tolist(), strict=True)) == [(0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 1)]
    assert set(index.find(rows, least=0.5)[0].tolist()) == {0}
    assert set(index.find(rows, np.array([1]))[0].tolist()) == {1}


def test_words_without_numbers() -> None:
    words = Words(["three nuts 3 4x", "12 12"]).without_numbers(frozenset({"three"}))
    assert words.lengths.tolist() == [2, 0]
    assert words.hashes.tolist() == Words(["nuts x"]).hashes.tolist()
