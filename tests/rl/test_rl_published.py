"""The RL stages of overlays/published, as their recipes and triggers say, on the tiny policy: two steps of each that differs from the others."""

import json
import math
from dataclasses import replace
from pathlib import Path

import loops
import pytest
from loops import run

from pipelines.config import read_yaml
from pipelines.config.rl import ResetSettings, ValidationSettings
from pipelines.rl.environments import intersection
from pipelines.store import read_trajectories

OVERLAYS = Path(__file__).parents[2] / "overlays" / "published"
STAGES = {
    json.dumps([stage["recipe"], stage.get("overrides", {}), stage.get("minibatches", 1), "reset" in stage], sort_keys=True): (name, stage)
    for overlay in sorted(OVERLAYS.glob("*.yaml"))
    for name, stage in read_yaml(overlay)["stages"].items()
    if stage["kind"] == "rl"
}


@pytest.mark.parametrize(("name", "stage"), STAGES.values(), ids=[name for name, _ in STAGES.values()])
def test_a_stage_of_a_published_pipeline_trains(tmp_path, start, monkeypatch, name, stage):
    more = {"validation": ValidationSettings(every=1, problems=2, samples=2), "reset": ResetSettings(**stage["reset"])} if "reset" in stage else {}
    overrides = stage.get("overrides", {})
    if overrides.get("environment", {}).get("name") == "intersection":
        asked = [intersection.asked([9, 0, 4, lane]) for lane in range(10)]
        monkeypatch.setattr(loops, "PROBLEMS", [replace(p, prompt=prompt) for p, prompt in zip(loops.PROBLEMS, asked, strict=False)])
    _, rows, _ = run(tmp_path, start, row=stage["recipe"], overrides=overrides, steps=2, minibatches=stage.get("minibatches", 1), **more)
    assert all(math.isfinite(row["loss"]) and row["trained"] > 0 for row in rows)
    parts = {part["name"] for part in overrides.get("parts", [])}
    for path in (tmp_path / "rollouts").iterdir():
        for r in read_trajectories(path):
            correct, form = r.reward_parts["correct"], r.reward_parts["format"]
            if "cosine" in parts:
                assert r.reward == pytest.approx(form + 2 * r.reward_parts["cosine"]) and (r.reward_parts["cosine"] > 0) == (correct == 1)
            elif "repetition" in parts:
                assert r.reward == (correct if form == 1 and r.reward_parts["repetition"] < 0.5 else 0.0)
            elif weights := overrides.get("combine", {}).get("weights"):
                assert r.reward == pytest.approx(weights["correct"] * correct + weights["format"] * form)
            else:
                assert r.reward == correct
