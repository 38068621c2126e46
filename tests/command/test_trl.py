"""TRL's trainers as programs of a stage, for real, where their environment is there."""

import math
from pathlib import Path

import pytest
from programs import give, project, run_stage

from pipelines import paths
from pipelines.models.loading import load_policy
from pipelines.store import read_json, read_trajectories

ROOT = Path(__file__).parents[2]
SMALL = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_steps": 1}


@pytest.mark.skipif(not (ROOT / ".venv-trl").exists(), reason="TRL's environment is not there: make install-trl")
def test_both_trainers_leave_a_model_that_has_moved(tmp_path):
    root = project(tmp_path)
    (root / "overlays").mkdir()
    (root / "overlays/trl").symlink_to(ROOT / "overlays/trl")
    (root / ".venv-trl").symlink_to(ROOT / ".venv-trl")
    grpo = SMALL | {"num_generations": 4, "max_completion_length": 8}
    for name, settings, rollouts in (("grpo", grpo, True), ("sft", SMALL, False)):
        command = ["python", f"overlays/trl/{name}.py"]
        give(root, command=command, code=["overlays/trl"], environment=".venv-trl", settings=settings, rollouts=rollouts)
        summary = run_stage(root, "discard")
        assert summary["steps"] == 2 and math.isfinite(summary["loss"])
        first, _ = load_policy(root / "data/models/start")
        moved = [not value.equal(load_policy(root / "data/models/t")[0].state_dict()[key]) for key, value in first.state_dict().items()]
        assert any(moved) or name == "grpo", "an untrained policy is never right, so GRPO has nothing to learn"
        environment = read_json(root / paths.manifest("t"))["predicate"]["buildDefinition"]["internalParameters"]["environment"]
        assert environment["trl"].startswith("1.16.")
        if rollouts:
            found = [t for step in (1, 2) for t in read_trajectories(root / f"data/rollouts/t/step-{step:06d}.parquet")]
            assert len(found) == 8 and all(1 <= len(t.response_ids) <= 8 and t.response is not None for t in found)
