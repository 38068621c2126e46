"""Tuples, sets, intervals, unions, matrices, lists: what is the same thing and what is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from verifier_cases import problem

from pipelines.records import Outcome
from pipelines.verifiers import VerifierPool
from pipelines.verifiers.notation import clean, latex
from pipelines.verifiers.reading import parse
from pipelines.verifiers.shapes import equal
from pipelines.verifiers.text import boxes, boxes_in_a_row


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(2) as shared:
        yield shared


@pytest.mark.parametrize(
    ("text", "kind", "parts"),
    [
        ("5", "leaf", 0),
        ("(1, 2)", "tuple", 2),
        ("[1, 2)", "interval", 2),
        ("[1, 2, 3]", "tuple", 3),
        (r"\{1, 2\}", "set", 2),
        (r"\emptyset", "set", 0),
        ("1, 2 and 3", "list", 3),
        (r"3 \text{ or } 5", "list", 2),
        (r"(1,2), (3,4)", "list", 2),
        (r"(-\infty, 2) \cup (3, \infty)", "union", 2),
        (r"x < 2 \text{ or } x > 3", "union", 2),
        (r"0 \le x < 1", "interval", 2),
        (r"3 \pm \sqrt{2}", "list", 2),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "matrix", 2),
        (r"\left[\begin{matrix} 1 \\ 2 \end{matrix}\right]", "matrix", 2),
        (r"f(1, 2)", "leaf", 0),
        (r"\frac{1, 2}{3}", "leaf", 0),
    ],
)
def test_parse(text: str, kind: str, parts: int) -> None:
    shape = parse(text)
    assert (shape.kind, len(shape.parts)) == (kind, parts)


SAME = [
    ("(1, 2)", "(1,2)"),
    (r"\{1, 2, 3\}", "3, 1, 2"),
    ("[0, 1)", r"0 \le x < 1"),
    ("[0, 1)", r"1 > x \ge 0"),
    (r"(-\infty, 2)", "x < 2"),
    (r"(-\infty, 2]", "2 >= t"),
    (r"[-\infty, 2)", r"(-\infty, 2)"),
    (r"(-\infty, 2) \cup (3, \infty)", r"x > 3 \text{ or } x < 2"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}"),
    (r"2 \pm 3", "2-3, 2+3"),
]
OTHER = [
    ("(1, 2)", "(2, 1)"),
    ("(1, 2)", r"\{1, 2\}"),
    ("(1, 2)", "[1, 2]"),
    ("[0, 1)", r"0 \le x \le 1"),
    ("(1, 2)", "(1, 2, 3)"),
    ("3", "3, 5"),
    ("3, 5", "3"),
    (r"\{1, 1, 2\}", r"\{1, 2, 2\}"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"\emptyset", "0"),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), [(*pair, True) for pair in SAME] + [(*pair, False) for pair in OTHER])
def test_equal(gold: str, answer: str, expected: bool) -> None:
    assert equal(parse(gold), parse(answer), lambda one, other: one.replace(" ", "") == other.replace(" ", "")) is expected


def test_every_part_needs_a_partner_of_its_own() -> None:
    """a fits b1 and b2, c fits b1 only: the greedy choice of b1 for a must be undone."""
    fits = {("a", "b1"), ("a", "b2"), ("c", "b1")}
    assert equal(parse("a, c"), parse("b1, b2"), lambda one, other: (one, other) in fits)
    assert not equal(parse("c, c"), parse("b1, b2"), lambda one, other: (one, other) in fits)


def test_boxes_that_are_a_list() -> None:
    assert boxes(r"\boxed{1}, \boxed{2} and \boxed{3}") == "1, 2, 3"
    assert boxes(r"$\boxed{1} \quad \text{or} \quad \boxed{2}$") == "1, 2"
    assert boxes(r"\boxed{1} \boxed{2}") == "2"
    assert boxes(r"\boxed{4 \text{ or } \boxed{3}}") == r"4 \text{ or } \boxed{3}"
    assert boxes(r"\boxed{1}. Wait, \boxed{2}") == "2"
    assert boxes(r"\boxed{5} and \boxed{6") is None
    assert boxes_in_a_row(r"\boxed{1} of \boxed{\text{\boxed{2}}}") == [r"\text{\boxed{2}}"]
    assert boxes_in_a_row(r"\boxed{1} papers and \boxed{2} bins") == ["1", "2"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("**½**", "1⁄2".replace("⁄", "/")),
        ("√(x+1)", r"\sqrt{x+1}"),
        ("x² − 3", "x^{2} - 3"),
        (r"$\text{ (a) }$", "(a)"),
        ("7 }", "7"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_clean(written: str, expected: str) -> None:
    assert clean(written) == expected


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        ("sqrt(3)/2", r"\sqrt{3}/2"),
        (r"\sqrt3 + \frac34", r"\sqrt{3} + \frac{3}{4}"),
        (r"\frac{\pi}2", r"\frac{\pi}{2}"),
        ("2*x**3", r"2\cdot x^3"),
        ("e^(-2x)", "e^{-2x}"),
        (r"\operatorname{asin}(a)", r"\arcsin (a)"),
    ],
)
def test_latex(plain: str, expected: str) -> None:
    assert latex(plain) == expected


@pytest.mark.parametrize(
    ("gold", "response", "outcome"),
    [
        (r"\{\sqrt{8}, \frac{1}{\sqrt{2}}\}", r"\boxed{\frac{\sqrt2}{2}, 2\sqrt{2}}", Outcome.CORRECT),
        (r"(\sqrt{8}, 1)", r"\boxed{(1, 2\sqrt{2})}", Outcome.WRONG),
        ("[0, 2\\pi)", r"\boxed{0 \le \theta < 2\pi}", Outcome.CORRECT),
        ("y = 3x - 6", r"\boxed{y = 3(x - 2)}", Outcome.CORRECT),
        ("y = 3x - 6", r"\boxed{3x - y = 6}", Outcome.CORRECT),
        ("7", r"\boxed{n = 7}", Outcome.CORRECT),
        ("n = 7", r"\boxed{m = 7}", Outcome.WRONG),
        ("7", r"\boxed{7 = 8}", Outcome.WRONG),
        ("7", r"\boxed{\text{7 or 8}}", Outcome.WRONG),
        ("3 + 2i", r"\boxed{2I + 3}", Outcome.CORRECT),
        ("i^2", r"\boxed{-1}", Outcome.CORRECT),
        (r"\cos^2 t", r"\boxed{1 - \sin^2 t}", Outcome.CORRECT),
        (r"\cos^2 t", r"\boxed{1 - \sin^2 s}", Outcome.WRONG),
        ("4 - 9c", "-9c + 4", Outcome.CORRECT),
        ("4 - 9c", "4 - 9d", Outcome.WRONG),
        ("250", r"\boxed{250\text{ grams}}", Outcome.CORRECT),
        ("250", r"\boxed{250 grams of rice}", Outcome.CORRECT),
        ("250", r"\boxed{250 thousand}", Outcome.WRONG),
        ("250 m", r"\boxed{250 cm}", Outcome.WRONG),
        ("0.3", r"\boxed{30\%}", Outcome.CORRECT),
        (r"0.1\overline{6}", r"\boxed{\frac16}", Outcome.CORRECT),
        ("seventeen", r"\boxed{17}", Outcome.CORRECT),
        ("odd", r"\boxed{\text{not odd}}", Outcome.WRONG),
        ("12", r"The final answer is 11, as I said: \boxed{12}", Outcome.CORRECT),
        ("12", r"\boxed{3} each. Final Answer: The final answer is $12$. I hope it is correct.", Outcome.CORRECT),
        ("12", "<answer>12</answer>", Outcome.CORRECT),
        ("12", r"\boxed{It is about the number 12}", Outcome.WRONG),
        (r"\frac{1}{0}", r"\boxed{\frac{2}{0}}", Outcome.WRONG),
        ("|t|", r"\boxed{t}", Outcome.WRONG),
        (r"\ln(t^2)", r"\boxed{2 \ln t}", Outcome.CORRECT),
        (r"\sin 30^\circ", r"\boxed{\frac12}", Outcome.CORRECT),
        ("7:15", r"\boxed{7:15 \text{ a.m.}}", Outcome.CORRECT),
        ("7:15", r"\boxed{7:51}", Outcome.WRONG),
        ("D", r"\boxed{\textbf{(D)}\ 19}", Outcome.CORRECT),
        ("D", r"\boxed{\textbf{(C)}\ 19}", Outcome.WRONG),
        ("9", r"\boxed{\text{The answer is 9}}", Outcome.CORRECT),
        ("9", r"\boxed{9 \text{ perhaps}}", Outcome.WRONG),
        ("9", "4 + 5 makes nine.\nA: 9", Outcome.CORRECT),
    ],
)
def test_verdicts(pool: VerifierPool, gold: str, response: str, outcome: Outcome) -> None:
    verdict = pool.verify(problem(gold), response)
    assert verdict.outcome is outcome, verdict
