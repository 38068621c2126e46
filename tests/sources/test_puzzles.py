"""reasoning-gym puzzles: repeatable, and what is stored is enough to judge."""

import json
from pathlib import Path

import pytest

from pipelines.config.sources import ReasoningGymSource
from pipelines.errors import UserError
from pipelines.records import Problem
from pipelines.sources import SOURCES, BadRow


def draw(seed: int = 1, **settings: object) -> list[Problem | BadRow]:
    source = ReasoningGymSource.model_validate({"kind": "reasoning_gym", "count": 5} | settings)
    return list(SOURCES["reasoning_gym"](source, seed, "puzzles", Path()))


def test_same_seed_same_puzzles_other_seed_others() -> None:
    first = draw(task="knights_knaves", topics=("liars",))
    assert first == draw(task="knights_knaves", topics=("liars",))
    assert first != draw(task="knights_knaves", topics=("liars",), seed=2)
    assert all(isinstance(row, Problem) and row.topics == ("liars",) and row.solution == "" for row in first)


def test_stored_entry_scores_its_own_answer() -> None:
    from reasoning_gym import get_score_answer_fn

    for task in ("knights_knaves", "countdown", "mini_sudoku", "chain_sum"):
        for row in draw(task=task):
            assert isinstance(row, Problem)
            stored = json.loads(row.verifier_args)
            assert get_score_answer_fn(stored["task"])(answer=row.answer, entry=stored["entry"]) == 1


def test_task_settings_reach_the_task() -> None:
    (row,) = draw(task="chain_sum", count=1, settings={"min_terms": 9, "max_terms": 9})
    assert isinstance(row, Problem) and len(row.prompt.split("+")) + len(row.prompt.split(" - ")) - 1 == 9


def test_task_without_answers_gives_bad_rows() -> None:
    assert [(row.field, row.line) for row in draw(task="rush_hour", count=2) if isinstance(row, BadRow)] == [("answer", 1), ("answer", 2)]


def test_unknown_task_names_close_ones_and_bad_settings_say_why() -> None:
    with pytest.raises(UserError, match="no task 'knights_knave'; did you mean knights_knaves"):
        draw(task="knights_knave")
    with pytest.raises(UserError, match="refuses the settings of 'chain_sum': .*min_tems"):
        draw(task="chain_sum", settings={"min_tems": 3})
