"""Kind sample: answers judged, right ones as solutions of rows, all as rollouts; of a policy and of an endpoint."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from chat_endpoint import Answer, serve

from pipelines import graph, paths, prompting
from pipelines.config import Params
from pipelines.config.common import GenerationSettings
from pipelines.config.sampling import SampleStage
from pipelines.config.training import ArchitectureSettings, SftStage
from pipelines.errors import UserError
from pipelines.generation import create, respond
from pipelines.lineage.digests import tree_sha256
from pipelines.models.loading import load_tokenizer, save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.progress import Journal
from pipelines.records import Outcome, Problem, problem_id
from pipelines.stages import Context, sample, sft
from pipelines.store import read_dropped, read_json, read_problems, read_trajectories, write_problems
from pipelines.verifiers.text import working

TINY = ArchitectureSettings(hidden_size=16, layers=1, heads=2, intermediate_size=32, vocab_size=300, context=256)
NAME = "sampled"


def row(prompt: str, answer: str, **fields: object) -> Problem:
    given = {"domain": "math", "answer_type": "integer", "verifier": "math", "source": "s", "source_id": prompt, "licence": "MIT"} | fields
    return Problem(problem_id=problem_id(prompt, answer), prompt=prompt, answer=answer, **given)


ADD, TAKE = row("What is 2 + 3?", "5", topics=("sums",)), row("What is 9 - 2?", "7")
PROGRAM = row(
    "Write f(x) that adds 1.", "def f(x):\n    return x + 1", domain="code", answer_type="program", verifier="code",
    verifier_args=json.dumps({"asserts": ["assert f(1) == 2"]}),
)  # fmt: skip
SAID = {
    ADD.prompt: ["<think> 2 + 3 is 5 </think>\\boxed{5}", "<think> 5 </think>\\boxed{5}", "\\boxed{6}", "no idea"],
    TAKE.prompt: ["\\boxed{1}", "\\boxed{2}", "\\boxed{3}", "\\boxed{4}"],
    PROGRAM.prompt: ["One more.\n```python\ndef f(x):\n    return 1 + x\n```", "```python\ndef f(x):\n    return x\n```"] * 2,
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer([*SAID, *(text for said in SAID.values() for text in said)], 300)
    save_policy(tmp_path / paths.model("math"), tiny_model(TINY, tokenizer, 1), tokenizer)
    (tmp_path / "script.json").write_text(json.dumps(SAID))
    write_problems(tmp_path / paths.rows("curation/rl"), [ADD, TAKE])
    return tmp_path


def stage(root: Path, **settings: object) -> dict[str, float]:
    scripted = {"engine": "scripted", "script": str(root / "script.json"), "max_new_tokens": 96}
    given = SampleStage.model_validate({"init": "math", "data": "curation/rl", "samples": 4, "generation": scripted} | settings)
    work = root / paths.WORK / NAME
    return sample.run(Context(NAME, root, 1, given, work, Journal(work / "j.jsonl", NAME, io.StringIO())))


def rollouts(root: Path) -> list:
    return [t for file in sorted((root / paths.ROLLOUTS / NAME).glob("*.parquet")) for t in read_trajectories(file)]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("<think> 2 + 3 is 5 </think>\\boxed{5}", "2 + 3 is 5"),
        ("<think>\nso\n</think>\nThe answer is 5.", "so"),
        ("so: 5</think>\\boxed{5}", "so: 5"),  # the template had opened it
        ("<think> </think>Add them: 2 + 3.\nSo $\\boxed{5}$", "Add them: 2 + 3.\nSo"),
        ("First 2 + 3 = 5.\n#### 5", "First 2 + 3 = 5."),
        ("Add.\n```python\ndef f(): pass\n```\nThat is all.", "Add."),
        ("It is \\boxed{4}, no: <answer>5</answer>", "It is"),
        ("\\boxed{5}", ""),
        ("5", ""),
    ],
)
def test_the_working_of_an_answer_ends_before_its_result(answer: str, expected: str) -> None:
    assert working(answer) == expected


def test_the_working_is_what_a_solution_was_written_as() -> None:
    for problem in (replace(ADD, solution="2 + 3 = 5"), replace(PROGRAM, solution="One more.")):
        assert working(prompting.response(problem)) == problem.solution
    bare = replace(ADD, solution="")
    assert working(prompting.response(bare)) == ""


def test_right_answers_become_solutions_and_all_are_rollouts(project: Path) -> None:
    summary = stage(project)
    assert {key: summary[key] for key in ("asked", "answers", "right", "solved", "kept", "dropped")} == {
        "asked": 2, "answers": 8, "right": 2, "solved": 1, "kept": 1, "dropped": 1,
    }  # fmt: skip
    (kept,) = read_problems(project / paths.rows(NAME))
    assert kept == replace(ADD, solution="5", pass_rate=0.5, pass_n=4, difficulty=0.5), "the shortest right one; source, licence and id stay"
    (gone,) = read_dropped(project / paths.ROWS / NAME / paths.DROPPED)
    assert (gone.problem.prompt, gone.step, gone.reason, gone.detail) == (TAKE.prompt, "sample", "no_right_answer", "none of 4 answers is right")
    tokenizer = load_tokenizer(project / paths.model("math"))
    of_add = [t for t in rollouts(project) if t.problem_id == ADD.problem_id]
    outcomes = (Outcome.CORRECT, Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSABLE)
    assert [(t.sample_id, t.response, t.outcome, t.reward, t.policy) for t in of_add] == [
        (number, text, outcome.value, float(outcome is Outcome.CORRECT), "math")
        for number, (text, outcome) in enumerate(zip(SAID[ADD.prompt], outcomes, strict=True))
    ]
    assert all(t.prompt_ids == prompting.prompt_ids(tokenizer, ADD) for t in of_add)
    ledger = read_json(project / paths.ROWS / NAME / paths.LEDGER)
    assert ledger["steps"] == [{"step": "sample", "input": 2, "kept": 1, "dropped": 1, "reasons": {"no_right_answer": 1}}]
    assert ledger["maker"] == {"model": "math", "engine": "scripted", "endpoint": None}


def test_all_rows_can_be_handed_on_and_a_program_makes_a_new_row(project: Path) -> None:
    write_problems(project / paths.rows("curation/rl"), [ADD, TAKE, PROGRAM])
    stage(project, rows="all")
    kept = {problem.prompt: problem for problem in read_problems(project / paths.rows(NAME))}
    assert kept[TAKE.prompt] == replace(TAKE, pass_rate=0.0, pass_n=4, difficulty=1.0)
    source = "def f(x):\n    return 1 + x"
    assert kept[PROGRAM.prompt] == replace(
        PROGRAM, problem_id=problem_id(PROGRAM.prompt, source), answer=source, solution="One more.", parents=(PROGRAM.problem_id,), pass_rate=0.5,
        pass_n=4, difficulty=0.5,
    )  # fmt: skip


def test_what_was_sampled_has_the_log_probabilities_of_the_engine_and_repeats(project: Path) -> None:
    sampling = GenerationSettings(max_new_tokens=8, batch_size=4, temperature=0.8)
    stage(project, rows="all", generation=sampling)
    (group, _) = respond(create(sampling, project / paths.model("math")), sorted([ADD, TAKE], key=lambda p: p.problem_id), 4, (1, NAME))
    first = rollouts(project)[:4]
    assert [t.response_ids for t in first] == [each.token_ids for each in group] and {v for t in first for v in t.policy_version} == {0}
    assert [t.behaviour_logp for t in first] == [pytest.approx(each.logp, abs=1e-6) for each in group]
    before = tree_sha256(project / paths.ROLLOUTS / NAME), tree_sha256(project / paths.ROWS / NAME)
    stage(project, rows="all", generation=sampling)
    assert (tree_sha256(project / paths.ROLLOUTS / NAME), tree_sha256(project / paths.ROWS / NAME)) == before
    shutil.rmtree(project / paths.WORK / NAME)
    stage(project, rows="all", generation=sampling)
    assert (tree_sha256(project / paths.ROLLOUTS / NAME), tree_sha256(project / paths.ROWS / NAME)) == before


def test_supervised_training_reads_the_rows_and_the_rollouts(project: Path) -> None:
    stage(project)
    for name, data, count in (("again", NAME, 1), ("several", f"{NAME}/rollouts", 2)):
        given = SftStage.model_validate({"init": "math", "data": data, "train": {"epochs": 1, "batch_size": 2}})
        context = Context(name, project, 1, given, project / name, Journal(project / name / "j", name, io.StringIO()))
        assert sft.run(context)["examples"] == count


def test_an_endpoint_is_asked_once_and_its_rollouts_have_no_log_probabilities(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda prompt, number: Answer(SAID[prompt][number % 2])) as served:
        monkeypatch.setenv("TOUCHSTONE_GENERATION_URL", served.url)
        given = {"generation": {"engine": "server", "server": {"model": "teacher"}, "max_new_tokens": 64}, "samples": 2}
        stage(project, **given)
        asked = len(served.requests)
        stage(project, **given, rows="all")
        assert asked == 4 == len(served.requests)
    tokenizer = load_tokenizer(project / paths.model("math"))
    for t in rollouts(project):
        assert t.response_ids == tokenizer(t.response, add_special_tokens=False)["input_ids"]
        assert t.written == 0 and set(t.policy_version) == {-1}
    assert read_json(project / paths.ROWS / NAME / paths.LEDGER)["maker"] == {"model": "math", "engine": "server", "endpoint": "teacher"}


def test_nothing_right_is_told_with_what_came(project: Path) -> None:
    write_problems(project / paths.rows("curation/rl"), [TAKE])
    with pytest.raises(UserError, match=r"sampled: not one of 1 rows got a right answer \(4 wrong\); ask another model"):
        stage(project)
    assert not (project / paths.ROWS / NAME).exists() and not (project / paths.ROLLOUTS / NAME).exists()


def test_the_graph_follows() -> None:
    content = {
        "seed": 1,
        "sources": {"train": {"a": {"kind": "arithmetic", "count": 9}}, "benchmarks": {"b": {"kind": "arithmetic", "count": 2}}},
        "stages": {
            "first": {"kind": "sft", "init": "base", "data": "curation/sft"},
            NAME: {"kind": "sample", "init": "first", "data": "curation/rl"},
            "again": {"kind": "sft", "init": "first", "data": [NAME, f"{NAME}/rollouts"]},
        },
        "evaluation": {"gate": {"candidate": "again", "against": "first", "improve": ["b"]}},
    }
    stages = graph.graph(Params.model_validate(content))
    folders = [paths.ROWS / NAME, paths.ROLLOUTS / NAME]
    assert list(stages[NAME].makes) == [*folders, paths.seen(NAME)] and stages[NAME].feeds(stages["again"])
    assert list(stages["again"].reads) == [paths.model("first"), paths.rows(NAME), folders[1]]
    content["stages"]["again"]["init"] = NAME
    with pytest.raises(ValueError, match="stage 'sampled' of kind sample makes rows, and a model is wanted"):
        Params.model_validate(content)
