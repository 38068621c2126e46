"""Critique fine-tuning (arXiv 2501.17703; one problem: 2506.03295): rows of what generators answered, critiques of teachers, the loss on them alone."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_sample_stage import ADD, SAID, TAKE, row
from test_supervised import TINY

from pipelines import paths, prompting
from pipelines.config.critique import CritiqueStage
from pipelines.config.sampling import SampleStage
from pipelines.config.training import SftStage
from pipelines.curation.critiques import rows_of
from pipelines.errors import UserError
from pipelines.lineage.digests import tree_sha256
from pipelines.models.loading import load_tokenizer, save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.progress import Journal
from pipelines.records import Outcome, Trajectory, one_turn
from pipelines.stages import Context, critique, sample, sft
from pipelines.store import read_dropped, read_json, read_problems, write_problems

ANSWERS = {"one": ["2 + 3 is \\boxed{5}", "\\boxed{6}", "It is \\boxed{5}"], "two": ["Sure: \\boxed{5}", "\\boxed{4}", "\\boxed{7}"]}
CRITIQUE = "The sum is {}, so it is {}.\n\\boxed{{{}}}"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    texts = [*SAID, *(text for said in ANSWERS.values() for text in said), CRITIQUE, "right wrong Critique the solution step by step"]
    tokenizer = train_tokenizer(texts, 400)
    for name in ("base", "policy"):
        save_policy(tmp_path / paths.model(name), tiny_model(TINY.model_copy(update={"context": 512}), tokenizer, 1), tokenizer)
    write_problems(tmp_path / paths.rows("curation/rl"), [ADD, TAKE])
    return tmp_path


def context(root: Path, name: str, given: object) -> Context:
    work = root / paths.WORK / name
    return Context(name, root, 1, given, work, Journal(work / "j.jsonl", name, io.StringIO()))


def sampled(root: Path, name: str, said: dict[str, list[str]], data: object, samples: int, **settings: object) -> dict[str, float]:
    """A stage of kind sample whose model says what is given."""
    (root / f"{name}.json").write_text(json.dumps(said))
    scripted = {"engine": "scripted", "script": str(root / f"{name}.json"), "max_new_tokens": 64}
    given = {"init": "policy", "data": data, "samples": samples, "generation": scripted} | settings
    return sample.run(context(root, name, SampleStage.model_validate(given)))


def asked(root: Path, **settings: object) -> dict[str, float]:
    given = {"data": ["curation/rl", "one/rollouts", "two/rollouts"]} | settings
    return critique.run(context(root, "asked", CritiqueStage.model_validate(given)))


def test_two_generators_three_solutions_and_two_critics_give_twelve_rows_less_the_empty(project: Path) -> None:
    for name, said in ANSWERS.items():
        sampled(project, name, {ADD.prompt: said}, {"curation/rl": {"where": {"sql": "answer = '5'"}}}, 3, rows="all")
    assert asked(project) == {"input": 6, "kept": 6, "dropped": 0, "problems": 1, "right": 3}
    rows = read_problems(project / paths.rows("asked"))
    assert {(found.answer, found.parents, found.verifier) for found in rows} == {(word, (ADD.problem_id,), "exact") for word in ("right", "wrong")}
    assert all(ADD.prompt in found.prompt and any(text in found.prompt for said in ANSWERS.values() for text in said) for found in rows)

    good = {found.prompt: [CRITIQUE.format(5, found.answer, found.answer)] for found in rows}
    blind = {found.prompt: [CRITIQUE.format(5, "right", "right")] for found in rows} | {rows[0].prompt: [" "]}
    sampled(project, "ann", good, "asked", 1)
    sampled(project, "bob", blind, "asked", 1)
    data = ["ann/rollouts", "bob/rollouts"]

    def examples(**accept: object) -> list:
        settings = SftStage.model_validate({"init": "base", "data": data, "accept": {"per_problem": 9, **accept}})
        return sft._read(context(project, "cft", settings), tokenizer, 512).examples

    tokenizer = load_tokenizer(project / paths.model("base"))
    assert len(examples(verdict="any")) == 12 - 1, "an empty critique is none"
    right = examples()
    wrong_ones = sum(found.answer == "wrong" for found in rows) + (rows[0].answer == "right")
    assert len(right) == 12 - wrong_ones, "critiques whose conclusion is the verifier's"
    for example in right:
        (found,) = (found for found in rows if found.problem_id == example.of)
        start = example.spans[0][0]
        assert example.ids[:start] == prompting.prompt_ids(tokenizer, found) and example.spans == ((start, len(example.ids), 1.0),)
        assert tokenizer.decode(example.ids[start:]).startswith("The sum is")


def test_the_rows_are_the_same_again_and_say_where_they_come_from(project: Path) -> None:
    for name, said in ANSWERS.items():
        sampled(project, name, {ADD.prompt: [said[0], ANSWERS["one"][1], " "], TAKE.prompt: ["\\boxed{7}"]}, "curation/rl", 3, rows="all")
    asked(project)
    before = tree_sha256(project / paths.ROWS / "asked")
    asked(project)
    assert tree_sha256(project / paths.ROWS / "asked") == before
    rows = read_problems(project / paths.rows("asked"))
    reasons = read_json(project / paths.ROWS / "asked" / paths.LEDGER)["steps"][0]["reasons"]
    assert len(rows) == 4 and reasons == {"again": 2, "empty": 2}, "both said 6 and 7 alike, and both said nothing once"
    assert {found.source for found in rows} == {"critique/one", "critique/two"} and {found.licence for found in rows} == {"MIT"}
    assert {gone.reason for gone in read_dropped(project / paths.ROWS / "asked" / paths.DROPPED)} == {"again", "empty"}
    assert asked(project, solutions=1)["dropped"] > 2 and asked(project, where={"sql": "answer = '7'"})["problems"] == 1


def test_answers_that_say_nothing_of_the_policy_are_left_out() -> None:
    problem = row("a", "5")

    def answer(text: str, **changes: object) -> Trajectory:
        made = Trajectory(problem.problem_id, 0, 0, 1, "m", one_turn([1], [2], [0.0], [0]), "stop", response=text, outcome=Outcome.WRONG.value)
        return replace(made, **changes)

    given = [answer("x"), answer("x "), answer("y", outcome=Outcome.INFRASTRUCTURE.value), answer("z", origin="guide"), answer("w", problem_id="other")]
    kept, dropped = rows_of({problem.problem_id: problem}, given, "{problem}: {solution}", "m", 9, (1,))
    assert [(found.prompt, found.answer) for found in kept] == [("a: x", "wrong")] and not dropped
    kept, dropped = rows_of({problem.problem_id: problem}, [answer(text) for text in "pqr"], "{problem}{solution}{problem}", "m", 2, (1,))
    assert len(kept) == 2 and [gone.reason for gone in dropped] == ["over_quota"]
    (odd,), _ = rows_of({problem.problem_id: problem}, [answer("{problem}")], "{problem}: {solution}", "m", 2, (1,))
    assert odd.prompt == "a: {problem}", "what an answer says is no place of the instruction"


def test_what_is_wrong_is_one_sentence(project: Path) -> None:
    for data in (["curation/rl"], ["one/rollouts"]):
        with pytest.raises(ValueError, match="data: expected problems and rollouts, such as"):
            asked(project, data=data)
    with pytest.raises(ValueError, match="instruction: .*must hold {solution}|must hold {solution}"):
        asked(project, instruction="{problem}")
    sampled(project, "one", {TAKE.prompt: ["\\boxed{7}"]}, {"curation/rl": {"where": {"sql": "answer = '7'"}}}, 1)
    with pytest.raises(UserError, match="asked: one/rollouts have no answer to any of 1 problems"):
        asked(project, data=["curation/rl", "one/rollouts"], where={"sql": "answer = '5'"})
