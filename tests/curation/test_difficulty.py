"""Pass rates and the band, by hand and with a real (untrained) policy."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import paths, verifiers
from pipelines.config.common import GenerationSettings
from pipelines.config.curation import GradeStage
from pipelines.config.training import ArchitectureSettings
from pipelines.curation.difficulty import bin_of, decided, graded, hardest, inside_band, wilson, within_limit
from pipelines.errors import UserError
from pipelines.generation import create, respond
from pipelines.models.loading import save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.progress import Journal
from pipelines.records import Dropped, Outcome, Problem, Verdict, problem_id
from pipelines.stages import Context, answers
from pipelines.stages.grade import run
from pipelines.store import read_dropped, read_json, read_problems, write_problems


def row(number: int, domain: str = "math", **fields: object) -> Problem:
    prompt = f"What is {number}?"
    given = {"answer_type": "text", "verifier": "exact", "source": "s", "source_id": str(number)} | fields
    return Problem(problem_id=problem_id(prompt, "1"), domain=domain, prompt=prompt, answer="1", **given)


def verdicts(*outcomes: Outcome) -> list[Verdict]:
    return [Verdict(outcome, float(outcome is Outcome.CORRECT), detail=outcome) for outcome in outcomes]


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # by hand for 0 of 10: z^2/(n+z^2) = 3.8415/13.8415; 5 of 10 is symmetric; 81 of 263 is Newcombe's example (1998, table I)
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 0, 0, 1)],
)
def test_wilson_interval(correct: int, n: int, low: float, high: float) -> None:
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_infrastructure_does_not_count() -> None:
    good, bad, none = Outcome.CORRECT, Outcome.WRONG, Outcome.INFRASTRUCTURE
    result = graded(row(1), verdicts(good, bad, none, Outcome.TIMEOUT, none))
    assert isinstance(result, Problem) and (result.pass_rate, result.pass_n) == (1 / 3, 3) and result.difficulty == pytest.approx(2 / 3)
    unjudged = graded(row(1), verdicts(none, none))
    assert isinstance(unjudged, Dropped) and (unjudged.reason, unjudged.detail) == ("not_judged", "infrastructure")


@pytest.mark.parametrize(
    ("correct", "counted", "left", "certain", "interval"),
    [
        (1, 2, 6, True, False),  # of eight between 1/8 and 7/8: inside [.1, .9] whatever comes
        (0, 2, 6, False, False),
        (2, 2, 6, False, False),
        (0, 7, 1, False, False),
        (0, 8, 0, True, True),
        (4, 8, 8, True, True),  # .2152 to .7848
        (0, 40, 60, False, True),  # 0 to .0876, below .1; sixty right ones could still come
        (0, 0, 8, False, False),
    ],
)
def test_a_problem_stops_when_it_is_decided(correct: int, counted: int, left: int, certain: bool, interval: bool) -> None:
    assert decided(correct, counted, left, (0.1, 0.9), "certain") is certain
    assert decided(correct, counted, left, (0.1, 0.9), "interval") is interval
    assert decided(correct, counted, left, (0.1, 0.9), "never") is (left == 0)


def test_stopping_when_certain_selects_what_all_samples_would_with_fewer() -> None:
    random, n, band = np.random.default_rng(1), 8, (0.1, 0.9)
    drawn = {"never": 0, "certain": 0}
    for rate in random.beta(0.6, 0.6, size=400):
        outcomes = (random.random(n) < rate).tolist()
        inside = {}
        for rule in ("never", "certain"):
            taken = next(k for k in range(2, n + 1, 2) if decided(sum(outcomes[:k]), k, n - k, band, rule))
            drawn[rule] += taken
            inside[rule] = band[0] <= sum(outcomes[:taken]) / taken <= band[1]
        assert inside["never"] == inside["certain"]
    assert drawn["never"] == 400 * n and drawn["certain"] < 0.8 * drawn["never"]


def test_bins_are_those_of_guru() -> None:
    names = ["impossible", "very hard", "hard", "medium", "easy", "very easy", "perfect"]
    assert [bin_of(rate) for rate in (0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)] == names


def test_band_is_closed() -> None:
    rows = [row(i, pass_rate=i / 4, pass_n=4) for i in range(5)]
    kept, dropped = inside_band(rows, (0.25, 0.75))
    assert [problem.pass_rate for problem in kept] == [0.25, 0.5, 0.75]
    assert [(item.reason, item.problem.pass_rate) for item in dropped] == [("too_hard", 0.0), ("too_easy", 1.0)]


def test_the_hardest_share_shrinks_as_in_drive() -> None:
    """Half of six is three, half of three, rounded up, is two: those with the lowest rates, in the order in which they came. By domain."""
    rows = [row(i, pass_rate=rate, pass_n=64) for i, rate in enumerate((0.9, 0.7, 0.5, 0.2, 0.05, 0.0))]
    first, easier = hardest(rows, 0.5)
    assert [problem.pass_rate for problem in first] == [0.2, 0.05, 0.0]
    assert [(item.reason, item.problem.pass_rate) for item in easier] == [("too_easy", 0.9), ("too_easy", 0.7), ("too_easy", 0.5)]
    assert "pass rate 0.900 is not among the lowest 0.5 of math" in easier[0].detail
    assert [problem.pass_rate for problem in hardest(first, 0.5)[0]] == [0.05, 0.0]
    other = [row(9, "code", pass_rate=1.0, pass_n=64)]
    assert hardest(rows + other, 0.5)[0] == first + other and hardest(rows, 1.0) == (rows, [])
    ten = [row(i, pass_rate=0.5, pass_n=2) for i in range(10)]
    assert [p.problem_id for p in hardest(ten, 0.7)[0]] == [p.problem_id for p in ten if p.problem_id in sorted(p.problem_id for p in ten)[:7]]


def test_limit_takes_the_first_by_id_per_domain() -> None:
    rows = [row(i, "math" if i % 2 else "code") for i in range(20)]
    kept, dropped = within_limit(rows[::-1], {"math": 3})
    maths = sorted(problem.problem_id for problem in rows if problem.domain == "math")
    assert [problem.problem_id for problem in kept if problem.domain == "math"] == maths[:3]
    assert sum(problem.domain == "code" for problem in kept) == 10
    assert len(dropped) == 7 and {item.reason for item in dropped} == {"not_graded"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    tokenizer = train_tokenizer(["What is 1? 2 3 4 5 6 7 8 9 0"], 300)
    settings = ArchitectureSettings(hidden_size=16, layers=1, heads=2, intermediate_size=32, vocab_size=300, context=64)
    save_policy(root / paths.model("sft"), tiny_model(settings, tokenizer, 1), tokenizer)
    return root


def answered(root: Path) -> dict[Path, int]:
    """Files of stored answers, with how many each has."""
    return {file: pq.read_metadata(file).num_rows for file in (root / "work" / answers.FOLDER).glob("*/*.parquet")}


def stage(root: Path, rows: list[Problem], **settings: object) -> dict[str, float]:
    write_problems(root / paths.SPLITS["rl"], rows)
    given = GradeStage.model_validate({"init": "sft", "data": "curation/rl", "samples": 4, "generation": GenerationSettings(max_new_tokens=8, batch_size=16)} | settings)
    work = root / "work"
    return run(Context("difficulty", root, 1, given, work, Journal(work / "j.jsonl", "difficulty", io.StringIO())))


def test_stage_grades_selects_and_repeats(policy: Path) -> None:
    long = Problem("zz", "math", "What? " * 100, "1", "text", "exact", source="s", source_id="long")
    rows = [row(i) for i in range(30)] + [long]
    summary = stage(policy, rows, band=[0, 1], limit={"math": 31})
    assert summary["graded"] == 30 and summary["selected"] == 30
    found = read_problems(policy / paths.rows("difficulty/graded"))
    assert all(problem.pass_n == 4 and problem.difficulty == 1 - (problem.pass_rate or 0) for problem in found)
    ledger = read_json(policy / paths.ROWS / "difficulty" / paths.LEDGER)
    assert ledger["input"] == 31 and ledger["reasons"] == {"prompt_exceeds_context": 1} and ledger["domains"]["math"]["graded"] == 30
    assert ledger["rollouts"] == 120 and sum(ledger["domains"]["math"]["bins"].values()) == 30
    before = (policy / paths.rows("difficulty/graded")).read_bytes()
    stage(policy, rows[::-1], band=[0, 1], generation=GenerationSettings(max_new_tokens=8, batch_size=3))
    assert (policy / paths.rows("difficulty/graded")).read_bytes() == before
    stage(policy, rows, band=[0, 1], stop="interval")  # nothing can leave [0, 1]: one look is enough
    assert {problem.pass_n for problem in read_problems(policy / paths.rows("difficulty/graded"))} == {2}
    stage(policy, rows, band=[0, 1], limit={"math": 5})
    assert len(read_problems(policy / paths.rows("difficulty"))) == 5
    assert pq.read_table(policy / paths.ROWS / "difficulty" / paths.DROPPED)["reason"].to_pylist().count("not_graded") == 26


def test_the_hardest_are_handed_on_and_the_others_accounted_for(policy: Path) -> None:
    """Nobody has solved any of the ten; with the band all of them are alike, and 30 % are the first three by id."""
    rows = [row(i) for i in range(10)]
    summary = stage(policy, rows, band=[0, 1], hardest=0.3)
    ids = sorted(problem.problem_id for problem in rows)
    assert summary["graded"] == 10 and summary["selected"] == 3 and summary["too_easy"] == 7
    assert [problem.problem_id for problem in read_problems(policy / paths.rows("difficulty"))] == ids[:3]
    assert read_json(policy / paths.ROWS / "difficulty" / paths.LEDGER)["reasons"] == {"too_easy": 7}
    assert {item.detail for item in read_dropped(policy / paths.ROWS / "difficulty" / paths.DROPPED)} == {
        "pass rate 0.000 is not among the lowest 0.3 of math"
    }


def test_answers_that_are_right_count(policy: Path) -> None:
    # the same key gives the same samples; what some of them say is then made an accepted answer
    generator = create(GenerationSettings(max_new_tokens=8), policy / paths.model("sft"))
    said = [sample.text.strip() for sample in respond(generator, [row(3)], 16, (1, "difficulty"))[0]]
    accepted = [text for text in said if text][:2]
    problem = row(3, verifier_args=json.dumps({"accept": accepted}))
    right = [verifiers.verify(problem, text).correct for text in said]
    assert 0 < sum(right) < 16
    stage(policy, [problem, row(4)], band=[0, 1], samples=16, generation=GenerationSettings(max_new_tokens=8))
    rates = {found.source_id: found.pass_rate for found in read_problems(policy / paths.rows("difficulty/graded"))}
    assert rates == {"3": sum(right) / 16, "4": 0.0}


def test_nothing_in_the_band_says_how_many_were_too_hard(policy: Path) -> None:
    with pytest.raises(UserError, match=r"none of 6 graded problems .* 6 are too hard, 0 too easy"):
        stage(policy, [row(i) for i in range(6)], band=[0.5, 0.9])
    with pytest.raises(UserError, match="no row is left of curation/rl; there were 0"):
        stage(policy, [])


def test_another_band_more_samples_and_more_rows_ask_only_what_is_new(policy: Path) -> None:
    shutil.rmtree(policy / "work", ignore_errors=True)
    rows, sampling = [row(i) for i in range(12)], GenerationSettings(max_new_tokens=4, batch_size=8)

    def asked(rows: list[Problem], **settings: object) -> int:
        before = answered(policy)
        stage(policy, rows, **({"band": [0, 1], "samples": 2, "generation": sampling} | settings))
        return sum(count for file, count in answered(policy).items() if file not in before)

    assert asked(rows[:8]) == 16
    assert asked(rows[:8], band=[0, 0.9]) == 0
    assert asked([*rows[8:], *rows[:8]]) == 8
    assert asked([replace(each, pass_rate=0.5, solution="so") for each in rows]) == 0, "nothing that the answers depend on has changed"
    assert asked(rows, samples=3) == 12
    assert asked(rows, stop="interval", samples=3) == 0
    assert asked(rows, generation=sampling.model_copy(update={"batch_size": 3})) == 0, "it changes memory and speed alone"
    assert asked([*rows[1:], row(0, verifier_args='{"accept": ["7"]}')]) == 2, "another way to judge"
    assert asked(rows, generation=sampling.model_copy(update={"max_new_tokens": 5})) == 24
    assert len(list((policy / "work" / answers.FOLDER).iterdir())) == 1, "what policies answered that nobody names any more goes"


def test_a_second_policy_answers_what_the_first_lets_through_and_its_band_counts_too(policy: Path) -> None:
    """Guru's rule on its four worked cases: (weak, strong) of 16 right are (0, 0), (15, 16), (14, 16), (0, 1)."""
    shutil.copytree(policy / paths.model("sft"), policy / paths.model("strong"))
    rows, right = [row(i) for i in range(4)], {"weak": [0, 15, 14, 0], "strong": [0, 16, 16, 1]}
    by = {}
    for name, counts in right.items():
        script = policy / f"{name}.json"
        script.write_text(json.dumps({p.prompt: ["1"] * n + ["2"] * (16 - n) for p, n in zip(rows, counts, strict=True)}))
        by[name] = GenerationSettings(engine="scripted", script=str(script), max_new_tokens=8)
    guru = {"samples": 16, "band": [0, 0.875], "generation": by["weak"], "strong": {"model": "strong", "generation": by["strong"]}}
    summary = stage(policy, rows, **guru)
    folder = policy / paths.ROWS / "difficulty"
    assert {(kept.source_id, kept.pass_rate) for kept in read_problems(folder / paths.MADE)} == {("2", 14 / 16), ("3", 0.0)}
    assert {(found.source_id, found.pass_rate) for found in read_problems(folder / paths.STRONG)} == {("0", 0.0), ("2", 1.0), ("3", 1 / 16)}
    assert summary["graded_by_strong"] == 3, "what is too easy for the weak policy is not asked of the strong one"
    assert {(row.problem.source_id, row.reason, row.detail) for row in read_dropped(folder / paths.DROPPED)} == {
        ("0", "too_hard", "pass rate 0.000 of 16 samples is below 0.0625, by strong"),
        ("1", "too_easy", "pass rate 0.938 of 16 samples is above 0.875"),
    }
    before = answered(policy)
    stage(policy, rows, **{**guru, "band": [0, 1]})
    assert [count for file, count in answered(policy).items() if file not in before] == [16], "of the row that the new band lets through"
    with pytest.raises(UserError, match=r"none of 4 graded problems has a pass rate within \[0.0, 0.875\] and, by strong, \[0.3, 0.9\]: 2 are too hard, 2"):
        stage(policy, rows, **{**guru, "strong": {**guru["strong"], "band": [0.3, 0.9]}})
