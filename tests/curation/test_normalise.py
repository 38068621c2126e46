"""One way of writing each row, without changing what it says."""

import json
from pathlib import Path

import pytest

from pipelines.curation.normalise import canonical_answer, normalised, plain, tidy, without_marks, without_wrapper
from pipelines.records import Problem, problem_id

DATA = Path(__file__).parents[3] / "shared" / "data" / "tasks"
CORE = "Find $x$."
DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer (without quotes) "
    'where $Answer is the answer to the problem.\n\nFind $x$.\n\nRemember to put your answer on its own line after "Answer:".'
)


def row(prompt: str = CORE, answer: str = "1", **fields: object) -> Problem:
    return Problem(
        **{"problem_id": "", "domain": "math", "answer_type": "expression", "verifier": "math", "prompt": prompt, "answer": answer} | fields
    )


@pytest.mark.parametrize(
    "prompt",
    [
        DAPO,
        CORE + " Let's think step by step and output the final answer within \\boxed{}.",
        CORE + "\nPlease reason step by step, and put your final answer within \\boxed{}.",
        DAPO + " Let's think step by step and output the final answer within \\boxed{}.",
    ],
)
def test_wrappers_of_known_datasets_come_off(prompt: str) -> None:
    assert without_wrapper(prompt) == CORE


def test_text_like_a_wrapper_stays() -> None:
    for prompt in ("Explain step by step how to solve $x=1$.", "Remember to put your answer in the box."):
        assert without_wrapper(prompt) == prompt


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("$18$", "18"),
        ("\\$18", "18"),
        ("$1,234.50", "1234.50"),
        ("1,234,567", "1234567"),
        ("1{,}234", "1234"),
        ("1,\\!234", "1234"),
        ("-2,000.", "-2000"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\(x^2\\)", "x^2"),
        ("$$\\boxed{7}$$.", "7"),
        ("\u22125", "-5"),
        # what must stay
        ("1, 234", "1, 234"),
        ("(1,234)", "(1,234)"),
        ("12,34", "12,34"),
        ("$1$ and $2$", "$1$ and $2$"),
        ("\\boxed{1} or \\boxed{2}", "\\boxed{1} or \\boxed{2}"),
        ("0.5", "0.5"),
        ("1, 2, ...", "1, 2, ..."),
        ("$x", "$x"),
        ("50\\%", "50\\%"),
    ],
)
def test_canonical_answer(given: str, canonical: str) -> None:
    assert canonical_answer(given) == canonical
    assert canonical_answer(canonical) == canonical


def test_unicode_becomes_plain_only_where_nothing_is_lost() -> None:
    assert plain("\uff21\uff11\ufb01\u00a0x\u200b\u2003y") == "A1fi x y"
    assert plain("e\u0301") == "\u00e9"
    for kept in ("x\u00b2", "\u00bd", "\u2460", "\u211d", "\u00b4"):
        assert plain(kept) == kept


def test_tidy_keeps_paragraphs_and_drops_blanks() -> None:
    assert tidy("  a \t b  \r\n\r\n\n\n c \n") == "a b\n\nc"


def test_calculator_marks_and_final_line_go_and_the_text_stays() -> None:
    assert without_marks("She sold 48/2 = <<48/2=24>>24 clips.\nIn all <<48+24=72>>72.\n#### 72") == "She sold 48/2 = 24 clips.\nIn all 72."
    assert without_marks("for x << 3 and y >> 2") == "for x << 3 and y >> 2"


def test_programs_and_puzzles_keep_their_layout() -> None:
    program = "def f(x):\n    return  x  \n\n\n    # \uff21\n"
    result = normalised(row("  indented\n    more  \r\n", program, answer_type="program", verifier="code"))
    assert (result.prompt, result.answer) == ("  indented\n    more", "def f(x):\n    return  x\n\n\n    # \uff21")
    maze = "a  b\n.  #"
    assert normalised(row(maze, "1,000.", answer_type="text", verifier="logic")).prompt == maze
    assert normalised(row(maze, "1,000.", answer_type="text", verifier="logic")).answer == "1,000."


def test_problem_id_follows_the_new_text_and_a_second_pass_changes_nothing() -> None:
    once = normalised(row(DAPO, "$1,000$", solution="<<1+1=2>>2\n#### 2"))
    assert (once.prompt, once.answer, once.solution, once.problem_id) == (CORE, "1000", "2", problem_id(CORE, "1000"))
    assert normalised(once) == once


@pytest.mark.skipif(not DATA.exists(), reason="the shared real data is not here")
def test_real_rows_settle_in_one_pass_and_lose_all_marks() -> None:
    for name in ("gsm8k_train", "math500", "dapo_math_17k", "deepscaler_sub1209"):
        lines = (DATA / f"{name}.jsonl").read_text().strip().split("\n")[:1500]
        for item in map(json.loads, lines):
            once = normalised(row(item["question"], str(item["answer"]), solution=item.get("solution")))
            assert normalised(once) == once
            assert "step by step and output" not in once.prompt
            if name == "gsm8k_train":
                assert once.solution and "<<" not in once.solution and "####" not in once.solution
