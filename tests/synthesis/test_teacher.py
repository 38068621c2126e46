"""A teacher's problems: written in the style of weak ones, answered by consensus, every failure with its reason."""

import re

import pytest
from chat_endpoint import Answer, serve

from pipelines.chat import ChatClient, Reply
from pipelines.config.curation import TeacherSettings
from pipelines.errors import UserError
from pipelines.records import Dropped, Problem, problem_id
from pipelines.synthesis.teacher import elect, propose
from pipelines.synthesis.weakness import Topic, topics_of

SETTINGS = TeacherSettings(model="wise", votes=5, agree=3, timeout=5.0, retries=1)


def graded(number: int, rate: float, **fields: object) -> Problem:
    given = {"domain": "math", "answer_type": "integer", "verifier": "math", "topics": ("sums",), "source": "s"} | fields
    return Problem(problem_id=f"{number:04d}", prompt=f"Exemplar {number}: 1+{number}?", answer=str(number + 1), pass_rate=rate, pass_n=8, **given)


def weak(*rows: Problem) -> list[Topic]:
    return [topic for topic in topics_of(rows, 0.6) if topic.pass_rate < 0.6]


def client(url: str) -> ChatClient:
    return ChatClient(url, "wise", timeout=2.0, retries=1, pause=0.01)


def box(*answers: str | None) -> list[Reply]:
    return [Reply(None, "HTTP 500") if answer is None else Reply(f"<think>\\boxed{{9}}</think> so \\boxed{{{answer}}}") for answer in answers]


@pytest.mark.parametrize(
    ("answers", "agree", "gold"),
    [
        (("7", "7", "8", "7", "9"), 3, "7"),
        (("\\frac{1}{2}", "0.5", "1/2", "3", None), 3, "\\frac{1}{2}"),  # equal in value: one party, in its first spelling
        (("7", "7", "7", "7", "8", "8", "8", "1"), 4, "7"),
    ],
)
def test_consensus_is_the_gold(answers: tuple[str | None, ...], agree: int, gold: str) -> None:
    elected = elect(graded(1, 0.0), box(*answers), agree)
    assert isinstance(elected, Problem) and elected.answer == gold and elected.problem_id == problem_id(elected.prompt, gold)


@pytest.mark.parametrize(
    ("answers", "agree", "reason", "detail"),
    [
        (("7", "7", "8", "8", "1"), 2, "tie", "'7' x 2, '8' x 2, '1' x 1"),
        (("7", "7", "8", "9", "1"), 3, "no_consensus", "'7' x 2, '8' x 1, '9' x 1, '1' x 1; 3 must agree"),
        (("7", "7", "7", "8", "8", "9", "1", "2"), 4, "no_consensus", "'7' x 3, '8' x 2, '9' x 1, '1' x 1, '2' x 1; 4 must agree"),
        ((None, None), 1, "no_votes", "HTTP 500"),
    ],
)
def test_no_consensus_no_problem(answers: tuple[str | None, ...], agree: int, reason: str, detail: str) -> None:
    elected = elect(graded(1, 0.0), box(*answers), agree)
    assert isinstance(elected, Dropped) and (elected.reason, elected.detail) == (reason, detail)


def test_solutions_without_a_box_do_not_vote() -> None:
    elected = elect(graded(1, 0.0), [Reply("It is 7."), Reply("<think>\\boxed{7}"), *box("5")], 2)
    assert isinstance(elected, Dropped) and elected.detail == "'5' x 1; 2 must agree"


def test_teacher_writes_and_votes() -> None:
    def answer(prompt: str, number: int) -> Answer:
        if "<problem>" in prompt:
            shown = re.findall(r"Exemplar (\d+)", prompt)
            return Answer(f"<think>hm</think>Sure: <problem>\nNew from {'-'.join(shown)}: 2+2?\n</problem>")
        return Answer("\\boxed{4}")

    rows = [graded(i, 0.0) for i in range(1, 6)] + [graded(9, 1.0)]
    with serve(answer) as endpoint:
        proposals = propose(weak(*rows), 4, client(endpoint.url), SETTINGS, seed=1)
        again = propose(weak(*rows), 4, client(endpoint.url), SETTINGS, seed=1)
        other = propose(weak(*rows), 4, client(endpoint.url), SETTINGS, seed=2)
    assert [problem.answer for problem in proposals.problems] == ["4"] * 4 and not proposals.dropped
    assert proposals.problems == again.problems and proposals.problems != other.problems
    for problem in proposals.problems:
        shown = re.findall(r"\d+", problem.prompt.split(":")[0])
        assert len(set(shown)) == 3 and "9" not in shown and problem.parents == tuple(f"{int(i):04d}" for i in shown)
        assert (problem.source, problem.licence, problem.topics) == ("synthesis/teacher", "written by wise", ("sums",))
        assert problem.solution is None and problem.pass_rate is None
    assert len({problem.source_id for problem in proposals.problems}) == 4
    assert proposals.proposed == {("math", ("sums",)): 4}


def test_one_failed_request_costs_one_proposal() -> None:
    def answer(prompt: str, number: int) -> Answer:
        if "Exemplar 1:" in prompt:
            return Answer(status=500)
        if "Exemplar 2:" in prompt:
            return Answer("I would rather not.")
        return Answer("<problem>What is 2+2?</problem>") if "<problem>" in prompt else Answer("\\boxed{4}")

    rows = [graded(i, 0.0, topics=(f"topic {i}",)) for i in (1, 2, 3)]
    with serve(answer) as endpoint:
        proposals = propose(weak(*rows), 3, client(endpoint.url), SETTINGS, seed=1)
    assert [problem.topics for problem in proposals.problems] == [("topic 3",)]
    assert {item.problem.topics[0]: (item.reason, item.detail) for item in proposals.dropped} == {
        "topic 1": ("request_failed", "HTTP 500 (2 tries)"),
        "topic 2": ("no_problem", "nothing between <problem> and </problem> in 'I would rather not.'"),
    }


def test_a_teacher_that_never_answers_is_an_error() -> None:
    with (
        serve(lambda prompt, number: Answer(status=403)) as endpoint,
        pytest.raises(UserError, match="none of 3 requests; the first failed with: HTTP 403"),
    ):
        propose(weak(graded(1, 0.0)), 3, client(endpoint.url), SETTINGS, seed=1)


def test_programs_are_not_voted_on() -> None:
    with serve(lambda prompt, number: Answer("no")) as endpoint:
        proposals = propose(weak(graded(1, 0.0, verifier="code", domain="code")), 3, client(endpoint.url), SETTINGS, seed=1)
    assert not endpoint.requests and not proposals.problems and "verifier code cannot be voted on" in proposals.notes[0]
