"""Steps that ask an endpoint, against a real server on loopback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_endpoint import Answer, serve
from one_step import alone

from pipelines.chat import ChatClient, Replies
from pipelines.config.curation import CurationSettings
from pipelines.curation.judging import KEYS
from pipelines.curation.run import curate
from pipelines.errors import UserError
from pipelines.records import Problem, problem_id

OPTIONS = ["three", "four", "5", "6"]


def row(prompt: str, answer: str = "4", **fields: object) -> Problem:
    given = {"domain": "math", "answer_type": "expression", "verifier": "math", "source": "s", "source_id": prompt[:12]} | fields
    return Problem(problem_id=problem_id(prompt, answer), prompt=prompt, answer=answer, **given)


def client(url: str, replies: Replies | None = None) -> ChatClient:
    return ChatClient(url, "wise", timeout=5.0, retries=1, pause=0.01, concurrency=1, replies=replies)


def choice(prompt: str, letter: str = "C", **fields: object) -> Problem:
    return row(prompt, letter, verifier="choice", answer_type="text", verifier_args=json.dumps({"options": OPTIONS}), **fields)


def rewriting(question: str = "How many legs are left?", answer: str = "5", verdict: str = "accept", **changed: str) -> Callable[[str, int], Answer]:
    """An endpoint that rewrites and then reviews."""

    def reply(prompt: str, number: int) -> Answer:
        if "was rewritten" in prompt:
            return Answer(json.dumps({"verdict": verdict, "issues": "too vague", "open_question": question + " Now.", "answer": answer}))
        return Answer("<think>hm {}</think> Here: " + json.dumps(dict.fromkeys(KEYS, "-") | {"open_question": question, "answer": answer} | changed))

    return reply


def test_a_choice_becomes_an_open_question_with_its_parent() -> None:
    closed, other = choice("Legs? (A) three (B) four (C) 5 (D) 6", topics=("t",), solution="C, clearly"), row("What is 2+2?")
    with serve(rewriting()) as endpoint:
        kept, dropped = alone("reformulate", [closed, other], client=client(endpoint.url))
    opened = next(problem for problem in kept if problem.parents)
    assert other in kept and dropped == [] and len(endpoint.requests) == 2
    assert (opened.prompt, opened.answer, opened.verifier, opened.verifier_args, opened.parents, opened.solution, opened.topics) == (
        "How many legs are left?", "5", "math", "{}", (closed.problem_id,), None, ("t",),
    )  # fmt: skip
    assert opened.problem_id == problem_id(opened.prompt, "5")
    assert "C (5)" in endpoint.requests[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (rewriting(question="N/A"), "cannot be an open question"),
        (rewriting(question="Is it (A) or (B)?"), "still names options"),
        (rewriting(answer="(C)"), "still names options"),
        (rewriting(answer="6"), "the new answer '6' is not the correct option '5'"),
        (rewriting(verdict="reject"), "the review says 'too vague'"),
        (rewriting(surplus="key"), "must have exactly the keys"),
        (lambda prompt, number: Answer("no object"), "holds no JSON object"),
    ],
)
def test_what_cannot_be_opened_goes_with_its_reason(reply: Callable[[str, int], Answer], why: str) -> None:
    with serve(reply) as endpoint:
        kept, dropped = alone("reformulate", [choice("Legs? (A) three (B) four (C) 5 (D) 6")], client=client(endpoint.url))
    assert kept == [] and dropped[0].reason == "not_reformulated" and why in dropped[0].detail


def test_a_corrected_rewriting_is_checked_again() -> None:
    with serve(rewriting(verdict="correct")) as endpoint:
        kept, _ = alone("reformulate", [choice("Legs? (A) three (B) four (C) 5 (D) 6")], client=client(endpoint.url))
    assert kept[0].prompt == "How many legs are left? Now."


def voting(answers: dict[str, list[str]]) -> Callable[[str, int], Answer]:
    asked: dict[str, int] = {}

    def reply(prompt: str, number: int) -> Answer:
        name = prompt.split(maxsplit=1)[0]
        asked[name] = asked.get(name, 0) + 1
        return Answer(f"So \\boxed{{{answers[name][(asked[name] - 1) % len(answers[name])]}}}")

    return reply


def test_consensus_must_carry_the_gold() -> None:
    rows = [row("right one", "1/2"), row("wrong one", "3"), row("split one", "3"), row("code one", verifier="code", domain="code")]
    answers = {"right": ["0.5", "\\frac12", "0.5", "7", "1/2"], "wrong": ["4"], "split": ["3", "3", "5", "6", "7"]}
    with serve(voting(answers)) as endpoint:
        kept, dropped = alone("consensus", rows, client=client(endpoint.url), consensus={"votes": 5, "agree": 3})
    assert {problem.prompt for problem in kept} == {"right one", "code one"} and len(endpoint.requests) == 15
    assert {item.problem.prompt: (item.reason, item.detail) for item in dropped} == {
        "wrong one": ("consensus_against_gold", "'4' x 5; the gold is '3'"),
        "split one": ("no_consensus", "'3' x 2, '5' x 1, '6' x 1, '7' x 1; 3 must agree"),
    }


def test_grades_are_averaged_and_banded() -> None:
    rows = [row("easy one"), row("middle one"), row("unrated one"), row("out one")]
    answers = {"easy": ["1"], "middle": ["4", "5", "5", "5", "6", "6"], "unrated": ["7.3"], "out": ["11"]}

    def reply(prompt: str, number: int) -> Answer:
        return rate(prompt.rsplit("\n\n", 1)[1], number)

    rate = voting(answers)
    with serve(reply) as endpoint:
        kept, dropped = alone("grade", rows, client=client(endpoint.url), grading={"samples": 6, "band": [5, 10]})
    assert [problem.prompt for problem in kept] == ["middle one"] and kept[0].difficulty == pytest.approx(31 / 60)  # 5.17 of 10
    assert {item.problem.prompt: item.reason for item in dropped} == {
        "easy one": "rated_too_easy",
        "unrated one": "not_rated",
        "out one": "not_rated",
    }


def test_rows_without_a_solution_get_the_first_right_one() -> None:
    """A right one must end with ####: what stands before is the solution. Thinking is none of it; who has a solution is not asked."""
    said = {
        "first": ["<think>\nIs it 5?\n</think>\n2 + 2 = 4\n#### 4"],
        "second": ["2 + 2 = 5\n#### 5", "2 + 2 = 4\nso\n#### 4.0"],
        "third": ["#### 4", "the answer is 4"],
        "fourth": ["2 + 2 = 5\n#### 5", "2 + 2 = 3\n#### 3"],
    }
    rows = [row(f"{name} one") for name in said] + [row("known one", solution="by heart"), row("code one", verifier="code", domain="code")]

    def reply(prompt: str, number: int) -> Answer:
        name = prompt.split(maxsplit=1)[0]
        return Answer(said[name].pop(0))

    with serve(reply) as endpoint:
        kept, dropped = alone("solve", rows, client=client(endpoint.url), solving={"tries": 2})
    assert dropped == [] and len(endpoint.requests) == 1 + 2 + 2 + 2 and all("####" in r["messages"][0]["content"] for r in endpoint.requests)
    assert {problem.prompt: problem.solution for problem in kept} == {
        "first one": "2 + 2 = 4", "second one": "2 + 2 = 4\nso", "third one": None, "fourth one": None, "known one": "by heart", "code one": None,
    }  # fmt: skip
    assert sorted({r["seed"] for r in endpoint.requests}) == [0, 1]


def test_a_row_that_is_never_answered_ends_nothing() -> None:
    """After the first round it is the only one left, and every request of the second fails."""
    with serve(lambda prompt, number: Answer(status=400) if prompt.startswith("bad") else Answer("2 + 2 = 4\n#### 4")) as endpoint:
        kept, dropped = alone("solve", [row("bad one"), row("good one")], client=client(endpoint.url), solving={"tries": 2})
    assert dropped == [] and {problem.prompt: problem.solution for problem in kept} == {"bad one": None, "good one": "2 + 2 = 4"}


def test_a_question_must_hold_the_problem() -> None:
    with pytest.raises(ValueError, match=r"solving.*\n.*\{prompt\} is missing"):
        CurationSettings.model_validate({"solving": {"prompt": "Solve it."}})


@pytest.mark.parametrize("step", ["reformulate", "consensus", "grade", "solve"])
def test_without_an_endpoint_a_step_fails_before_the_others_or_is_skipped_where_params_say_so(step: str) -> None:
    settings: dict[str, object] = {"steps": ["normalise", step]}
    with pytest.raises(UserError, match=f"curation: {step}: asks the OpenAI-compatible endpoint that TOUCHSTONE_TEACHER_URL names"):
        curate([row("What is 2+2?")], {}, CurationSettings.model_validate(settings))
    curated = curate([row("What is 2+2?")], {}, CurationSettings.model_validate(settings | {"endpoint": {"missing": "skip"}}))
    assert len(curated.kept) == 1
    assert curated.ledger[1]["skipped"] == "TOUCHSTONE_TEACHER_URL is not set, and curation.endpoint.missing is skip"


def test_a_dead_endpoint_is_an_error_and_a_failed_request_a_reason() -> None:
    with serve(lambda prompt, number: Answer(status=400)) as endpoint, pytest.raises(UserError, match="answered none of 8 requests.*HTTP 400"):
        alone("consensus", [row("one")], client=client(endpoint.url))
    with serve(lambda prompt, number: Answer(status=400) if prompt.startswith("bad") else Answer("\\boxed{4}")) as endpoint:
        kept, dropped = alone("consensus", [row("bad one"), row("good one")], client=client(endpoint.url))
    assert [problem.prompt for problem in kept] == ["good one"] and (dropped[0].reason, dropped[0].detail) == ("no_votes", "HTTP 400")


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    rows = [row("first one"), row("other one")]
    path = tmp_path / "replies.sqlite"
    with serve(lambda prompt, number: Answer(f"\\boxed{{{4 + number % 3}}}")) as endpoint:
        first = alone("consensus", rows, client=client(endpoint.url, Replies(path)), consensus={"votes": 4, "agree": 1})
        assert len(endpoint.requests) == 8
        assert alone("consensus", rows, client=client(endpoint.url, Replies(path)), consensus={"votes": 4, "agree": 1}) == first
        assert len(endpoint.requests) == 8
        alone("consensus", rows, client=client(endpoint.url, Replies(path)), consensus={"votes": 5, "agree": 1})
        assert len(endpoint.requests) == 10  # the fifth vote of each is new
