"""When answers are made and when they train: killed anywhere, a run does what one left alone does, and nothing is older than it may be."""

import pytest
import torch
from killing import Killed
from loops import ONE_AHEAD, run

from pipelines.config.common import GenerationSettings
from pipelines.config.rl import ScheduleSettings
from pipelines.generation import torch_engine
from pipelines.store import read_trajectories

UNEVEN = GenerationSettings(max_new_tokens=24, batch_size=6)
"""Few rows, so that groups end at different times."""
SCHEDULES = {
    "synchronous": ScheduleSettings(),
    "one ahead": ONE_AHEAD,
    "bound 1": ScheduleSettings(kind="in_flight", bound=1, groups=8),
    "bound 2": ScheduleSettings(kind="in_flight", bound=2, groups=8),
    "bound 4": ScheduleSettings(kind="in_flight", bound=4, groups=12),
    "finish": ScheduleSettings(kind="in_flight", bound=2, groups=8, running="finish"),
    "drop": ScheduleSettings(kind="in_flight", bound=2, groups=8, running="drop"),
}
TOOLS = {"environment": {"name": "tools", "call": "function", "described": False}}


def same(one, other) -> None:
    (weights, rows, files), (weights2, rows2, files2) = one, other
    assert all(torch.equal(weights[name], weights2[name]) for name in weights)
    assert rows == rows2 and files == files2


LONG = {"one ahead", "bound 1", "bound 4"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in SCHEDULES])
def test_a_killed_run_is_the_run_left_alone(tmp_path, start, name):
    """Killed between checkpoints, with groups under way; and once more without reading back what was answered."""
    changes = {"row": "grpo", "schedule": SCHEDULES[name], "generation": UNEVEN, "overrides": TOOLS}
    whole = run(tmp_path / "whole", start, **changes)
    with pytest.raises(Killed):
        run(tmp_path / "cut", start, stop_at=3, **changes)
    asked = []
    real = torch_engine._Rows.answer
    torch_engine._Rows.answer = lambda self, requests=(): asked.extend(requests) or real(self, requests)
    try:
        same(whole, run(tmp_path / "cut", start, **changes))
    finally:
        torch_engine._Rows.answer = real
    assert not any(request.key[2:4] == ("rollout", 3) and name in ("synchronous", "one ahead") for request in asked), "step 3 was sampled again"


@pytest.mark.parametrize("bound", [1, 2, 4])
def test_nothing_is_older_than_the_bound_and_tokens_say_their_version(tmp_path, start, bound):
    schedule = ScheduleSettings(kind="in_flight", bound=bound, groups=4 * bound)
    _, rows, _ = run(tmp_path, start, row="grpo", schedule=schedule, generation=UNEVEN, steps=8)
    lags = []
    for step, path in enumerate(sorted((tmp_path / "rollouts").glob("*.parquet")), 1):
        trajectories = read_trajectories(path)
        assert sorted({t.group_id for t in trajectories}) == [0, 1, 2, 3] and all(t.step == step for t in trajectories)
        for group in range(4):
            versions = [v for t in trajectories if t.group_id == group for v in t.policy_version]
            lags.append(step - 1 - min(versions))
            assert lags[-1] <= bound and step - 1 - max(versions) >= (step > 1)
    assert max(lags) == bound or bound == 4
    assert all(row["staleness_max"] <= bound and row["given_up"] == 0 for row in rows)
    assert any(len(set(t.policy_version)) > 1 for path in (tmp_path / "rollouts").glob("*.parquet") for t in read_trajectories(path)) == (bound > 1)
