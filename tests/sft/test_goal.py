"""Training with a goal: rounds until held-out problems show it, and what is said where it is not reached. Real models, verdicts and files."""

import pytest
from killing import Killed, die_after
from loops_of_goals import PROBLEMS, TOKENIZER, trained

from pipelines.config.training import GoalSettings
from pipelines.sft.examples import corpus_examples, document_prompts
from pipelines.sft.goal import Goal, set_aside


def test_rows_that_measure_are_not_trained_on_and_do_not_depend_on_the_order():
    goal = GoalSettings(solved={"math": 0.5}, problems=8)
    kept, held = set_aside(PROBLEMS, goal)
    assert len(held) == 8 and {p.domain for p in held} == {"math"}
    assert {p.problem_id for p in kept} | {p.problem_id for p in held} == {p.problem_id for p in PROBLEMS}
    assert not {p.problem_id for p in kept} & {p.problem_id for p in held}
    assert {p.problem_id for p in set_aside(PROBLEMS[::-1], goal)[1]} == {p.problem_id for p in held}
    assert set_aside(PROBLEMS, None) == (PROBLEMS, [])


def test_training_goes_on_until_the_goal_is_reached_and_no_longer(tmp_path):
    summary, rows = trained(tmp_path, GoalSettings(solved={"math": 0.0}, problems=4, rounds=3))
    assert summary["steps"] == len(rows) == 10  # one round shows it
    assert summary["solved_math"] == rows[-1]["solved_math"] >= 0 and "solved_math" not in rows[0]


def test_what_cannot_be_reached_ends_after_the_rounds_and_is_named(tmp_path):
    goal = GoalSettings(solved={"math": 1.0}, problems=4, rounds=3)
    summary, rows = trained(tmp_path, goal)
    assert summary["steps"] == len(rows) == 30
    assert [row["step"] for row in rows if "solved_math" in row] == [10, 20, 30]
    assert rows[10]["lr"] == rows[0]["lr"] < rows[5]["lr"]  # a round has a schedule of its own
    missing = Goal(goal, [], TOKENIZER, []).missing(summary)
    assert missing == [f"math: {summary['solved_math']:.2f} of the held-out problems solved, 1.00 wanted"]


@pytest.mark.parametrize("step", [10, 14])
def test_a_killed_run_with_a_goal_resumes_exactly(tmp_path, step):
    goal = GoalSettings(solved={"math": 1.0}, problems=4, rounds=2)
    summary, rows = trained(tmp_path / "whole", goal)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", goal, lambda journal: die_after(journal, step))
    assert trained(tmp_path / "cut", goal) == (summary, rows)


def test_the_loss_counts_documents_or_solutions():
    whole, _ = corpus_examples(TOKENIZER, PROBLEMS, 256)
    solutions, left_out = corpus_examples(TOKENIZER, PROBLEMS, 256, "solution")
    prompts = document_prompts(TOKENIZER, PROBLEMS)
    assert left_out == 0 and [e.ids for e in whole] == [e.ids for e in solutions]
    assert {e.spans[0][0] for e in whole} == {1}
    assert [e.spans[0][0] for e in solutions] == [len(prompt) for prompt in prompts]
    for example, problem in zip(solutions, PROBLEMS, strict=True):
        assert TOKENIZER.decode(example.ids[: example.spans[0][0]]) == f"{problem.prompt}\n"
        assert TOKENIZER.decode(example.ids[example.spans[0][0] :]).startswith("<think>")
