"""Answers in parties of equal value."""

from pipelines.records import Problem
from pipelines.verifiers.voting import equal_answers, parties


def problem(verifier: str, args: str = "{}") -> Problem:
    return Problem("p", "math", "?", "7", "expression", verifier, args)


def test_each_answer_gets_the_first_that_its_verifier_holds_for_equal() -> None:
    options = '{"options": {"A": "Paris", "B": "Rome"}}'
    groups = [
        (problem("math"), ["0.5", "8", "\\frac{1}{2}", " 8 ", "x+1", "1+x", "50"]),
        (problem("math"), []),
        (problem("exact"), ["A cat", "a  cat.", "a dog"]),
        (problem("choice", options), ["A", "Rome", "(a)", "B"]),
        (problem("code"), ["return 1", "return  1", "return 1"]),
    ]
    assert equal_answers(groups) == [[0, 1, 0, 1, 4, 4, 6], [], [0, 0, 2], [0, 1, 0, 1], [0, 1, 0]]
    assert equal_answers(groups[::-1])[::-1] == equal_answers(groups)


def test_parties_come_by_size_and_of_equal_size_the_earlier_first() -> None:
    assert parties(problem("math"), ["3", "1/2", "4", "0.5", "9"]) == [["1/2", "0.5"], ["3"], ["4"], ["9"]]
