"""The scorer: our verdicts over HTTP, for the rows of one stage, to who holds its address."""

import json
import urllib.error
import urllib.request

import pytest
from programs import PROBLEMS

from pipelines.command import scorer
from pipelines.command.touchstone_stage import Stage
from pipelines.verifiers import VerifierPool

KNOWN = {problem.problem_id: problem for problem in PROBLEMS}


@pytest.fixture(scope="module")
def address():
    with VerifierPool(1) as pool, scorer.serving(KNOWN, pool) as found:
        yield found


def asked(url, body):
    """(status, answer) of a POST."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data)) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def answer(problem=PROBLEMS[0].problem_id, response="\\boxed{2}"):
    return {"problem_id": problem, "response": response}


def test_verdicts_in_order(address):
    status, told = asked(f"{address}/score", {"answers": [answer(), answer(response="\\boxed{3}"), answer(response="no answer")]})
    assert status == 200 and [(v["outcome"], v["score"], v["extracted"]) for v in told["verdicts"]] == [
        ("correct", 1.0, "2"), ("wrong", 0.0, "3"), ("unparsable", 0.0, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"answers": [answer("elsewhere")]}, 404, "answers[0]: no row of this stage is problem 'elsewhere'"),
        ({"answers": [answer(), {"problem_id": 3, "response": ""}]}, 400, "answers[1]: expected {problem_id, response}, both text"),
        ({"answers": [answer()] * 4097}, 400, "expected `answers`, a list of at most 4096"),
        ({"answer": []}, 400, "expected `answers`, a list of at most 4096"),
        (b"[1", 400, "the request is no JSON object"),
    ],
)
def test_what_is_asked_wrongly_is_told(address, body, status, sentence):
    assert asked(f"{address}/score", body) == (status, {"error": sentence})


def test_without_its_token_it_says_nothing(address):
    port = address.split("/")[2]
    assert asked(f"http://{port}/guessed/score", {"answers": [answer()]}) == (404, {"error": "there is no such address"})
    assert asked(f"{address}/other", {"answers": [answer()]})[0] == 404


def test_the_programs_side_splits_what_is_many_and_raises_what_it_is_told(address, tmp_path):
    names = ("stage", "model", "rows_parquet", "rows_jsonl", "out", "resume")
    (tmp_path / "settings.json").write_text(json.dumps(dict.fromkeys(names, "") | {"seed": 1, "device": "cpu", "settings": {}, "scorer": address}))
    stage = Stage(str(tmp_path))
    verdicts = stage.score([(PROBLEMS[0].problem_id, f"\\boxed{{{n}}}") for n in range(1030)])
    assert [n for n, verdict in enumerate(verdicts) if verdict["outcome"] == "correct"] == [2] and len(verdicts) == 1030
    with pytest.raises(ValueError, match="no row of this stage is problem 'x'"):
        stage.score([("x", "")])


def test_it_ends_with_the_stage():
    with VerifierPool(1) as pool, scorer.serving(KNOWN, pool) as found:
        assert asked(f"{found}/score", {"answers": []}) == (200, {"verdicts": []})
    with pytest.raises(urllib.error.URLError):
        asked(f"{found}/score", {"answers": []})
