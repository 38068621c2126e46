"""Entropy of answers and of next tokens, and the model collapse step: by hand and by brute force."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines import paths
from pipelines.config.common import GenerationSettings
from pipelines.evaluation import collapse, entropy
from pipelines.generation import Sample
from pipelines.models.loading import load_policy
from pipelines.prompting import prompt_ids
from pipelines.records import Problem
from pipelines.seeding import generator

OUTCOME = {"+": "correct", "!": "infrastructure", "?": "unparsable"}


def samples(groups: list[str], *, answer_type: str = "integer") -> pa.Table:
    """One problem per string, one response per letter: + correct, ! not judged, ? without an answer, others wrong with that answer."""
    rows = [
        {"problem_id": f"p{i}", "group_id": i, "step": 1, "outcome": OUTCOME.get(letter, "wrong"), "answer_type": answer_type}
        | {"extracted": None if letter in "?!" else f"{letter}{j if letter == '+' else ''}"}
        | {"vote": None if letter in "?!" else group.index(letter)}
        for i, group in enumerate(groups)
        for j, letter in enumerate(group)
    ]
    return pa.Table.from_pylist(rows)


def test_answers_are_told_apart_by_their_votes() -> None:
    found = entropy.answer_entropies(samples(["++++", "xxy?", "+!x+"]))
    assert found["p0"] == 0.0, "correct answers are one class though their texts differ"
    assert found["p1"] == pytest.approx(-(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))), "no answer is a class of its own"
    assert found["p2"] == pytest.approx(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))), "what was not judged does not count"
    assert entropy.answer_entropies(samples(["+x"], answer_type="program")) == {}


def test_token_entropy_is_that_of_the_whole_next_token_distribution(trained: Path, sums: list[Problem]) -> None:
    model, tokenizer = load_policy(trained / paths.model("sft"))
    asked = sums[:3]
    draw = generator(2)
    responses = [[Sample(draw.integers(5, 200, n).tolist(), [], "stop", "") for n in lengths] for lengths in ((4, 9), (1,), (6, 2))]
    found = entropy.token_entropies(model, tokenizer, asked, responses, GenerationSettings(temperature=0.7))
    for problem, group in zip(asked, responses, strict=True):
        wanted = []
        for sample in group:
            prompt, steps = prompt_ids(tokenizer, problem), []
            for t in range(len(sample.token_ids)):
                logits = model(input_ids=torch.tensor([[*prompt, *sample.token_ids[:t]]])).logits[0, -1].detach().double().numpy() / 0.7
                p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
                steps.append(-(p * np.log(p)).sum())
            wanted.append(np.mean(steps))
        assert found[problem.problem_id] == pytest.approx(np.mean(wanted), abs=1e-5)
    model.get_output_embeddings().weight.data.zero_()
    flat = entropy.token_entropies(model, tokenizer, asked, responses, GenerationSettings())
    assert list(flat.values()) == pytest.approx([math.log(len(model.get_output_embeddings().weight))] * 3, abs=1e-5)


def test_reward_accuracy_by_hand() -> None:
    assert collapse.group_accuracy(["a", "a", "b"], [True, True, False]) == 1.0
    assert collapse.group_accuracy(["a", "a", "b"], [False, False, True]) == 0.0
    assert collapse.group_accuracy(["a", "b"], [True, False]) == 0.5, "a tie is right half of the time"
    assert collapse.group_accuracy(["a", "b", None, None], [True, False, False, False]) == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert collapse.group_accuracy([None, None], [False, False]) == 1.0, "nobody is paid, and nobody was right"
    found = collapse.accuracy_by_step(samples(["++x", "xx+", "!!+"]))
    assert found == {1: pytest.approx((3 + 0 + 1) / 7)}


def test_collapse_step_of_the_worked_series() -> None:
    steps, series = [0, 50, 100, 150, 200], [0.60, 0.40, 0.05, 0.009, 0.005]
    assert collapse.collapse_step(steps, series) == collapse.collapse_step(steps, series, sustained=2) == 150
    assert collapse.collapse_step(steps, [0.6, 0.009, 0.4, 0.009, 0.005], sustained=2) == 150
    assert collapse.collapse_step(steps, [0.6, 0.009, 0.4, 0.009, 0.005]) == 50
    assert collapse.collapse_step(steps[:3], series[:3]) is None, "the run has ended before: that is not its last step"
    assert collapse.collapse_step(steps, series, sustained=3) is None
