"""What a step on one problem does to the right answers of the others: worked figures, first-order agreement, and the command."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flows.cli import main
from pipelines.evaluation.interference import Answered, answered, figures, likelihood, measure, rank_correlation
from pipelines.evaluation.samples import SAMPLE_SCHEMA
from pipelines.models.loading import load_policy
from pipelines.prompting import PLAIN


def test_the_worked_matrix() -> None:
    """Of six pairs five lose; what the others do to the problems, -.15, .05 and -.1, has the order of their pass rates."""
    changes = np.array([[0.5, 0.2, -0.1], [-0.1, 0.4, -0.1], [-0.2, -0.1, 0.3]])
    found = figures(changes, [0.25, 0.75, 0.5])
    assert found == pytest.approx({"own": 0.4, "others": -0.4 / 6, "negative": 5 / 6, "harm": -0.12, "winner_take_all": 1.0})
    assert figures(changes, [0.75, 0.25, 0.5])["winner_take_all"] == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5)) and rank_correlation([1, 1], [1, 2]) == 0.0


def test_a_step_moves_the_others_as_their_gradients_say(trained) -> None:
    """I_ij = step |w| g_i.h_j / |g_i| to first order, equal problems get the same, and the weights are as they were."""
    policy, _ = load_policy(trained / "data/models/sft")
    one, two = Answered([3, 5, 6], [[7, 8], [9, 8], [10]], [True, False, False]), Answered([4, 6], [[11, 8], [7, 9]], [False, True])
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    changes = measure(policy, [one, two, one], 1e-5)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert changes[0] == pytest.approx(changes[2]) and changes[:, 0] == pytest.approx(changes[:, 2])
    weights = [weight for weight in policy.parameters() if weight.requires_grad]

    def slope(problem: Answered, right: bool) -> torch.Tensor:
        """Of its likelihood, or of minus its loss, by a loop over answers."""
        total = torch.zeros(())
        for answer, good in zip(problem.answers, problem.right, strict=True):
            ids = torch.tensor([problem.prompt + answer])
            logp = policy(ids).logits[0, len(problem.prompt) - 1 : -1].log_softmax(-1)[range(len(answer)), answer].mean()
            share = (good / sum(problem.right)) if right else (good - problem.rate) / len(problem.right)
            total = total + share * logp
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, weights)])

    norm = float(torch.cat([w.detach().flatten() for w in weights]).norm())
    for i, learnt in enumerate((one, two)):
        step = slope(learnt, right=False)
        for j, other in enumerate((one, two)):
            expected = 1e-5 * norm * float(step @ slope(other, right=True) / step.norm())
            assert changes[i, j] == pytest.approx(expected, rel=0.05, abs=2e-6)
    assert likelihood(policy, two) < 0


def test_the_command_reads_samples(trained, tmp_path, capsys) -> None:
    blank = {"topics": [], "seed": 0, "response_tokens": 1, "finish_reason": "stop", "score": 0.0, "detail": "", "answer_type": "integer"}
    rows = [
        {**blank, "problem_id": f"p{n}", "prompt": f"{n} + 1", "answer": str(n + 1), "sample": s, "response": f"\\boxed{{{n + 1 + s}}}",
         "outcome": "correct" if s == 0 else "infrastructure" if s == 3 else "wrong"}
        for n in range(4) for s in range(4) if n < 3 or s == 0
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), tmp_path / "samples.parquet")
    _, tokenizer = load_policy(trained / "data/models/sft")
    found = answered(pq.read_table(tmp_path / "samples.parquet"), tokenizer, PLAIN)
    assert list(found) == ["p0", "p1", "p2"] and all(each.right == [True, False, False] for each in found.values())  # p3 has no wrong one
    assert found["p1"].answers[0] == [*tokenizer("\\boxed{2}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    out = tmp_path / "out.json"
    assert main(["interference", str(trained / "data/models/sft"), str(tmp_path / "samples.parquet"), "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert np.array(told["changes"]).shape == (3, 3) and told["own"] > 0 and told["problems"] == ["p0", "p1", "p2"]
    assert "3 of 3 problems with right and wrong answers" in capsys.readouterr().out
    assert main(["interference", str(trained / "data/models/sft"), str(tmp_path / "samples.parquet"), "--problems", "2"]) == 0
    pq.write_table(pa.Table.from_pylist(rows[:3], schema=SAMPLE_SCHEMA), tmp_path / "few.parquet")
    assert main(["interference", str(trained / "data/models/sft"), str(tmp_path / "few.parquet")]) == 2
