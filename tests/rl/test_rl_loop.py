"""The loop with real parts (loops.py): resume, files, recipes, learning, and the order of problems."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from killing import Killed
from loops import PROBLEMS, run

from pipelines.config.common import GenerationSettings, OptimiserSettings
from pipelines.errors import InfrastructureError
from pipelines.records import Outcome, Problem, Trajectory, one_turn
from pipelines.rl import RECIPES
from pipelines.rl.account import training
from pipelines.rl.collate import judged, minibatches, tensors
from pipelines.rl.history import History
from pipelines.rl.recompose.swarm import FOLDER
from pipelines.rl.tasks import Draw, draw
from pipelines.rl.update import group_buckets, laid_down, length_buckets, prompt_buckets
from pipelines.store import read_trajectories

STATEFUL = ["grpo", "dapo", "ppo", "sdpo", "remix", "siren", "laser", "scale_rl", "recap", "rae", "remax", "gpg"]
"""grpo, and rows with state of their own: further draws, a value head, a teacher, an earlier policy, held statistics, histories, a greedy answer."""


@pytest.mark.parametrize("row", STATEFUL)
def test_a_killed_run_resumes_to_the_same_weights_log_and_rollouts(tmp_path, start, row):
    run_and_cut(tmp_path, start, row=row)


def test_a_killed_run_recovers_the_same_groups(tmp_path, start):
    """Of dynamic sampling that hands its surplus to the next step; the step after the checkpoint gets that of the step before."""
    recover = {"recompose": [{"name": "dynamic_sampling", "rounds": 3, "recover": True}]}
    rows = run_and_cut(tmp_path, start, row="pshw", prompts_per_step=6, optimiser=OptimiserSettings(lr=1e-5), overrides=recover)
    assert rows[4]["replayed"] > 0


def run_and_cut(tmp_path, start, row, **changes):
    """The journal of a run that was left alone, which a run that was killed has too."""
    weights, rows, files = run(tmp_path / "whole", start, row=row, **changes)
    assert not any("value_head" in name for name in weights)
    assert any(not torch.equal(weights[name], start[name]) for name in start)  # there was something to learn from
    assert len(rows) == 6 and len(files) == 6
    with pytest.raises(Killed):
        run(tmp_path / "cut", start, stop_at=5, row=row, **changes)  # the last checkpoint is of step 4: step 5 is done again
    resumed, resumed_rows, resumed_files = run(tmp_path / "cut", start, row=row, **changes)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert resumed_rows == rows
    assert resumed_files == files
    return rows


def test_rollouts_hold_what_was_sampled_and_judged(tmp_path, start):
    _, rows, _ = run(tmp_path, start, steps=1)
    table = pq.read_table(tmp_path / "rollouts" / "step-000001.parquet").to_pylist()
    assert len(table) == 16
    for row in table:
        assert len(row["response_ids"]) == len(row["behaviour_logp"]) == len(row["policy_version"])
        assert row["outcome"] in [outcome.value for outcome in Outcome]
        assert row["reward"] == (row["outcome"] == "correct")
    assert rows[0]["pass_rate"] == sum(row["outcome"] == "correct" for row in table) / 16
    assert abs(rows[0]["mismatch_k3"]) < 1e-6 and rows[0]["mismatch_outside"] == 0


@pytest.mark.parametrize("row", ["grpo", "siren", "ter", "pacs", "delta", "srpo"])
def test_micro_batch_size_changes_no_loss(tmp_path, start, row):
    _, (one,), _ = run(tmp_path / "one", start, row=row, steps=1, micro_batch=1)
    _, (all_,), _ = run(tmp_path / "all", start, row=row, steps=1, micro_batch=64)
    assert one["loss"] == pytest.approx(all_["loss"], abs=1e-6)
    assert one["grad_norm"] == pytest.approx(all_["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("row", RECIPES)
def test_other_recipes_run_off_policy_too(tmp_path, start, monkeypatch, row):
    monkeypatch.setenv(FOLDER, str(tmp_path))  # for `swarm`
    weights, rows, _ = run(tmp_path, start, row=row, steps=2, minibatches=2)
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert len(rows) == 2


def test_rewards_rise_on_problems_that_can_be_learnt(tmp_path, start):
    _, rows, _ = run(tmp_path, start, steps=30, prompts_per_step=8, group_size=8, micro_batch=64)
    reward = [row["reward"] for row in rows]
    assert sum(reward[-5:]) / 5 > sum(reward[:5]) / 5 + 0.1


def test_every_problem_once_per_epoch_in_a_new_order():
    def drawn(step: int) -> list[Problem]:
        return draw(PROBLEMS[:10], [], Draw(4, (1, "rl@t"), step, 0, History(Path())))

    steps = [drawn(step) for step in range(1, 6)]
    seen = [p.problem_id for step in steps for p in step]
    ids = sorted(p.problem_id for p in PROBLEMS[:10])
    assert sorted(seen[:10]) == sorted(seen[10:]) == ids
    assert seen[:10] != seen[10:]
    assert drawn(3) == steps[2]


def rollout(outcome: str, group: int = 0) -> Trajectory:
    return Trajectory("p", group, 0, 1, "t", one_turn([1, 2], [3, 4, 5], [-0.1, -0.2, -0.3], [0] * 3), "stop", outcome=outcome, reward=float(outcome == "correct"))


def test_infrastructure_verdicts_never_train():
    answers = judged([rollout("correct"), rollout("infrastructure"), rollout("wrong")])
    assert [r.dropped for r in answers] == ["", "infrastructure", ""]
    ids, score, batch = tensors(training(answers), torch.device("cpu"), 1, 8)
    assert batch.reward_B.tolist() == [1.0, 0.0]
    assert ids.tolist() == [[1, 2, 3, 4, 5]] * 2
    assert score.tolist() == [[False, False, True, True, True]] * 2
    torch.testing.assert_close(batch.logp_roll_BT[0], torch.tensor([0, 0, -0.1, -0.2, -0.3]))
    with pytest.raises(InfrastructureError, match="no response could be judged"):
        judged([replace(rollout("infrastructure"), detail="bubblewrap is missing")])


def test_minibatches_keep_groups_whole_and_buckets_keep_every_row():
    assert minibatches([rollout("wrong", group) for group in (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)], 3) == [[0, 1], [2, 3], [4]]
    score = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    assert [b.tolist() for b in length_buckets(score, 2)] == [[1, 2], [0]]
    pairs, ends = torch.tensor([5, 7, 5, 7, 9]), torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]]).bool()
    assert [b.tolist() for b in group_buckets(pairs, ends, 4)] == [[4, 1, 3], [0, 2]]  # whole groups, the short ones first
    assert [b.tolist() for b in group_buckets(pairs, ends, 1)] == [[4], [1, 3], [0, 2]]
    assert [b.tolist() for b in prompt_buckets(pairs, ends, 2)] == [[4, 1], [3, 0], [2]]  # group 7 before 5, which has the longest row
    prompts = torch.tensor([[1] * 9, [2] * 9, [1] * 9, [2] * 9])
    answers = torch.tensor([[0] * 7 + [1, 0], [0] * 7 + [1, 0], [0] * 7 + [1, 1], [0] * 7 + [1, 1]]).bool()
    of = torch.tensor([0, 1, 0, 1])
    # by length, no two rows of a micro-batch share their 7 tokens; by group each micro-batch runs one prompt. The last scored token never runs
    assert laid_down(prompts, answers, length_buckets(answers, 2)) == 7 + 7 + 8 + 8
    assert laid_down(prompts, answers, prompt_buckets(of, answers, 2)) == 7 + 8 + 7 + 8 - 2 * 7


@pytest.mark.parametrize("row", ["grpo", "dapo"])
def test_a_problem_that_comes_twice_is_answered_twice(tmp_path, start, row):
    """Within a step, and in the further draws of dynamic sampling, whose groups stand beside those of the first."""
    _, rows, files = run(tmp_path, start, row=row, steps=3, prompts_per_step=14, generation=GenerationSettings(max_new_tokens=12, temperature=2.0))
    assert len(rows) == 3
    for name in files:
        groups: dict[int, list[tuple[int, ...]]] = {}
        by_problem: dict[str, set[int]] = {}
        for rollout in read_trajectories(tmp_path / "rollouts" / name):
            groups.setdefault(rollout.group_id, []).append(tuple(rollout.response_ids))
            by_problem.setdefault(rollout.problem_id, set()).add(rollout.group_id)
        assert max(map(len, by_problem.values())) > 1  # ten problems, fourteen slots
        assert len({tuple(answers) for answers in groups.values()}) == len(groups)
