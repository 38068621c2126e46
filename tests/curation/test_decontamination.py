"""Which overlaps drop a row: worked examples, a naive implementation to compare with, real variants."""

import json
import random
import re
import unicodedata
from pathlib import Path

import pytest
from one_step import alone

from pipelines.config.curation import DecontaminationSettings
from pipelines.curation import engines
from pipelines.curation.decontamination import Hit, Index
from pipelines.curation.words import Words
from pipelines.errors import UserError
from pipelines.models.packaged import installed
from pipelines.records import Problem

DATA = Path(__file__).parents[3] / "shared" / "data"
PLAIN = {"n": 13, "rule": "any", "siblings": "drop", "paraphrases": None}
SEARCH: dict[str, object] = {"n": 8, "rule": "containment", "threshold": 0.5, "siblings": "keep", "paraphrases": {}}
BENCH = "What is the sum of the first ten positive integers"


def hits(benchmark: list[str], rows: list[str], **settings: object) -> list[str | None]:
    found = Index(benchmark, DecontaminationSettings.model_validate(PLAIN | settings)).hits(rows)
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


def test_hit_names_the_item_that_is_there_most_and_the_longest_shared_run() -> None:
    index = Index(["one two three six", "zero one two three four five", "six seven eight nine"], DecontaminationSettings.model_validate(PLAIN | {"n": 3}))
    row = "so one two three four five stop six seven eight"
    assert index.hits([row]) == [Hit(1, "any", "one two three four five")]


def test_step_writes_item_rule_and_span_and_ignores_wrappers() -> None:
    benchmarks = {"held": [problem(BENCH + " and why?")], "empty": []}
    wrapped = BENCH + ", and why? Let's think step by step and output the final answer within \\boxed{}."
    kept, dropped = alone("decontaminate", [problem("Something else", 1), problem(wrapped, 2)], benchmarks)
    assert [row.source_id for row in kept] == ["mine/1"]
    assert (dropped[0].reason, dropped[0].detail) == ("benchmark_exact", "held mine/0 (same words): " + BENCH.lower() + " and why")
    assert alone("decontaminate", [problem("Anything")]) == ([problem("Anything")], [])


def naive_words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"\\(left|right|,|quad)(?![a-z])", " ", text)
    return re.findall(r"[^\W\d_]+|\d+", text)


def test_agrees_with_a_naive_implementation_on_random_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BATCH", 7)
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
        given = [problem(text, number) for number, text in enumerate(rows)]
        _, dropped = alone("decontaminate", given, {"held": [problem(text) for text in benchmark]}, decontamination=PLAIN | {"n": n})
        assert sorted(int(row.problem.problem_id) for row in dropped) == expected
        assert 0 < len(expected) < len(rows)


def test_words_do_not_run_over_the_end_of_a_text() -> None:
    assert hits(["a b c d"], ["x a b", "c d y", "z"], n=4) == [None, None, None]
    assert hits(["a b", "c d"], ["x a b c d"], n=4) == [None]
    assert hits(["p a b c d\0 q"], ["a b c d"], n=4) == ["any"]


def test_order_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [problem(f"{BENCH} {i}" if i % 3 else f"row {i}", i) for i in range(30)]
    settings = {"siblings": "drop"}
    first = alone("decontaminate", rows, {"held": [problem(BENCH)]}, decontamination=settings)
    monkeypatch.setattr(engines, "BATCH", 4)
    assert alone("decontaminate", rows[::-1], {"held": [problem(BENCH)]}, decontamination=settings) == first and len(first[1]) == 20


def test_a_paragraph_may_be_an_item() -> None:
    item = "Compute $\\dbinom{31}{28}$."
    rows = [item + "\n\nSolution: it is 4495.", "Now: " + item + " Thanks.", "4495 it is.\n\n" + item, "Compute it."]
    assert hits([item], rows) == ["exact", None, "exact", None]


TEMPLATE = "A train travels {} miles in {} hours. At the same rate, how many additional hours would it take to travel an additional {} miles?"


def test_a_sibling_of_the_template_is_another_problem_and_a_rewriting_is_the_same() -> None:
    item = TEMPLATE.format(1200, 3, 2000)
    rows = {
        TEMPLATE.format(270, 3, 180): None,
        TEMPLATE.format("twelve hundred", "three", "2,000"): "containment",
        item.replace("train", "plane").replace("rate", "speed").replace("additional miles", "miles more"): "reworded",
        item.replace("Find", "find") + " Explain.": "containment",
        "Note 7 trains. " + item + " (A) 5 (B) 6": "containment",
        TEMPLATE.format(1200, 3, -2000): None,
    }
    assert hits([item], list(rows), **SEARCH) == list(rows.values())
    assert hits([item], [TEMPLATE.format(1201, 3, 2000)], n=8, rule="containment") == ["containment"]


@pytest.mark.parametrize(
    ("item", "row"),
    [
        ("Find the smallest value of the expression $x^2 + 6x - 7$ over all of the real numbers $x$.", "$x^2 + 6x - 7$->$x^2 + 6x + 7$"),
        ("Let $x$ be a real number such that $x = -3$ and find the value of the expression $x^3$ then.", "-3->3"),
        ("In the triangle below the value of $\\sin \\angle RPQ$ is known to be 7/25, what is then $\\cos \\angle RPS$?", "cos->tan"),
        ("How many of the first one hundred positive integers are divisible by all of the numbers 3, 4 and 5?", "hundred->thousand"),
    ],
)  # fmt: skip
def test_one_sign_symbol_or_word_of_number_makes_another_problem(item: str, row: str) -> None:
    other = item.replace(*row.split("->"))
    assert other != item
    assert hits([item], [other], **SEARCH) == [None]
    assert hits([item], ["So: " + item], **SEARCH) == ["containment"]


def test_a_rewording_with_another_number_for_an_answer_is_another_problem() -> None:
    item = "Bob, Tom and Sally share 2 pizzas of 12 slices at dinner. How many slices does each of them get to eat?"
    row = "Bob, Tom and Sally share 2 pizzas of 12 slices at dinner. How many slices are left when each has had 3 of them?"
    near = row.replace(" when each has had 3 of them", " of them")
    index = Index([item], DecontaminationSettings.model_validate(SEARCH | {"n": 13}), ["8"])
    assert [hit and hit.rule for hit in index.hits([near, near, near, near], ["15", "8.0", "eight", ""])] == [None, "reworded", "reworded", "reworded"]


def test_the_form_of_the_answer_makes_no_other_problem() -> None:
    item = "A set of three points is chosen randomly from the grid shown, and what is the probability that they lie on one line?"
    row = item + " Express your answer in the form \\(\\frac{k}{m}\\) and find the value of \\(k + m\\)."
    assert hits([item], [row.replace("chosen randomly", "randomly chosen")], **SEARCH) == ["containment"]
    assert hits([row], [row.replace("answer", "anwser").replace("three", "3")], **SEARCH) == ["containment"]


def test_a_short_item_inside_a_row_must_be_there_wholly() -> None:
    item = "What is the number of square centimeters in the area of this trapezoid?"
    row = "A square has a diagonal of 10 centimeters. What is the number of square centimeters in the area of the square?"
    assert hits([item], [row], **SEARCH) == [None] and hits([item], [row], n=8, rule="containment") == ["containment"]
    assert hits([item], ["Look: 3 and 4. " + item], **SEARCH) == ["containment"]
    letters = "Determine the number of ways to arrange the letters of the word {}."
    assert hits([letters.format("ELLIPSE")], [letters.format("TARTAR")], **SEARCH) == [None]


def test_the_item_that_is_no_sibling_counts_even_when_a_sibling_is_nearer() -> None:
    item, sibling = TEMPLATE.format(1200, 3, 2000), TEMPLATE.format(1200, 3, 2001)
    for order in ([item, sibling], [sibling, item]):
        index = Index(order, DecontaminationSettings.model_validate(SEARCH))
        hit = index.hits(["Please! " + item])[0]
        assert hit is not None
        assert order[hit.item] == item


def load(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / "decontam" / f"{name}.jsonl").read_text().strip().split("\n")]


@pytest.mark.skipif(not DATA.exists(), reason="the shared real data is not here")
def test_real_variants_and_leaks_are_found_and_other_problems_are_not() -> None:
    items = load("benchmark_items")
    known = {item["id"] for item in items}
    index = Index([item["text"] for item in items], DecontaminationSettings())

    variants = [row for row in load("contaminated") if row["benchmark_item_id"] in known and row["kind"] != "paraphrase_llm"]
    found = index.hits([row["text"] for row in variants])
    assert len(variants) == 278 and sum(hit is not None for hit in found) / 278 >= 0.97

    negatives = load("hard_negatives")
    wrong = [row["same_template"] for row, hit in zip(negatives, index.hits([row["text"] for row in negatives]), strict=True) if hit]
    assert wrong.count(False) <= 0.01 * 211 and wrong.count(True) <= 0.1 * 65

    leaks = load("natural_hits")
    found = index.hits([row["text"] for row in leaks])
    assert all(
        hit is not None and items[hit.item]["id"] == row["benchmark_item_id"]
        for hit, row in zip(found, leaks, strict=True)
        if row["label"] == "contaminated"
    )
    assert sum(hit is not None for hit, row in zip(found, leaks, strict=True) if row["label"] != "contaminated") <= 3


@pytest.mark.skipif(not DATA.exists(), reason="the shared real data is not here")
@pytest.mark.skipif(not installed("all-MiniLM-L6-v2"), reason="the extra `embedding` is not installed")
def test_paraphrases_are_found_by_embedding() -> None:
    items = {item["id"]: item["text"] for item in load("benchmark_items")}
    rows = [row for row in load("contaminated") if row["kind"] == "paraphrase_llm"]
    benchmark = list(dict.fromkeys(row["benchmark_item_id"] for row in rows))
    index = Index([items[name] for name in benchmark], DecontaminationSettings.model_validate({"paraphrases": {"embedding": "all-MiniLM-L6-v2"}}))
    found = index.hits([row["text"] for row in rows])
    assert sum(hit is not None and benchmark[hit.item] == row["benchmark_item_id"] for row, hit in zip(rows, found, strict=True)) >= 0.9 * len(rows)
    hit = next(hit for hit in found if hit)
    assert hit.rule == "paraphrase" and hit.cosine is not None and 0.8 <= hit.cosine < 1 and len(hit.span.split()) >= 2
    assert index.describe(hit) == f"cosine {hit.cosine:.3f} and the same numbers and symbols"
    assert index.hits([rows[0]["text"]]) == found[:1]  # whatever stands beside a row, its vector is the same


def test_an_embedding_model_that_is_not_there_is_named() -> None:
    settings = DecontaminationSettings.model_validate({"paraphrases": {"embedding": "/nowhere/at/all"}})
    with pytest.raises(UserError, match="embedding model '/nowhere/at/all'"):
        Index([BENCH], settings)
