"""`math`: extraction, the exact path, the symbolic engine and its known false positives."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from verifier_cases import problem

from pipelines.records import Outcome
from pipelines.verifiers import Limits, VerifierPool, final_text
from pipelines.verifiers.arithmetic import compare
from pipelines.verifiers.notation import clean
from pipelines.verifiers.text import boxed, program, stated_answer


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(2) as shared:
        yield shared


def test_final_text_is_what_follows_the_last_think() -> None:
    assert final_text("<think>\\boxed{5}</think> So 12.") == " So 12."
    assert final_text("a</think>b<think>c</think>d") == "d"
    assert final_text("<think> still thinking \\boxed{12}") is None
    assert final_text("plain") == "plain"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{41} \boxed{42}", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\fbox{12}}", "12"),
        (r"\boxed 4", "4"),
        (r"\boxed{5} and then \boxed{6", None),
        ("no box", None),
    ],
)
def test_boxed(text: str, expected: str | None) -> None:
    assert boxed(text) == expected


def test_stated_answer_and_program() -> None:
    assert stated_answer("16-3=13\n#### 13\n") == "13"
    assert stated_answer("The answer is 3.5. Bye") == "3.5"
    assert program("```python\na\n```\ntext\n```\nb\n```\n") == "b\n"
    assert program("```bash\nls\n```") is None


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("7425000", "7,425,000", True),
        ("1000.99", "$1,000.99", True),
        ("18", r"\$18.00", True),
        ("0.5", r"\frac{1}{2}", True),
        (r"\frac{3}{4}", "3/4", True),
        (r"\frac12", r"\dfrac{2}{4}", True),
        (r"2\frac{1}{3}", r"\frac{7}{3}", True),
        (r"-2\frac{1}{3}", r"-\frac{5}{3}", False),
        ("0.5", r"50\%", True),
        ("9", r"9\%", False),
        (r"\frac{1}{3}", "0.333333", True),
        (r"\frac{1}{3}", "0.33", False),
        ("5", "4.9999999999999999999", False),
        ("12345678901234567890", "12345678901234567891", False),
        ("1500", r"1.5\times 10^3", True),
        ("3", "𝟑", True),
        ("-5", "−5", True),
        ("120", "120_3", False),
        ("1101_2", "1101_2", True),
        ("B", r"\text{(B)}", True),
        ("B", "A, B, C, D", False),
        ("x^2", "x^3", None),
    ],
)
def test_exact_comparison(gold: str, answer: str, expected: bool | None) -> None:
    assert compare(clean(gold), clean(answer)) is expected


def test_percent_and_units_are_the_datasets_to_say(pool: VerifierPool) -> None:
    def judged(gold: str, answer: str, **policy: str) -> bool:
        return pool.verify(problem(gold, **policy), f"\\boxed{{{answer}}}").correct

    assert judged("0.5", r"50\%") and not judged("50", r"50\%")
    assert judged("50", r"50\%", percent="ignore") and not judged("0.5", r"50\%", percent="ignore")
    assert judged("30", "30 cm") and judged("30 cm", "30") and not judged("30 cm", "30 kg")
    assert judged("30 cm", r"30 \text{ centimeters}") and judged("2 hours", "2 hrs") and not judged("2 hours", "2 minutes")
    assert judged("30 cm", "30 kg", units="ignore")
    assert judged("30 cm", "30.0 cm", units="strict") and not judged("30 cm", "30", units="strict")
    assert pool.verify(problem("1", units="loose"), r"\boxed{1}").outcome is Outcome.INFRASTRUCTURE


def test_exact_path_imports_no_engine() -> None:
    code = (
        "import sys; from pipelines.verifiers import verify; from pipelines.records import Problem;"
        "v = verify(Problem('i','math','p','1/2','expression','math'), r'\\boxed{0.5}');"
        "assert v.correct and not {'sympy', 'math_verify', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("gold", "response", "outcome"),
    [
        ("(x+1)^2", r"\boxed{x^2+2x+1}", Outcome.CORRECT),
        (r"\frac{1}{\sqrt{2}}", r"\boxed{\frac{\sqrt{2}}{2}}", Outcome.CORRECT),
        ("x^2-1", r"\boxed{(x-1)(x+2)}", Outcome.WRONG),
        (r"\frac{1}{2^{99}}", r"\boxed{\frac{1}{2^{98}}}", Outcome.WRONG),
        ("3x+4y+14=0", r"\boxed{3*x-1*y+13=0}", Outcome.WRONG),
        ("12", "The sum is $5+7$, which gives us $12$ in total and this sentence goes on for a while so that it is no bare answer.", Outcome.CORRECT),
        ("12", "", Outcome.UNPARSABLE),
        ("12", r"\boxed{ }", Outcome.UNPARSABLE),
        ("12", r"<think> \boxed{12}", Outcome.UNPARSABLE),
        ("1", r"\boxed{9^9^9^9}", Outcome.UNPARSABLE),
        ("0", r"\boxed{lambda: 0}", Outcome.UNPARSABLE),
        ("1", r"\boxed{" + "1+" * 2000 + "1}", Outcome.UNPARSABLE),
    ],
)
def test_verdicts(pool: VerifierPool, gold: str, response: str, outcome: Outcome) -> None:
    assert pool.verify(problem(gold), response).outcome is outcome


def test_require_boxed(pool: VerifierPool) -> None:
    assert pool.verify(problem("12"), "The answer is 12.").correct
    assert pool.verify(problem("12", require_boxed=True), "The answer is 12.").outcome is Outcome.UNPARSABLE


def test_engine_over_its_limit_is_killed_and_siblings_are_unharmed() -> None:
    fine, hang = r"\boxed{x^2+2x+1}", r"\boxed{(7^{99999})^{99999}}"
    with VerifierPool(1, limits=Limits(engine_seconds=1.0)) as pool:
        assert pool.verify(problem("(x+1)^2"), fine).correct
        started = time.monotonic()
        verdicts = pool.verify_batch([(problem("1"), hang), (problem("(x+1)^2"), fine + " again")])
        assert time.monotonic() - started < 12
        assert verdicts[0].outcome is Outcome.TIMEOUT
        assert verdicts[1].correct
        assert pool.counts["timeout"] >= 1


@pytest.mark.parametrize(
    ("gold", "response", "outcome"),
    [
        ("18", "15 + 3 = 18\n#### 18", Outcome.CORRECT),
        ("18", "#### 15 + 3", Outcome.WRONG),
        ("18", "15 + 3 = 15 + 3\n#### 15 + 3 = 18", Outcome.WRONG),
        ("18", "15 + 3 = 15 + 3 = 15 + 3 =", Outcome.WRONG),
        ("18", "So she has 18 of them in the end.", Outcome.UNPARSABLE),
        ("18", "\\boxed{36/2}", Outcome.WRONG),
        ("18", "\\boxed{\\frac{36}{2}}", Outcome.WRONG),
        ("18", "\\boxed{2 \\cdot 9}", Outcome.WRONG),
        ("18", "\\boxed{\\sqrt{324}}", Outcome.WRONG),
        ("18", "#### $18.00", Outcome.CORRECT),
        ("18", "#### 18 apples", Outcome.CORRECT),
        ("18", "\\boxed{eighteen}", Outcome.CORRECT),
        ("1,800", "#### 1800", Outcome.CORRECT),
        ("0.5", "#### 1/2", Outcome.WRONG),
        ("1/2", "#### 1/2", Outcome.CORRECT),
        ("1/2", "\\boxed{\\frac{1}{2}}", Outcome.CORRECT),
        ("1/2", "#### 0.5", Outcome.CORRECT),
        ("1.5", "#### 1 1/2", Outcome.CORRECT),
        ("300000", "\\boxed{3 \\times 10^5}", Outcome.CORRECT),
        ("x + 1", "\\boxed{1 + x}", Outcome.CORRECT),
    ],
)
def test_a_number_is_asked_for_and_not_the_way_to_it(pool: VerifierPool, gold: str, response: str, outcome: Outcome) -> None:
    """RL on a real model came to answer `15 + 3`, which equals 18."""
    assert pool.verify(problem(gold, form="number"), response).outcome is outcome
