"""What was answered, and what became of it: on disk, in the journal, in the history. Nothing is lost or counted twice."""

import functools
from collections import Counter

import pytest
from loops import IN_FLIGHT, ONE_AHEAD, run

from pipelines.generation import torch_engine
from pipelines.records import Outcome
from pipelines.rl.account import REASONS
from pipelines.rl.history import History
from pipelines.store import read_trajectories

RUNS = {
    "dapo": {"overrides": {"tasks": [{"name": "drop_high_pass", "at_least": 0.4}]}},
    "recover": {"row": "pshw", "prompts_per_step": 3, "overrides": {"recompose": [{"name": "dynamic_sampling", "rounds": 3, "recover": True}]}},
    "remix": {},
    "npo": {},
    "psr": {},
    "w_grpo_pairs": {"prompts_per_step": 6},
    "stale": {"row": "remix", "max_staleness": 0},
    "masked": {"row": "remix", "max_staleness": 0, "stale": "mask"},
    "in flight": {"row": "scale_rl", "schedule": IN_FLIGHT},
    "ahead": {"row": "scale_rl", "schedule": ONE_AHEAD},
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory, start):
    """Name -> (journal, rollouts of each step, how often policy and guide were asked) of a run of four steps, made once."""

    @functools.cache
    def of(name):
        asked, folder = Counter(), tmp_path_factory.mktemp("run")
        real = torch_engine._Rows.answer

        def counted(self, requests=()):
            asked.update("guide" if "guide" in request.key else "policy" for request in requests)
            return real(self, requests)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch_engine._Rows, "answer", counted)
            _, rows, _ = run(folder, start, **{"row": name, "steps": 4, **RUNS[name]})
        return rows, [read_trajectories(path) for path in sorted((folder / "rollouts").glob("*.parquet"))], asked

    return of


@pytest.mark.parametrize("name", RUNS)
def test_answered_is_trained_and_dropped(ran, name):
    rows, files, asked = ran(name)
    assert len(files) == len(rows) == 4
    for step, (row, rollouts) in enumerate(zip(rows, files, strict=True), 1):
        answers = [r for r in rollouts if r.origin == "policy"]
        trained = [r for r in rollouts if not r.dropped]
        assert len({(r.origin, r.group_id, r.sample_id) for r in rollouts}) == len(rollouts)
        assert row["answered"] == len(answers) and row["trained"] == len(trained)
        assert row["answered"] + row["replayed"] + row["guided"] == row["trained"] + row["dropped"] == len(rollouts)
        assert row["dropped"] == sum(row[f"dropped_{reason}"] for reason in REASONS)
        for reason in REASONS:
            assert row[f"dropped_{reason}"] == sum(r.dropped.split(" ")[0] == reason for r in rollouts)
        # the figures are of what was answered, and once more of what trained
        for prefix, some in (("", answers), ("trained_", trained)):
            assert row[f"{prefix}pass_rate"] == pytest.approx(sum(r.outcome == Outcome.CORRECT for r in some) / max(len(some), 1))
            assert row[f"{prefix}reward"] == pytest.approx(sum(r.reward for r in some) / max(len(some), 1))
            assert row[f"{prefix}length"] == pytest.approx(sum(len(r.response_ids) for r in some) / max(len(some), 1))
        assert row["reward_correct"] == pytest.approx(sum(r.reward_parts["correct"] for r in answers) / len(answers))
        assert all((r.step == step) == (r.origin != "replay") for r in rollouts)
    assert any(row["trained"] for row in rows)
    assert asked["guide"] == sum(row["guided"] for row in rows)
    if name == "in flight":  # what was given up, or under way at the end, was asked too; what an update interrupted is asked for its rest
        assert asked["policy"] > sum(row["answered"] for row in rows)
    else:
        assert asked["policy"] == sum(row["answered"] for row in rows)


def test_each_way_out_of_a_batch_is_taken_and_told(ran):
    names = ("dapo", "remix", "npo", "psr", "stale", "masked")
    seen = {name: {(r.origin, r.dropped) for rollouts in ran(name)[1] for r in rollouts} for name in names}
    assert ("policy", "uniform") in seen["dapo"] and ("policy", "") in seen["dapo"]
    assert {("policy", "replaced"), ("replay", "")} <= seen["remix"]
    assert {("policy", "replaced"), ("guide", ""), ("guide", "spare")} <= seen["npo"]
    assert seen["psr"] == {("policy", ""), ("policy", "routing only_correct")}
    assert ("replay", "stale") in seen["stale"] and ("replay", "stale") in seen["masked"] and ("replay", "") not in seen["masked"]


def test_groups_without_a_place_head_the_next_batch(ran):
    """Recent Sample Recovery: what a step of three groups had too many of trains in the next one, and nowhere else."""
    rows, files, _ = ran("recover")
    full = [[r for r in rollouts if r.dropped == "full"] for rollouts in files]
    back = [[r for r in rollouts if r.origin == "replay"] for rollouts in files]
    assert any(full[:-1]) and not back[0]
    for left, again, rollouts, row in zip(full, back[1:], files[1:], rows[1:], strict=False):
        assert [(r.step, r.problem_id, r.sample_id, r.response_ids) for r in again] == [(r.step, r.problem_id, r.sample_id, r.response_ids) for r in left]
        assert not any(r.dropped for r in again)
        groups = {r.group_id for r in rollouts if not r.dropped}
        assert len(groups) <= 3 and sorted(groups)[: len({r.group_id for r in again})] == sorted({r.group_id for r in again})
        assert row["staleness_max"] == (1.0 if again else 0.0)


def test_the_history_counts_what_was_answered(tmp_path, start):
    """drop_high_pass sees the true pass rates, though dapo trains on mixed groups alone; a resumed run reads the same."""
    run(tmp_path, start, row="dapo", steps=3)
    files = [read_trajectories(path) for path in sorted((tmp_path / "rollouts").glob("*.parquet"))]
    history = History(tmp_path / "rollouts")
    told = []
    history.read(told.append)
    assert [len(each) for each in told] == [len(each) for each in files]
    expected = Counter(r.problem_id for rollouts in files for r in rollouts)
    assert {problem: seen.judged for problem, seen in history.totals.items()} == expected
    right = sum(r.outcome == Outcome.CORRECT for rollouts in files for r in rollouts)
    assert sum(seen.right for seen in history.totals.values()) == right
    assert any(r.dropped == "uniform" for rollouts in files for r in rollouts)
    assert len(history.rewards_by_part) == 3


def test_the_default_says_that_everything_trained(tmp_path, start):
    _, (row,), _ = run(tmp_path, start, steps=1)
    assert row["answered"] == row["trained"] == 16 and row["dropped"] == row["replayed"] == row["guided"] == 0
    assert row["trained_pass_rate"] == row["pass_rate"]
