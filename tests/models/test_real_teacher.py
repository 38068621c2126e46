"""A real teacher behind llama.cpp, where it has been fetched: it solves, judges and writes through what the stages use."""

import json
from dataclasses import replace

import pytest

from pipelines.chat import ChatClient
from pipelines.config.curation import CurationSettings, TeacherSettings
from pipelines.curation.run import curate
from pipelines.models.cache import cached, is_cached
from pipelines.models.known import known_model
from pipelines.models.serving import Serving, served
from pipelines.records import Outcome, Problem, problem_id
from pipelines.synthesis import teacher
from pipelines.synthesis.weakness import topics_of
from pipelines.verifiers import judge, verify

NAME = "qwen2.5-coder-1.5b-instruct"
pytestmark = pytest.mark.skipif(not is_cached(known_model(NAME)), reason=f"{NAME} has not been fetched: `touchstone models get {NAME}`")


def problem(prompt, answer, **fields):
    given = {"domain": "math", "answer_type": "integer", "verifier": "math", "source": "s", "source_id": prompt[:9], "topics": ("pears",)} | fields
    return Problem(problem_id=problem_id(prompt, answer), prompt=prompt, answer=answer, **given)


SUM = problem("Mia has 17 pears and buys 25 more. How many pears does she have?", "42", pass_rate=0.0, pass_n=4)


@pytest.fixture(scope="module")
def client():
    pytest.importorskip("xllamacpp", reason="the extra `llamacpp` is not installed")
    with served(cached(known_model(NAME)), NAME, Serving(slots=2, context=1024)) as url:
        yield ChatClient(url, NAME, timeout=300.0)


def test_it_solves_what_the_rules_can_check(client):
    wrong = replace(SUM, answer="41", problem_id=problem_id(SUM.prompt, "41"), prompt=SUM.prompt + " ")
    settings = CurationSettings.model_validate({"steps": ["solve"], "endpoint": {"temperature": 0.0, "max_tokens": 200}, "solving": {"tries": 1}})
    kept = {row.answer: row.solution for row in curate([SUM, wrong], {}, settings, client=client).kept}
    assert kept["41"] is None and kept["42"] is not None and "17" in kept["42"] and "####" not in kept["42"]


def test_its_marks_can_be_read(client, monkeypatch):
    """Not that they are right: benchmarks/teacher.py says how often they are."""
    monkeypatch.setenv(judge.URL, client.url)
    asked = replace(SUM, verifier="judge", verifier_args=json.dumps({"model": NAME, "timeout": 300}))
    for n in (42, 52):
        verdict = verify(asked, f"17 + 25 = {n}\n#### {n}")
        assert verdict.outcome is not Outcome.INFRASTRUCTURE and verdict.detail.startswith("correctness ")


@pytest.mark.long
def test_it_writes_a_problem_that_its_votes_agree_on_or_the_reason_is_told(client):
    settings = TeacherSettings(model=NAME, votes=3, agree=2, max_tokens=300, timeout=300.0)
    made = teacher.propose(topics_of([SUM], 0.6), 1, client, settings, 1)
    assert len(made.problems) + len(made.dropped) == 1
    for row in made.problems:
        assert row.parents == (SUM.problem_id,) and row.licence == f"written by {NAME}" and row.answer and row.prompt != SUM.prompt
    assert {row.reason for row in made.dropped} <= {"no_problem", "no_votes", "tie", "no_consensus"}
