"""What learning one problem does to the others (The Reasoning Boundary Paradox, arXiv 2510.02230).

    I_ij   change of the log-likelihood of problem j's right answers, nats a token, by one step along the policy gradient of problem i alone,
           L_i = -mean over its answers of A mean_t log pi,  A = R - mean R; the step has a share of the norm of the weights
    negative interference   I_ij < 0 for i != j: what is learnt of one problem is lost of another
    winner-take-all         rank correlation over problems of the pass rate and of what the others do to it, mean_{i != j} I_ij: above 0 those gain
                            that were solved often, and those lose that were solved seldom

The paper measures what one problem's update does to others' likelihood; the form of the step, and the correlation, are ours. P problems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipelines import prompting
from pipelines.config.common import PromptSettings
from pipelines.evaluation.statistics import Floats
from pipelines.models.scoring import chosen, pad, token_scores
from pipelines.records import Outcome, Problem


@dataclass(frozen=True)
class Answered:
    """A problem: ids of its prompt, of its answers, and which of those are right, some and not all."""

    prompt: list[int]
    answers: list[list[int]]
    right: list[bool]

    @property
    def rate(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)


def answered(samples: pa.Table, tokenizer: Any, settings: PromptSettings) -> dict[str, Answered]:
    """By id the problems of a SAMPLE_SCHEMA table with right and wrong answers, each answer up to its end token where it came to that."""
    found: dict[str, Answered] = {}
    for row in samples.to_pylist():
        if row["outcome"] == Outcome.INFRASTRUCTURE or not row["response"]:
            continue
        if row["problem_id"] not in found:
            problem = Problem(row["problem_id"], "", row["prompt"], row["answer"], row["answer_type"], "")
            found[row["problem_id"]] = Answered(prompting.prompt_ids(tokenizer, problem, settings), [], [])
        ids = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        found[row["problem_id"]].answers.append([*ids, tokenizer.eos_token_id] if row["finish_reason"] == "stop" else ids)
        found[row["problem_id"]].right.append(row["outcome"] == Outcome.CORRECT)
    return {name: each for name, each in found.items() if 0 < each.rate < 1}


def measure(policy: Any, problems: Sequence[Answered], step: float = 1e-4, show: Callable[[int, int], None] | None = None) -> Floats:
    """I (P, P): row i is learnt, column j changes. The policy has its weights back at the end. step: share of their norm. show(done, total)."""
    policy.eval()
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    start = [weight.detach().clone() for weight in weights]
    length = step * _norm(start)
    before = np.array([likelihood(policy, problem) for problem in problems])
    changes = np.zeros((len(problems), len(problems)))
    for i, problem in enumerate(problems):
        gradients = torch.autograd.grad(_loss(policy, problem), weights)
        share = length / max(_norm(gradients), 1e-30)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(gradient, alpha=share)
            changes[i] = np.array([likelihood(policy, other) for other in problems]) - before
            for weight, old in zip(weights, start, strict=True):
                weight.copy_(old)
        if show:
            show(i + 1, len(problems))
    return changes


def figures(changes: Floats, rates: Sequence[float]) -> dict[str, float]:
    """Of I and the pass rates: what a problem's own step brings it, what those of others do, which share of them harms, by how much they harm where
    they do, and the rank correlation of pass rate and what others do (0 where either is the same for all)."""
    others = ~np.eye(len(changes), dtype=bool)
    harm = np.minimum(changes[others], 0.0)
    received = (changes * others).sum(0) / max(len(changes) - 1, 1)
    return {
        "own": float(np.diag(changes).mean()),
        "others": float(changes[others].mean()),
        "negative": float((changes[others] < 0).mean()),
        "harm": float(harm.sum() / max((harm < 0).sum(), 1)),
        "winner_take_all": rank_correlation(rates, received),
    }


def rank_correlation(first: Sequence[float] | Floats, second: Sequence[float] | Floats) -> float:
    """Spearman's, with mean ranks of ties; 0 where one of them does not vary."""
    a, b = (_ranks(np.asarray(values, dtype=float)) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / spread) if spread else 0.0


def _ranks(values: Floats) -> Floats:
    return (values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) - 1) / 2


@torch.no_grad()
def likelihood(policy: Any, problem: Answered) -> float:
    """Mean over the right answers of the mean log-probability of their tokens, nats."""
    right = [answer for answer, good in zip(problem.answers, problem.right, strict=True) if good]
    return float(_by_answer(policy, problem.prompt, right).mean())


def _loss(policy: Any, problem: Answered) -> torch.Tensor:
    advantage = torch.tensor(problem.right, dtype=torch.float32, device=policy.device) - problem.rate
    return -(advantage * _by_answer(policy, problem.prompt, problem.answers)).mean()


def _by_answer(policy: Any, prompt: list[int], answers: Sequence[list[int]]) -> torch.Tensor:
    """Mean log-probability of the tokens of each answer."""
    ids = pad([prompt + answer for answer in answers], device=policy.device)
    score = pad([[0] * len(prompt) + [1] * len(answer) for answer in answers], device=policy.device).bool()
    return token_scores(policy, ids, score, {"logp": chosen})["logp"].sum(1) / score.sum(1)


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt())
