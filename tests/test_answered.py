"""A stage's manifest says which model answered its requests, and what: an endpoint's replies are an input like a file."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from chat_endpoint import Answer, serve

import pipelines.__main__ as process
from pipelines import graph, paths
from pipelines.answered import Answered, enter, kept
from pipelines.config.curation import CurationSettings
from pipelines.lineage.manifests import endpoints, parameters, read_manifests
from pipelines.lineage.walk import Lineage
from pipelines.records import Problem, problem_id
from pipelines.store import read_json, write_json, write_problems

ROOT = Path(__file__).parents[1]
ROWS = [f"What is {number} + 1?" for number in range(3)]


def stage(root, url=None, recorded=True, **settings):
    """Run the stage `curation`, to its record or as one that is killed before it; returns (exit code, what it said, its manifest)."""
    given = CurationSettings.model_validate({"steps": ["grade"], "grading": {"samples": 2}, "splits": {"rl": 1}, **settings})
    problems = [Problem(problem_id(text, "4"), "math", text, "4", "integer", "math", source="s", source_id=text) for text in ROWS]
    write_problems(root / paths.PROBLEMS, problems)
    write_problems(root / paths.BENCHMARKS / "held.parquet", [])
    write_json(root / "settings.json", graph.stage("curation", "curation", given).given(1))
    command = ["curation", "--settings", str(root / "settings.json"), "--root", str(root), *([] if recorded else ["--keep-work"])]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setattr(process.signal, "signal", lambda *_: None)  # this process stays what it is
        patch.delenv("TOUCHSTONE_TEACHER_URL", raising=False)
        if url:
            patch.setenv("TOUCHSTONE_TEACHER_URL", url)
        code = process.main(command)
    return code, said.getvalue(), read_manifests(root).get("curation")


def rated(rating, model="wise-7b-2026"):
    return lambda prompt, number: Answer(f"\\boxed{{{rating}}}", model=model)


def test_the_manifest_names_who_answered_and_what(tmp_path):
    with serve(rated(4)) as endpoint:
        code, _, statement = stage(tmp_path, endpoint.url, endpoint={"model": "wise"})
    assert code == 0
    (told,) = endpoints(statement)
    assert {key: told[key] for key in ("role", "model", "reported", "replies")} == {
        "role": "teacher", "model": "wise", "reported": ["wise-7b-2026"], "replies": 6,
    }  # fmt: skip
    assert endpoint.url not in json.dumps(statement)
    tree = "\n".join(Lineage(tmp_path).tree(["curation"]))
    assert f"asked teacher wise: 6 replies of wise-7b-2026  {told['sha256'][:12]}" in tree

    with serve(rated(4)) as endpoint:  # another address, the same replies
        _, _, again = stage(tmp_path, endpoint.url, endpoint={"model": "wise"})
    assert endpoints(again) == [told] and len(endpoint.requests) == 6
    with serve(rated(5, model="")) as endpoint:
        _, _, other = stage(tmp_path, endpoint.url, endpoint={"model": "wise"})
    assert endpoints(other)[0]["sha256"] != told["sha256"] and endpoints(other)[0]["reported"] == []
    assert "replies of a model that did not say its name" in "\n".join(Lineage(tmp_path).tree(["curation"]))


def test_what_was_kept_from_an_interrupted_run_counts_once_and_with_its_model(tmp_path):
    def fails_at_last(prompt, number):
        return rated(4)(prompt, number) if number < 6 else Answer(status=400)

    with serve(fails_at_last) as endpoint:
        _, _, first = stage(tmp_path, endpoint.url, recorded=False)
        assert endpoints(first)[0]["replies"] == 5
        _, _, second = stage(tmp_path, endpoint.url)
        assert len(endpoint.requests) == 7, "the five replies are kept, the one that failed is asked again"
    assert endpoints(second)[0]["replies"] == 5 and endpoints(second)[0]["reported"] == ["wise-7b-2026"]


def test_without_an_endpoint_the_stage_fails_unless_params_let_it_skip(tmp_path):
    code, said, statement = stage(tmp_path)
    assert (code, statement) == (2, None)
    assert said.startswith("curation: grade: asks the OpenAI-compatible endpoint that TOUCHSTONE_TEACHER_URL names, which is not set")
    code, _, statement = stage(tmp_path, endpoint={"missing": "skip"})
    assert code == 0 and endpoints(statement) == []
    assert parameters(statement)["settings"]["endpoint"]["missing"] == "skip"
    assert "TOUCHSTONE_TEACHER_URL is not set" in read_json(tmp_path / paths.CURATION / paths.LEDGER)["steps"][0]["skipped"]


def test_entries_of_other_work_go_and_processes_share_a_file(tmp_path):
    file = tmp_path / "answered.sqlite"
    for identity, requests in (("a", ["1", "2", "2"]), ("a", ["3"]), ("b", ["4"])):
        answered = Answered(file, identity)
        answered.begin()
        with kept(answered):
            for request in requests:
                enter("judge", "j", request, "", "yes")
    assert answered.summary()[0]["replies"] == 1
    code = f"from pipelines.answered import *; Answered(__import__('pathlib').Path({str(file)!r}), 'b').add('judge', 'j', str(__import__('sys').argv[1]), '', 'no')"
    running = [subprocess.Popen([sys.executable, "-c", code, str(number)], cwd=ROOT) for number in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert answered.summary()[0]["replies"] == 5
    enter("judge", "j", "outside", "", "yes")  # nobody keeps account
    assert answered.summary()[0]["replies"] == 5


@pytest.mark.parametrize("again", [False, True])
def test_the_digest_is_of_requests_with_their_replies_in_any_order(tmp_path, again):
    digests = set()
    for number, order in enumerate([("a", "b"), ("b", "a")]):
        answered = Answered(tmp_path / f"{number}.sqlite", "x")
        for request in order * (1 + again):
            answered.add("judge", "j", request, "m", f"to {request}")
        digests.add(answered.summary()[0]["sha256"])
    assert len(digests) == 1
