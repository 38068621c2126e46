"""RL whose answers vLLM makes: a run that was killed trains on what it was answered before, and goes on within its bound."""

import importlib.util
import json
import shutil
import signal
from dataclasses import replace

import pytest
from killing import Harness
from kills import STEPS
from loops import TINY, cold_start, project

from pipelines import paths
from pipelines.store import read_json, read_trajectories, write_trajectories

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make install-vllm")

MARK = "read back"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A project whose policy has heads as large as vLLM's kernels for CPUs want them."""
    root = tmp_path_factory.mktemp("vllm")
    project(root / "p", cold_start(root / "start", TINY.model_copy(update={"hidden_size": 64})))
    return root / "p"


@pytest.mark.parametrize(("engine", "bound"), [("vllm", 2), ("vllm_server", 0)])
def test_what_was_answered_before_a_kill_is_read_back(template, tmp_path, engine, bound):
    """Killed in step 4, after the checkpoint of step 2: steps 3 and 4 train again on the answers that are on disk, one of which bears a mark here,
    so that one sampled a second time would show."""
    root = tmp_path / "p"
    shutil.copytree(template, root)
    given = read_json(root / "given.json")
    given["settings"]["recipe"] = "grpo"
    given["settings"]["schedule"] |= {"kind": "in_flight", "bound": bound, "groups": 8} if bound else {}
    given["settings"]["generation"] |= {"engine": engine, "vllm": {"enforce_eager": True, "kv_cache_gib": 0.1}}
    (root / "given.json").write_text(json.dumps(given))
    resume = root / paths.WORK / "t" / paths.RESUME
    harness = Harness(root, "t")
    assert harness("target", "report")[0] == signal.SIGKILL
    before = [read_trajectories(path) for path in sorted((resume / "rollouts").iterdir())]
    third = resume / "ledger" / "step-000003-0.parquet"
    answers = read_trajectories(third)
    write_trajectories(third, [replace(answers[0], response=MARK), *answers[1:]])
    assert harness("end")[0] == 0
    after = [read_trajectories(path) for path in sorted((root / paths.ROLLOUTS / "t").glob("*.parquet"))]
    marked = [t for step in after for t in step if t.response == MARK]
    assert len(before) == 4 and len(after) == STEPS and [t.step for t in marked] == [3]
    assert [*before[:2], before[3]] == [*after[:2], after[3]]
    assert [(t.problem_id, t.response_ids) for t in before[2]] == [(t.problem_id, t.response_ids) for t in after[2]]
    rows = [json.loads(line) for line in (root / paths.WORK / "t" / "journal.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(1, STEPS + 1)] and max(row["staleness_max"] for row in rows) == bound
