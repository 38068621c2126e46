"""Which overlaps drop a row: worked examples, a naive implementation to compare with, real variants."""

import json
import random
import re
import unicodedata
from pathlib import Path

import pytest

from pipelines.config.curation import CurationSettings, DecontaminationSettings
from pipelines.curation import decontamination
from pipelines.curation.decontamination import Hit, Index, decontaminate
from pipelines.curation.steps import Inputs
from pipelines.curation.words import Words
from pipelines.records import Problem

DATA = Path(__file__).parents[3] / "shared" / "data"
BENCH = "What is the sum of the first ten positive integers"


def hits(benchmark: list[str], rows: list[str], **settings: object) -> list[str | None]:
    found = Index(benchmark, DecontaminationSettings.model_validate(settings)).hits(rows)
    return [hit and hit.rule for hit in found]


def problem(prompt: str, number: int = 0) -> Problem:
    return Problem(str(number), "math", prompt, "1", "integer", "math", source="mine", source_id=f"mine/{number}")


def test_words_ignore_case_punctuation_latex_layout_and_figures() -> None:
    texts = [
        r"Let $\left( 3,\,X \right)$; \dfrac12 of 1,234 is\quad\text{odd}.[asy] draw((0,0)--(1,1)); [/asy] caf\u00e9",
        "",
        "5cm \u2019s \u2167",
    ]
    assert [Words(texts).of(i) for i in range(3)] == [
        ["let", "3", "x", "frac", "12", "of", "1234", "is", "odd", "caf", "u", "00", "e", "9"],
        [],
        ["5", "cm", "s", "viii"],
    ]
    assert Words(["caf\u00e9 \u0416"]).of(0) == ["caf\u00e9", "\u0436"]


def test_open_r1_example() -> None:
    rows = ["Please compute: the  SUM of the first ten positive integers now", "Please compute: the SUM of the first nine positive integers now"]
    assert hits([BENCH], rows, n=8) == ["any", None]
    assert hits([BENCH], rows[:1], n=9) == [None]


def test_short_texts_match_exactly_or_as_a_whole() -> None:
    seven = "Compute the sum of two plus three"
    assert hits([seven], [seven + "?", "Now " + seven], n=8) == ["exact", None]  # open-r1 misses the first
    nine = "Compute the sum of two plus three and four"
    assert hits([nine], ["Please! " + nine + ", and explain."], n=13) == ["whole"]
    assert hits(["Please! " + nine + ", and explain it to me at length."], [nine], n=13) == ["whole"]
    assert hits([nine], ["Compute the sum of two plus three and five, and explain."], n=13) == [None]
    assert hits(["", "..."], ["", "?"], n=3) == [None, None]


def test_containment_counts_shares_of_either_side() -> None:
    item = "a b c d e f g h i j"  # eight 3-grams
    long = "a b c d e f " + " ".join(f"w{i}x" for i in range(60))  # has four of them
    assert hits([item], [long], n=3, rule="containment", threshold=0.5) == ["containment"]
    assert hits([item], [long], n=3, rule="containment", threshold=0.51) == [None]
    short = "q a b c d"  # two of its three 3-grams are the item's, two of the item's eight are its own
    assert hits([item], [short], n=3, rule="containment", threshold=0.66) == ["containment"]
    assert hits([item], [short], n=3, rule="containment", threshold=0.67) == [None]


def test_hit_names_the_strongest_item_and_the_longest_shared_run() -> None:
    index = Index(["one two three four", "zero one two three four five", "six seven eight"], DecontaminationSettings(n=3))
    row = "so one two three four five stop six seven eight"
    assert index.hits([row]) == [Hit(1, "any", "one two three four five")]


def test_step_writes_item_rule_and_span_and_ignores_wrappers() -> None:
    benchmarks = {"held": [problem(BENCH + " and why?")], "empty": []}
    wrapped = BENCH + ", and why? Let's think step by step and output the final answer within \\boxed{}."
    inputs = Inputs(CurationSettings(), benchmarks)
    kept, dropped = decontaminate([problem("Something else", 1), problem(wrapped, 2)], inputs)
    assert [row.source_id for row in kept] == ["mine/1"]
    assert (dropped[0].reason, dropped[0].detail) == ("benchmark_exact", "held mine/0 (same words): " + BENCH.lower() + " and why")
    assert decontaminate([problem("Anything")], Inputs()) == ([problem("Anything")], [])


def naive_words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"\\(left|right|,|quad)(?![a-z])", " ", text)
    return re.findall(r"[^\W\d_]+|\d+", text)


def test_agrees_with_a_naive_implementation_on_random_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decontamination, "BATCH", 7)
    rng = random.Random(3)
    vocabulary = ["a", "b", "Ab", "12", "1", "2", "x", "\u00e9", "\\left(", "$", ".", "\u2019"]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randrange(0, 30))) for _ in range(400)]
    benchmark, rows = texts[:40], texts[40:]
    for n in (3, 5):
        grams = {tuple(words[i : i + n]) for words in map(naive_words, benchmark) for i in range(len(words) - n + 1)}
        whole = [words for words in map(naive_words, benchmark) if words]
        expected = [
            number
            for number, text in enumerate(rows)
            if naive_words(text) in whole or any(tuple(naive_words(text)[i : i + n]) in grams for i in range(len(naive_words(text)) - n + 1))
        ]
        inputs = Inputs(CurationSettings(decontamination=DecontaminationSettings(n=n)), {"held": [problem(text) for text in benchmark]})
        _, dropped = decontaminate([problem(text, number) for number, text in enumerate(rows)], inputs)
        assert [int(row.problem.problem_id) for row in dropped] == expected
        assert 0 < len(expected) < len(rows)


def test_words_do_not_run_over_the_end_of_a_text() -> None:
    assert hits(["a b c d"], ["x a b", "c d y", "z"], n=4) == [None, None, None]
    assert hits(["a b", "c d"], ["x a b c d"], n=4) == [None]
    assert hits(["p a b c d\0 q"], ["a b c d"], n=4) == ["any"]


def test_order_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [problem(f"{BENCH} {i}" if i % 3 else f"row {i}", i) for i in range(30)]
    inputs = Inputs(CurationSettings(decontamination=DecontaminationSettings(n=8)), {"held": [problem(BENCH)]})
    kept, dropped = decontaminate(rows, inputs)
    monkeypatch.setattr(decontamination, "BATCH", 4)
    kept_again, dropped_again = decontaminate(rows[::-1], inputs)
    assert kept_again[::-1] == kept and dropped_again[::-1] == dropped and len(dropped) == 20


@pytest.mark.skipif(not DATA.exists(), reason="the shared real data is not here")
def test_real_variants_are_found_and_real_leaks_too() -> None:
    def load(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (DATA / "decontam" / f"{name}.jsonl").read_text().strip().split("\n")]

    items = load("benchmark_items")
    known = {item["id"] for item in items}
    variants = [row for row in load("contaminated") if row["benchmark_item_id"] in known]
    negatives = [row for row in load("hard_negatives") if not row["same_template"]]
    index = Index([item["text"] for item in items], DecontaminationSettings(n=8, rule="containment", threshold=0.5))
    for kind in ("verbatim", "case_punct", "whitespace", "unicode_lookalike", "truncated", "embedded", "mcq_conversion"):
        texts = [row["text"] for row in variants if row["kind"] == kind]
        assert texts and all(index.hits(texts)), kind
    assert not any(index.hits([row["text"] for row in negatives]))
    leaks = load("natural_hits")
    found = index.hits([row["text"] for row in leaks])
    assert sum(hit is not None and items[hit.item]["id"] == row["benchmark_item_id"] for hit, row in zip(found, leaks, strict=True)) >= 39
