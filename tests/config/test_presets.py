"""Published curation as settings."""

import pytest

from pipelines.config.curation import CurationSettings, GradeStage, presets
from pipelines.curation.difficulty import inside_band
from pipelines.curation.run import curate
from pipelines.records import Problem

ASKS = {"init": "sft", "data": "curation/rl"}


@pytest.mark.parametrize("name", presets())
def test_every_preset_holds(name: str) -> None:
    curation, grade = CurationSettings.model_validate({"preset": name}), GradeStage.model_validate({**ASKS, "preset": name})
    assert set(presets()[name]) == {"curation", "grade"}
    assert CurationSettings.model_validate(curation.model_dump(mode="json")) == curation  # as a stage is given it
    assert GradeStage.model_validate(grade.model_dump(mode="json")) == grade


def test_what_params_say_counts_before_the_preset() -> None:
    settings = CurationSettings.model_validate({"preset": "acereason", "filters": {"answer_chars": [1, 7]}, "decontamination": {"n": 11}})
    assert settings.filters.answer_chars == (1, 7) and settings.filters.prompt_chars == (20, 4000) and "proof" in settings.filters.drop
    assert (settings.decontamination.n, settings.decontamination.rule) == (11, "any")
    assert CurationSettings() == CurationSettings.model_validate({"preset": None})


def test_a_wrong_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="there is no 'openr1'; did you mean 'open_r1'"):
        CurationSettings.model_validate({"preset": "openr1"})


def rated(correct: int, n: int) -> Problem:
    return Problem(str(correct), "math", "x", "1", "integer", "math", pass_rate=correct / n, pass_n=n)


@pytest.mark.parametrize(
    ("name", "n", "counts", "kept"),
    [
        ("open_r1", 10, [0, 1, 5, 9, 10], [5]),  # strictly between .1 and .9
        ("medvlthinker", 16, [0, 1, 7, 8, 16], [1, 7]),
        ("guru", 16, [0, 1, 14, 15, 16], [1, 14]),
        ("acereason", 8, [0, 3, 5, 8], [5, 8]),
        ("rif_rft", 8, [0, 1, 8], [1, 8]),
    ],
)
def test_bands_keep_what_their_papers_keep(name: str, n: int, counts: list[int], kept: list[int]) -> None:
    settings = GradeStage.model_validate({**ASKS, "preset": name})
    assert [int(row.problem_id) for row in inside_band([rated(c, n) for c in counts], settings.band)[0]] == kept


def row(prompt: str, answer: str = "5") -> Problem:
    return Problem(prompt[:20], "math", prompt, answer, "integer", "math", source="s", source_id=prompt)


def test_acereason_on_its_worked_example() -> None:
    bench = row("A farmer sells twelve brown eggs on every second market day of the long dry season")
    nine = row("Every year a farmer sells twelve brown eggs on every second market. How many eggs is that in two years of sales?")
    eight = row("Every year one farmer sells twelve brown eggs on every second morning. How many eggs is that in two years of sales?")
    rows = [row("Which one is prime of these four? (A) 4 (B) 6 (C) 5 (D) 8"), row("Prove that the sum of two odd numbers is even."), nine, eight]
    settings = CurationSettings.model_validate({"preset": "acereason", "endpoint": {"missing": "skip"}})
    result = curate(rows, {"b": [bench]}, settings)
    assert [kept.source_id for kept in result.kept] == [eight.source_id]
    assert sorted(gone.reason for gone in result.dropped) == ["benchmark_any", "multiple_choice", "proof"]
