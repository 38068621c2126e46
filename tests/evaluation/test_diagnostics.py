"""diagnostics.json of real checkpoints: it follows from what is stored, and the report says what it does."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import paths
from pipelines.evaluation import boundary, diagnostics, entropy, scaling
from pipelines.evaluation.report.diagnostics import sections
from pipelines.evaluation.report.html import Html
from pipelines.evaluation.report.inputs import colours
from pipelines.seeding import generator


@pytest.fixture(scope="module")
def found(evaluated: Path) -> dict[str, Any]:
    return json.loads((evaluated / paths.DIAGNOSTICS).read_text())


def test_every_rl_model_and_the_candidate_are_compared_with_both_starts(evaluated: Path, found: dict[str, Any]) -> None:
    for name in ("sums", "differences"):
        pairs = [(one["start"], one["model"]) for one in found["boundary"][name]]
        assert pairs == [("sft", "sums"), ("sft", "merged"), ("base", "sums"), ("base", "merged")]
    assert [(one["start"], one["model"]) for one in found["weights"]] == [("base", "sft"), ("sft", "sums"), ("sft", "merged")]
    tables = [pq.read_table(evaluated / paths.SAMPLES / model / "sums.parquet") for model in ("sft", "sums")]
    again = boundary.compare(*tables, 400, generator(0))
    here = found["boundary"]["sums"][0]
    assert here["support"]["lost"] == again["support"]["lost"] and here["ks"] == [1, 2, 3, 4]
    assert [point["mean"] for point in here["difference"]] == pytest.approx([point["mean"] for point in again["difference"]])


def test_entropy_falls_as_the_model_learns(evaluated: Path, found: dict[str, Any]) -> None:
    models = found["entropy"]["sums"]["models"]
    assert models["base"]["token"]["mean"] > models["sft"]["token"]["mean"] > models["merged"]["token"]["mean"] > 0
    assert (models["sums"]["token"]["problems"], models["sums"]["answer"]["problems"]) == (4, 18)
    stored = entropy.answer_entropies(pq.read_table(evaluated / paths.SAMPLES / "sums/sums.parquet"))
    assert models["sums"]["answer"]["mean"] == pytest.approx(np.mean(list(stored.values())))
    (change,) = [one for one in found["entropy"]["sums"]["changes"] if (one["start"], one["model"]) == ("sft", "sums")]
    assert change["answer"]["mean"] == pytest.approx(models["sums"]["answer"]["mean"] - models["sft"]["answer"]["mean"])


def test_equal_weights_are_seen_as_equal(found: dict[str, Any]) -> None:
    """`merged` of this fixture is a copy of `sums`."""
    (one, other) = ({key: value for key, value in found["weights"][i].items() if key != "model"} for i in (1, 2))
    assert one == other and 0 < one["sparsity"] < 1 and one["drift"] > 0


def test_scaling_is_that_of_the_rollouts(found: dict[str, Any]) -> None:
    run = found["scaling"]["sums"]
    assert run["steps"] == list(range(1, 41))
    assert (run["reward"][0], run["reward"][-1]) == (pytest.approx(2 / 7), pytest.approx(6 / 7)), "what was not judged does not count"
    fitted = scaling.fit(np.arange(40.0), np.array(run["reward"]))
    assert run["refused"] == list(fitted.refused) and (run["asymptote"] is None) == bool(run["refused"])
    assert (run["ahead"]["from"], run["ahead"]["to"], run["check"]["from"]) == (41, 80, 21)
    assert run["curve"][0]["step"] == 1 and run["curve"][-1]["step"] == 80
    assert found["pseudo_reward"]["sums"]["accuracy"][-1] == 1.0 and found["pseudo_reward"]["sums"]["collapse_step"] is None
    short = diagnostics.extrapolate((np.arange(1.0, 6.0), np.linspace(0, 1, 5)), 2.0)
    assert short["refused"] == ["5 steps are too few: expected 16"] and "curve" not in short


def test_the_report_says_only_what_the_intervals_say(found: dict[str, Any]) -> None:
    def text(part: dict[str, Any], anchor: str) -> str:
        shown = {name: content for name, _, content, _ in sections(part, colours(["base", "sft", "sums", "merged"], "sft", "merged"))}[anchor]
        assert isinstance(shown, Html)
        return re.sub("<[^>]+>", "", shown)

    changed = json.loads(json.dumps(found))
    one = changed["boundary"]["sums"][0]
    one["crossing"] = {"k": 2.5, "low": 1.8, "high": 3.1, "shown": True, "behind_from": 3}
    assert "The curves cross at k* = 2.50, 95 % interval 1.80 to 3.10: with more samples sft solves more." in text(changed, "boundary")
    one["crossing"] |= {"high": None, "shown": False}
    one["support"]["excess"]["srr"] = {"mean": -0.3, "low": -0.4, "high": -0.2}
    said = text(changed, "boundary")
    assert "No crossing shown: k* = 2.50, but its 95 % interval is 1.80 to beyond 4." in said and "−0.300 −0.40 to −0.20" in said
    changed["scaling"]["sums"] |= {"refused": ["a curve that does not rise fits as well"], "asymptote": None}
    assert "no asymptote is told: a curve that does not rise fits as well." in text(changed, "scaling")
    changed["weights"][0] |= {"sparsity": 0.77, "drift": 1.5e-5, "stable_rank": None}
    assert "sft against base77 %" in text(changed, "weights") and "1.5e−5" in text(changed, "weights")
