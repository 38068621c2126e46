"""STAT-Sel (arXiv 2510.10023): which skills are missing where a model fails, and rows for them in proportion."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from chat_endpoint import Answer, serve
from test_sample_stage import row
from test_sft_critiques import context, project, sampled  # noqa: F401

from pipelines import chat, paths
from pipelines.chat import Reply
from pipelines.config.targeting import TargetStage
from pipelines.curation.skills import Skill, difficult, picked, profile, said
from pipelines.errors import UserError
from pipelines.evaluation.report import rows as report
from pipelines.lineage.digests import tree_sha256
from pipelines.records import Problem
from pipelines.stages import target
from pipelines.store import read_dropped, read_json, read_problems, write_problems
from pipelines.synthesis.weakness import allocate


def of_skill(skill: str, number: int, pass_rate: float | None = None) -> Problem:
    return replace(row(f"{skill} {number}: what is {number} + 1?", str(number + 1)), topics=(skill,), pass_rate=pass_rate, pass_n=4)


TRIED = [of_skill("algebra", n, 0.0 if n < 4 else 1.0) for n in range(12)] + [of_skill("geometry", n, 0.25 if n < 1 else 0.75) for n in range(10)]
TRIED += [of_skill("rare", n, 0.0) for n in range(3)]
POOL = [of_skill(skill, n) for skill in ("algebra", "geometry", "rare", "logic") for n in range(100, 140)]


@pytest.fixture
def rows(project: Path) -> Path:  # noqa: F811
    write_problems(project / paths.rows("curation/sft"), [*POOL, replace(row("bare", "1"), topics=())])
    write_problems(project / paths.rows("tried"), TRIED)
    return project


def run(root: Path, **settings: object) -> dict[str, float]:
    given = {"data": "curation/sft", "weak": "tried"} | settings
    return target.run(context(root, "aimed", TargetStage.model_validate(given)))


def ledger(root: Path) -> dict:
    return {skill["name"]: skill for skill in read_json(root / paths.ROWS / "aimed" / paths.LEDGER)["skills"]}


def taken(root: Path) -> Counter:
    return Counter(problem.topics[0] for problem in read_problems(root / paths.rows("aimed")))


def test_counts_of_four_and_one_give_rows_in_that_ratio(rows: Path) -> None:
    summary = run(rows)
    assert taken(rows) == {"algebra": 20, "geometry": 5}, "five rows for each time that it is missing"
    assert {name: summary[name] for name in ("difficult", "missing_skills", "wanted", "kept", "dropped", "input")} == {
        "difficult": 8, "missing_skills": 2, "wanted": 25, "kept": 25, "dropped": 136, "input": 161,
    }  # fmt: skip
    assert run(rows, budget=10)["kept"] == 10 and taken(rows) == {"algebra": 8, "geometry": 2}
    reasons = Counter(gone.reason for gone in read_dropped(rows / paths.ROWS / "aimed" / paths.DROPPED))
    assert reasons == {"over_quota": 32 + 38, "not_missing": 80, "no_skill": 1}
    before = tree_sha256(rows / paths.ROWS / "aimed")
    run(rows, budget=10)
    assert tree_sha256(rows / paths.ROWS / "aimed") == before


def test_a_planted_failing_skill_ranks_first_with_its_interval(rows: Path) -> None:
    run(rows)
    found = list(ledger(rows).values())
    assert [skill["name"] for skill in found] == ["algebra", "geometry"], "three rows say too little of a third"
    assert {key: found[0][key] for key in ("rows", "difficult", "missing", "wanted", "taken")} == {
        "rows": 12, "difficult": 4, "missing": 4, "wanted": 20, "taken": 20,
    }  # fmt: skip
    page = str(report.targeted(read_json(rows / paths.ROWS / "aimed" / paths.LEDGER)))
    assert all(f"<td>{cell}</td>" in page for cell in ("algebra", "12", "4", "0.14 to 0.61", "20")) and "over quota" in page
    assert (found[0]["low"], found[0]["high"]) == pytest.approx((0.1381, 0.6094), abs=1e-4), "Wilson's of 4 in 12"
    run(rows, least=3)
    assert taken(rows) == {"algebra": 20, "rare": 15, "geometry": 5}
    run(rows, hardest=3, least=1)
    assert sum(skill["missing"] for skill in ledger(rows).values()) == 3


def test_over_many_draws_rows_of_a_skill_are_equally_likely() -> None:
    needed = {problem.problem_id: problem.topics for problem in POOL}
    counts: Counter = Counter()
    for seed in range(400):
        _, kept, _ = picked(POOL, needed, dict(zip(("algebra", "geometry"), allocate(20, [3, 1]), strict=True)), (seed,))
        counts.update(problem.problem_id for problem in kept)
    for skill, expected in (("algebra", 400 * 15 / 40), ("geometry", 400 * 5 / 40)):
        drawn = [counts[problem.problem_id] for problem in POOL if problem.topics == (skill,)]
        variance = expected * (1 - expected / 400) * 40 / 39  # drawn without replacement
        assert sum((count - expected) ** 2 for count in drawn) / variance < 72.1, "chi-square with 39 degrees of freedom, p = .001"


def test_a_row_of_two_skills_is_drawn_once() -> None:
    both = replace(POOL[0], topics=("algebra", "geometry"))
    needed = {both.problem_id: both.topics}
    assert picked([both], needed, {"algebra": 1, "geometry": 1}, (1,))[:2] == ({"algebra": 1, "geometry": 0}, [both])
    hard = difficult([both, replace(both, pass_rate=0.0, problem_id="b"), replace(both, pass_rate=0.5, problem_id="c")], 0.5, 9)
    assert [problem.problem_id for problem in hard] == ["b"], "below the bound, and one without a pass rate is not known to be difficult"
    assert profile([both], [], needed, needed, 1) == [Skill(name, 1, 0, 0.0, pytest.approx(0.7935, abs=1e-4), 0) for name in ("algebra", "geometry")]


def test_only_a_list_of_strings_is_read_of_a_reply() -> None:
    assert said(Reply('Sure:\n["a", 3, "b"]')) == ["a", "b"]
    assert [said(Reply(text)) for text in (None, "", "none", '{"a": 1}', "[a]", "[" * 100_000 + "]" * 100_000)] == [[]] * 6


def test_a_teacher_lists_labels_and_names_what_is_missing(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that problems of algebra need sums and unknowns, and that each of the 8 wrong answers lacks unknowns."""

    def teacher(prompt: str, _: int) -> Answer:
        if "Name at most" in prompt:
            return Answer(json.dumps(["sums", "unknowns", "areas", "sums"]))
        if "wrong answer" in prompt:
            assert "\\boxed{99}" in prompt
            return Answer('["Unknowns", "magic"]')
        return Answer(json.dumps(["sums", "unknowns"] if "algebra" in prompt else ["areas"] if "geometry" in prompt else []))

    tried = [replace(problem, pass_rate=None, pass_n=None) for problem in TRIED]
    write_problems(rows / paths.rows("curation/rl"), tried)
    answers = {problem.prompt: [f"\\boxed{{{99 if (old.pass_rate or 0) < 0.5 else problem.answer}}}"] for problem, old in zip(tried, TRIED, strict=True)}
    sampled(rows, "tried", answers, "curation/rl", 1, rows="all")
    with serve(teacher) as endpoint:
        monkeypatch.setenv(chat.TEACHER_URL, endpoint.url)
        run(rows, answers="tried/rollouts", skills={"shown": 9}, where={"topics": ["algebra", "geometry"]})
        requests = len(endpoint.requests)
        assert requests == 1 + 80 + len(TRIED) + 8
        found = ledger(rows)
        assert {name: (skill["rows"], skill["difficult"], skill["missing"]) for name, skill in found.items()} == {
            "unknowns": (12, 4, 8), "sums": (12, 4, 0), "areas": (10, 1, 0),
        }  # fmt: skip
        assert taken(rows) == {"algebra": 40}
        run(rows, answers="tried/rollouts", skills={"shown": 9}, where={"topics": ["algebra", "geometry"]})
        assert len(endpoint.requests) == requests, "what was asked once is not asked again"
        run(rows, skills={"known": ["sums", "areas"]}, where={"topics": ["algebra", "geometry"]})
        assert {name: skill["missing"] for name, skill in ledger(rows).items()} == {"sums": 4, "areas": 1}, "without answers all that a row needs"
    with serve(lambda _prompt, _number: Answer("no", 400)) as endpoint:
        monkeypatch.setenv(chat.TEACHER_URL, endpoint.url)
        with pytest.raises(UserError, match="aimed: the teacher answered none of 1 requests"):
            run(rows, skills={"model": "other"})


def test_what_is_wrong_is_one_sentence(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(chat.TEACHER_URL, raising=False)
    for settings, sentence in (
        ({"below": 0.0}, "aimed: none of the 25 rows of tried has a pass rate below 0"),
        ({"where": {"topics": ["logic"]}}, r"aimed: not one of 40 rows needs a missing skill \(algebra, geometry\)"),
        ({"least": 99}, r"aimed: not one of 161 rows needs a missing skill \(none that 99 rows of tried need\)"),
        ({"skills": {}}, "aimed: skills need the address of an OpenAI-compatible endpoint in the environment variable TOUCHSTONE_TEACHER_URL"),
    ):
        with pytest.raises(UserError, match=sentence):
            run(rows, **settings)
    for settings, sentence in (
        ({"weak": "curation/sft"}, "weak: 'curation/sft' is in data too; what the model is tried on must not train it"),
        ({"answers": "tried"}, "answers: 'tried' names no rollouts, such as said/rollouts"),
        ({"answers": "tried/rollouts"}, "answers: a teacher reads them: say `skills: {}`"),
        ({"weak": "tried/rollouts"}, "'tried/rollouts' names rollouts, and rows are wanted"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run(rows, **settings)
