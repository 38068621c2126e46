"""A policy that does not change has a ratio of 1, in whatever precision and in however many pieces it is scored."""

import re
from pathlib import Path

import pytest
import torch
from loops import PROBLEMS, TOKENIZER, policy_of, run, settings

from pipelines.config.common import OptimiserSettings
from pipelines.models import precision
from pipelines.models.scoring import chosen, pad
from pipelines.rl.inputs.step import scored

STILL = OptimiserSettings(lr=1e-30, schedule="constant", weight_decay=0.0)
"""A rate so small that no weight changes by it."""


@pytest.fixture
def any_precision(monkeypatch):
    """bfloat16 on every CPU: emulated where it has no units for it."""
    monkeypatch.setattr(precision, "_has_units", lambda kind: True)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize(("minibatches", "epochs"), [(1, 1), (1, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize("row", ["gspo", "lp_reg", "ace"])
def test_at_a_rate_of_zero_every_ratio_is_one(tmp_path, start, any_precision, row, kind, minibatches, epochs):
    """gspo's clip is at 3e-4; lp_reg and ace score before the update too, for their statistics and advantages."""
    more = {"steps": 2, "micro_batch": 3, "optimiser": STILL, "precision": kind, "minibatches": minibatches, "epochs": epochs}
    weights, rows, _ = run(tmp_path, start, row=row, **more)
    assert all(torch.equal(weights[name], start[name]) for name in start)
    assert [entry["ratio"] for entry in rows] == [1.0, 1.0] and [entry["clipped"] for entry in rows] == [0.0, 0.0]
    assert all(entry["grad_norm"] > 0 for entry in rows)


def test_the_head_is_float32_in_every_precision(start):
    """The likeliest tokens of a confident policy differ in log-probability by less than bfloat16 can tell apart."""
    policy, seen = policy_of(start), []
    policy.get_output_embeddings().register_forward_hook(lambda module, given, out: seen.append((given[0].dtype, out.dtype)))
    ids = pad([TOKENIZER(p.prompt)["input_ids"] for p in PROBLEMS[:3]])
    score = ids.new_ones(ids.shape).bool()
    score[:, 0] = False
    logp = scored(settings(precision="bfloat16"), policy, ids, score, {"logp": chosen})["logp"]
    assert seen == [(torch.float32, torch.float32)] and logp.dtype == torch.float32
    whole = scored(settings(), policy, ids, score, {"logp": chosen})["logp"]
    assert not torch.equal(logp, whole) and torch.allclose(logp, whole, atol=0.2)


def test_nothing_in_rl_scores_tokens_but_in_the_stages_precision():
    sources = (Path(__file__).parents[2] / "pipelines" / "rl").rglob("*.py")
    callers = {path.name for path in sources if re.search(r"\btoken_(scores|logp)\(", path.read_text())}
    assert callers == {"step.py"}
