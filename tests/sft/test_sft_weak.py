"""Weak-to-Strong Generalization (arXiv 2312.09390) on text: labels of a weaker model, the confidence loss, the performance gap recovered."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from killing import Killed, die_after
from test_accepted_rollouts import accepted, answer
from test_sft_stage import context, losses, root, same, weights  # noqa: F401
from test_supervised import PROBLEMS, TINY, TOKENIZER

from pipelines import paths
from pipelines.config import Params
from pipelines.config.training import ConfidenceSettings, LanguageModellingSettings
from pipelines.evaluation.scores import score_benchmark
from pipelines.evaluation.statistics import Ratio, recovered
from pipelines.models.loading import write_vocabulary
from pipelines.models.tiny import tiny_model
from pipelines.records import one_turn
from pipelines.sft import train as loop
from pipelines.sft.examples import chat_examples
from pipelines.sft.objectives import _with_own, confidence, confident
from pipelines.stages import Context, sft
from pipelines.stages.evaluation import headline
from pipelines.store import write_trajectories

STEP_05, STEP_50 = 0.05, 0.5


def test_the_share_of_the_own_prediction_rises_as_released_or_evenly() -> None:
    released, linear = ConfidenceSettings(), ConfidenceSettings(ramp="linear")
    assert [confidence(released, done) for done in (0, STEP_05, 0.2, 1)] == pytest.approx([0, 0.025, 0.5, 0.5]), "it jumps from .05 to .5"
    assert [confidence(linear, done) for done in (0, STEP_05, 0.1, 1)] == pytest.approx([0, 0.25, 0.5, 0.5])
    assert confidence(ConfidenceSettings(warm=0), 0) == 0.5


def test_confident_loss_of_tokens() -> None:
    logits = torch.tensor([[1, 0.2, -0.5], [0.3, 0.4, 0]], requires_grad=True)
    loss = -_with_own(torch.log_softmax(logits, -1), {"target": torch.tensor([0, 2])}, 0.5)
    assert loss.tolist() == pytest.approx([0.514295, 1.145911], abs=1e-6)
    loss.sum().backward()
    probabilities = torch.softmax(logits.detach(), -1)
    targets = torch.tensor([[1, 0, 0], [0, 0.5, 0.5]])  # the argmax is a constant: half of the target each
    torch.testing.assert_close(logits.grad, probabilities - targets)


def test_the_loop_warms_the_loss_up() -> None:
    """Before it is warm the first batch's gradient is that of next tokens; half warm it is of both."""
    examples, settings = chat_examples(TOKENIZER, PROBLEMS[:4], 256)[0], LanguageModellingSettings()
    objective = confident(ConfidenceSettings(ramp="linear"))

    def loss(objective=None) -> float:
        return loop.gradients(tiny_model(TINY, TOKENIZER, 1), examples, settings, *([objective] if objective else []))

    model = tiny_model(TINY, TOKENIZER, 1)
    own = 0.0
    with torch.no_grad():
        for example in examples:
            logp = torch.log_softmax(model(torch.tensor([example.ids])).logits[0], -1)
            own -= float(logp.max(-1).values[example.spans[0][0] - 1 : -1].sum())
    own /= sum(example.scored for example in examples)
    assert loss(objective.after(0.0)) == pytest.approx(loss(), rel=1e-6)
    assert loss(objective.after(STEP_05)) == pytest.approx(0.75 * loss() + 0.25 * own, rel=1e-5)
    assert loss(objective) == pytest.approx(loss(objective.after(STEP_50))) == pytest.approx(0.5 * loss() + 0.5 * own, rel=1e-5)


def test_labels_of_a_weaker_model_are_whatever_it_answered() -> None:
    said = {"response": "x"}
    answers = [answer("a", [5], **said), answer("a", [7, 8], outcome="wrong", **said), answer("b", [9], outcome="unparsable", **said)]
    answers += [answer("b", [6], origin="guide", **said), answer("b", [4], outcome="wrong", response=" ")]
    assert accepted(*answers, verdict="any", choose="shortest") == {"a": [[5], [7, 8]], "b": [[9]]}
    assert accepted(*answers) == {"a": [[5]]}


def labelled(folder: Path, name: str) -> Context:
    """A stage that learns from a weaker model's answers, every second of which is wrong."""
    stage = context(folder, name, data=["weak/rollouts"], accept={"verdict": "any"}, confidence={"warm": 0.5})
    examples = chat_examples(TOKENIZER, PROBLEMS[:24], 256)[0]
    labels = []
    for place, example in enumerate(examples):
        start, ids = example.spans[0][0], example.ids
        segments = one_turn(ids[:start], ids[start:], [0.0] * (len(ids) - start), [0] * (len(ids) - start))
        labels.append(answer(example.of, [], outcome="wrong" if place % 2 else "correct", segments=segments, response="x"))
    rollouts = stage.root / paths.rows("weak/rollouts")
    write_trajectories(rollouts / "00000000.parquet", labels)
    write_vocabulary(rollouts, TOKENIZER)
    return stage


def test_a_stage_trusts_the_labels_less_as_it_warms_and_resumes_exactly(root: Path) -> None:  # noqa: F811
    whole = sft.run(labelled(root, "weak"))
    assert whole["examples"] == 24 and whole["steps"] == 6
    cut = labelled(root, "weak-cut")
    die_after(cut.journal, 4)
    with pytest.raises(Killed):
        sft.run(cut)
    assert sft.run(labelled(root, "weak-cut")) == whole
    assert same(weights(root, "weak-cut"), weights(root, "weak"))
    assert losses(root, "weak-cut") == losses(root, "weak")


def samples(right: list[int], of: int = 20) -> pa.Table:
    """A benchmark of problems with `of` answers each, so many right."""
    rows = [
        {"problem_id": f"p{place}", "sample": n, "outcome": "correct" if n < count else "wrong", "score": float(n < count), "vote": None,
         "confidence": None, "logp": None, "finish_reason": "stop", "response": f"{n}", "response_tokens": 1, "answer": "1", "answer_type": "program",
         "topics": []}
        for place, count in enumerate(right) for n in range(of)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def test_the_gap_that_is_recovered() -> None:
    figures = np.array([0.72, 0.60, 0.85])
    assert recovered(figures, figures[None], 2).mean == pytest.approx(0.48)
    assert recovered(np.array([0.7, 0.6, 0.6]), figures[None], 2) == Ratio(None, None, None), "no gap"
    tables = {"strong": samples([14, 15, 14, 15, 14] * 30), "weak": samples([12] * 150), "ceiling": samples([17] * 150)}
    (gap,) = score_benchmark(tables, [1], [], 2000, 1, "b", gaps=[("strong", "weak", "ceiling")])["recovered"]
    assert gap["mean"] == pytest.approx(0.48) and 0.45 < gap["low"] < 0.48 < gap["high"] < 0.51
    # the answers right have variance .24 by problem and the others none, so the standard error is (.24 / 149)^.5 / 5 of the gap
    assert gap["high"] - gap["low"] == pytest.approx(2 * 1.976 * (0.24 / 149) ** 0.5 / 5, rel=0.1)
    (beyond,) = score_benchmark(tables, [1], [], 200, 1, "b", gaps=[("ceiling", "weak", "strong")])["recovered"]
    assert beyond["mean"] == pytest.approx(5 / 2.4) and beyond["low"] < beyond["mean"] < beyond["high"]


def test_a_gap_names_models_that_are_evaluated(tmp_path: Path) -> None:
    content = {
        "seed": 1,
        "sources": {"train": {"a": {"kind": "arithmetic", "count": 9}}, "benchmarks": {"b": {"kind": "arithmetic", "count": 2}}},
        "stages": {"weak": {"kind": "sft", "init": "base", "data": "curation/sft"}},
        "evaluation": {"gate": {"candidate": "weak", "against": "base", "improve": ["b"]}, "gaps": [["weak", "base", "ceilin"]]},
    }
    with pytest.raises(ValueError, match="evaluation.gaps: 'ceilin' is no model that is evaluated; there are base, weak"):
        Params.model_validate(content)


def test_the_gap_is_a_figure_of_the_stage_where_there_is_one() -> None:
    gap = {"model": "strong", "weak": "weak", "ceiling": "top", "k": 1}
    scores = {"gate": {"passed": True}, "models": {}, "benchmarks": {"math": {"recovered": [gap | {"mean": 0.48}, gap | {"model": "x", "mean": None}]}}}
    assert headline(scores) == {"gate_passed": 1.0, "strong_math_gap_recovered": 0.48}
