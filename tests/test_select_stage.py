"""Kind select: rows by what a finished run of RL showed of them, against hand-computed numbers."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import paths
from pipelines.config.selection import SelectStage
from pipelines.curation.histories import Visit, alignment, chosen, filled, learning_impact, variance
from pipelines.errors import UserError
from pipelines.lineage.digests import tree_sha256
from pipelines.progress import Journal
from pipelines.records import Outcome, Problem, Trajectory, one_turn, problem_id
from pipelines.stages import Context, select
from pipelines.stages.select import visits_of
from pipelines.store import read_dropped, read_json, read_problems, write_problems, write_trajectories


def row(name: str) -> Problem:
    return Problem(problem_id(name, "5"), "math", name, "5", "integer", "math")


def curves(**given: list[float | None]) -> dict[str, list[Visit]]:
    return {name: [Visit(figure, figure) for figure in curve] for name, curve in given.items()}


def test_learning_impact_follows_the_mean_curve():
    """Worked numbers of LIMR: mean .2 .4 .6 .8."""
    mean = [0.2, 0.4, 0.6, 0.8]
    made = [alignment(curve, mean) for curve in (mean, [0.1, 0.3, 0.5, 0.7], [0.0] * 4, [1.0] * 4, mean[::-1])]
    assert made == pytest.approx([1.0, 0.9667, 0.0, 0.0, 0.3333], abs=1e-4)
    assert filled([-1, 0.3, 0.5], 3) == [0.3, 0.3, 0.5] and filled([0.3, -1, -1], 3) == [0.3, -1, -1] and filled([0.3], 2) == [0.3, -1]
    # the mean of the two whole curves is .2 .4 .6 .8; the third is too short for it and has no score
    scores = learning_impact(curves(a=[0.1, 0.3, 0.5, 0.7], b=[0.3, 0.5, 0.7, 0.9, 1.0], c=[1.0]))
    assert scores == {"a": pytest.approx(0.9667, abs=1e-4), "b": pytest.approx(0.9667, abs=1e-4), "c": None}
    assert learning_impact(curves(a=[None, 0.5], b=[1.0, 1.0]))["a"] == pytest.approx(1 - 2 * 0.25**2 / (2 * 0.25**2))
    assert learning_impact(curves(a=[1.0, 1.0])) == {"a": 1.0} and learning_impact({}) == {}


def test_variance_of_past_pass_rates():
    """Worked numbers of 1-shot RLVR: .25, .0781 and 0, in the same order by deviation."""
    given = curves(A=[0, 1, 0, 1], B=[0.25, 0.5, 0.75, 1.0], C=[0.5] * 4, D=[1.0, None])
    assert variance(given) == {"A": pytest.approx(0.25), "B": pytest.approx(0.078125), "C": 0.0, "D": None}
    assert variance(given, form="deviation")["B"] == pytest.approx(0.078125**0.5)


def test_rows_are_dropped_with_their_reason():
    pool = [row(name) for name in "abcde"]
    scores = dict(zip((p.problem_id for p in pool), (0.9, 0.7, 0.5, None), strict=False))
    kept, dropped = chosen(pool, scores, 0.6, 1)
    assert [p.prompt for p in kept] == ["a"]
    assert {row.problem.prompt: (row.reason, row.detail) for row in dropped} == {
        "b": ("over_quota", "0.7000 is not among the 1 highest"), "c": ("low_score", "0.5000 is below 0.6"),
        "d": ("no_score", "too few of its visits have a figure"), "e": ("no_score", "the run did not draw it"),
    }  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Four rows, and rollouts of a run that drew three of them twice: a 1 and 0 of 2 right, b 1 and 2, c 2 and then nothing that could be judged."""
    pool = [row(name) for name in "abcd"]
    write_problems(tmp_path / paths.rows("graded"), pool)
    outcomes = {1: {"a": "10", "b": "10", "c": "11"}, 2: {"c": "??", "b": "11", "a": "00"}}
    for step, groups in outcomes.items():
        answers = [
            Trajectory(
                problem_id(name, "5"), group, sample, step, "t", one_turn([1], [2], [-0.1], [0]), "stop",
                outcome=(Outcome.INFRASTRUCTURE if right == "?" else Outcome.CORRECT if right == "1" else Outcome.WRONG).value,
                reward=0.0 if right == "?" else float(right) / 2,
            )
            for group, (name, rights) in enumerate(groups.items()) for sample, right in enumerate(rights)
        ]  # fmt: skip
        write_trajectories(tmp_path / paths.rows("math/rollouts") / f"step-{step:06d}.parquet", answers)
    return tmp_path


def stage(root: Path, **settings: object) -> dict[str, float]:
    given = SelectStage.model_validate({"data": ["graded", "math/rollouts"], "score": "variance"} | settings)
    work = root / paths.WORK / "chosen"
    return select.run(Context("chosen", root, 1, given, work, Journal(work / "j.jsonl", "chosen", io.StringIO())))


def test_a_stage_chooses_by_the_rollouts_of_another(project: Path):
    visits = visits_of(project / paths.rows("math/rollouts"))
    assert visits[problem_id("a", "5")] == [Visit(0.25, 0.5), Visit(0.0, 0.0)] and visits[problem_id("c", "5")] == [Visit(0.5, 1.0), Visit(None, None)]
    summary = stage(project, most=1)
    assert summary == {"input": 4, "kept": 1, "dropped": 3, "scored": 2, "lowest_score": 0.0625}
    (kept,) = read_problems(project / paths.rows("chosen"))
    first = min(problem_id(name, "5") for name in "ab")  # both vary by .0625: ties go by id
    assert kept.problem_id == first
    folder = project / paths.ROWS / "chosen"
    assert pq.read_table(folder / paths.SCORED).to_pylist() == [
        {"problem_id": name, "score": 0.0625} for name in sorted(problem_id(name, "5") for name in "ab")
    ]
    assert {r.problem.prompt: r.reason for r in read_dropped(folder / paths.DROPPED)}.items() >= {"c": "no_score", "d": "no_score"}.items()
    assert read_json(folder / paths.LEDGER)["steps"] == [{"step": "select", "input": 4, "kept": 1, "dropped": 3, "reasons": {"no_score": 2, "over_quota": 1}}]
    before = tree_sha256(folder)
    stage(project, most=1)
    assert tree_sha256(folder) == before


def test_learning_impact_reads_rewards(project: Path):
    """a .25 0, b .25 .5; c .5 and nothing has no score. The mean is .25 .25, and each is .25 off once where 1 is .75 off twice."""
    assert stage(project, score="learning_impact", at_least=0.6)["kept"] == 2
    with pytest.raises(UserError, match=r"chosen: not one of 4 rows is chosen by learning_impact of math/rollouts \(2 low_score, 2 no_score\)"):
        stage(project, score="learning_impact", at_least=0.99)
    table = pq.read_table(project / paths.ROWS / "chosen" / paths.SCORED)["score"].to_pylist()
    assert table == pytest.approx([1 - 0.0625 / 1.125] * 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": "graded", "most": 1}, r"expected rows and the rollouts of one stage, such as \[difficulty, math/rollouts\], got graded"),
        ({"data": "math/rollouts", "most": 1}, "expected rows and the rollouts of one stage"),
        ({}, "give `at_least` or `most`"),
    ],
)
def test_what_says_nothing_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        SelectStage.model_validate({"data": ["graded", "math/rollouts"], "score": "variance"} | settings)
