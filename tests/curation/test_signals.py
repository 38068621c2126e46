"""Rule signals: Big-Math's worked examples, near misses, and what they say of real sets whose kind is known."""

import json
from pathlib import Path
from typing import get_args

import pytest

from pipelines.config.curation import FilterSettings, Signal
from pipelines.curation.filters import objection
from pipelines.curation.signals import SIGNALS
from pipelines.records import Problem

SHARED = Path(__file__).parents[3] / "shared" / "data" / "tasks"


def row(prompt: str, answer: str = "1", solution: str | None = None, **fields: object) -> Problem:
    given = {"domain": "math", "answer_type": "expression", "verifier": "math"} | fields
    return Problem(problem_id="x", prompt=prompt, answer=answer, solution=solution, **given)


@pytest.mark.parametrize(
    ("name", "problem", "has"),
    [
        ("proof", row("Prove that 2+2=4"), True),
        ("proof", row("Let n be odd. Show that n^2 is odd."), True),
        ("proof", row("Find a waterproof coat's price, improved by 10%."), False),
        ("proof", row("The graph shows that 3 people came. How many did not?"), False),
        ("multiple_choice", row("Which? (A)1 (B)2 (C)3 (D)4"), True),
        ("multiple_choice", row("D then C then B then A"), False),
        ("multiple_choice", row("(D) 1 (C) 2 (B) 3 (A) 4"), False),
        ("multiple_choice", row(r"Which? $\textbf{(A)}\ 1\qquad\textbf{(B)}\ 2\qquad\textbf{(C)}\ 3\qquad\textbf{(D)}\ 4$"), True),
        ("multiple_choice", row("Points A, B, C and D lie on a circle. Find AB."), False),
        ("true_false", row("Is it so?", "True"), True),
        ("true_false", row("How many are true?", "3"), False),
        ("yes_no", row("Anna has 3 nuts.\nDoes she have more than 2?", "she does"), True),
        ("yes_no", row("Find it.", "No."), True),
        ("yes_no", row("Is 3 prime? If so, give its square.", "9"), False),
        ("yes_no", row("What is the remainder when\n$$2^{10}$$\nis divided by 9?", "it"), False),
        ("yes_no", row("Does such a number exist?", "1234"), False),
        ("multi_part", row("A number is nice if:\n1. It is even.\n2. Its digits grow.\nHow many are nice?"), False),
        ("multi_part", row("Let\n(i) x > 0 and (ii) y > 0. Find the least x + y."), False),
        ("multiple_choice", row("A game:\n1. Ann goes.\n2. Bob goes.\n3. Ann goes.\n4. They go on until nothing is left, and who has more coins then wins it all. Who?"), False),
        ("multiple_choice", row("Pick one:\n1) two\n2) three\n3) four\n4) five"), True),
        ("proof", row("You may use the formula without a proof. Find the sum."), False),
        ("hyperlink", row("Solve x+1=2, see http://a.b"), True),
        ("hyperlink", row("Solve", solution=r"\href{a}{b}"), True),
        ("hyperlink", row("the curl operator"), False),
        ("multi_part", row("(i) Find x. (ii) Find y."), True),
        ("multi_part", row("(a) Find x.\n(b) Find y."), True),
        ("multi_part", row("1. Find x.\n2. Find y."), True),
        ("multi_part", row("Let f(a) be 2 and f(b) be 3."), False),
        ("multi_part", row("There are 1. 5 and 2. 5 litres"), False),
        ("empty_answer", row("x", r"\boxed{}"), True),
        ("empty_answer", row("x", "0"), False),
        ("foreign", row("Найдите сумму первых десяти чисел"), True),
        ("foreign", row("求前十个正整数的和是多少以及它们的平均数"), True),
        ("foreign", row("Ein Bäcker backt jeden Morgen zwölf Brote und verkauft davon drei an seine besten Kunden aus dem Nachbardorf"), True),
        ("foreign", row(r"$x^2+y^2=1$"), False),
        ("foreign", row("Compute sin 60"), False),
        ("foreign", row("Yesterday Sarah collected 50 aluminum cans while Lara collected 30. How many fewer cans did they collect today?"), False),
        ("figure", row("In the figure below, find x."), True),
        ("figure", row("[asy] draw((0,0)--(1,1)); [/asy]"), True),
        ("figure", row("Figure out how many there are."), False),
        ("not_integer", row("x", "3/4"), True),
        ("not_integer", row("x", "-1,234"), False),
    ],
)
def test_signals(name: str, problem: Problem, has: bool) -> None:
    assert SIGNALS[name](problem) is has


def test_params_know_every_signal() -> None:
    assert set(get_args(Signal)) == set(SIGNALS)


def test_what_goes_says_why() -> None:
    settings = FilterSettings(prompt_chars=(0, 100), drop=("proof", "yes_no"))
    assert objection(row("Prove that 1 = 1."), settings) == ("proof", "Asks to prove or show something.")
    assert objection(row("What is 1?"), settings) is None


@pytest.mark.parametrize(
    ("args", "reason"),
    [({"asserts": ["a", "b"]}, None), ({"asserts": ["a"]}, "too_few_tests"), ({"stdin_tests": {"inputs": ["1"] * 9, "outputs": ["1"] * 9}}, "too_many_tests"),
     ({"entry_point": "f", "tests": [{}, {}]}, None), ({"stdin_tests": [{}, {}, {}]}, None)],
)  # fmt: skip
def test_code_needs_enough_tests(args: dict, reason: str | None) -> None:
    problem = row("Write f.", verifier="code", verifier_args=json.dumps(args))
    found = objection(problem, FilterSettings(prompt_chars=(0, 100), tests=(2, 8)))
    assert (found and found[0]) == reason


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data beside the project")
@pytest.mark.parametrize(
    ("file", "field", "name", "least", "most"),
    [
        ("gsm8k_train", "question", "proof", 0.0, 0.001),
        ("gsm8k_train", "question", "foreign", 0.0, 0.001),
        ("gsm8k_train", "question", "multiple_choice", 0.0, 0.001),
        ("gsm8k_train", "question", "multi_part", 0.0, 0.005),
        ("math500", None, "foreign", 0.0, 0.01),
        ("cladder_sample", None, "yes_no", 0.9, 1.0),
    ],
)
def test_shares_of_real_sets(file: str, field: str | None, name: str, least: float, most: float) -> None:
    rows = [json.loads(line) for line in (SHARED / f"{file}.jsonl").open()]
    field = field or next(key for key in ("prompt", "question", "problem") if key in rows[0])
    share = sum(SIGNALS[name](row(str(r[field]), str(r["answer"]))) for r in rows) / len(rows)
    assert least <= share <= most
