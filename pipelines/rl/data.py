"""From problems to groups of rollouts, and from rollouts to the tensors of a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines import prompting, seeding
from pipelines.errors import InfrastructureError
from pipelines.generation import Generator, Sample, respond
from pipelines.models.scoring import pad
from pipelines.records import Outcome, Problem, Rollout, Verdict
from pipelines.rl.batch import Batch
from pipelines.verifiers import VerifierPool


class Clock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


def draw(
    problems: Sequence[Problem], count: int, seed: int, stage: object, step: int, eligible: Callable[[Problem], bool] | None = None
) -> list[Problem]:
    """The problems of step 1, 2, ...: every problem once per epoch, in an order keyed by (seed, stage, epoch).

    Where some are not `eligible` any more, the step draws among the others at random, each at most once while they last;
    when none is, among all.
    """
    if eligible and (kept := [problem for problem in problems if eligible(problem)]) and len(kept) < len(problems):
        order = seeding.generator(seed, stage, "order among the eligible", step).permutation(len(kept))
        return [kept[order[place % len(kept)]] for place in range(count)]
    first = (step - 1) * count
    drawn = []
    orders: dict[int, list[int]] = {}
    for position in range(first, first + count):
        epoch, inside = divmod(position, len(problems))
        if epoch not in orders:
            orders[epoch] = list(seeding.generator(seed, stage, "order", epoch).permutation(len(problems)))
        drawn.append(problems[orders[epoch][inside]])
    return drawn


def rollouts(
    generator: Generator, pool: VerifierPool, problems: Sequence[Problem], group_size: int, seed: int, stage: str, step: int, clock: Clock
) -> list[Rollout]:
    """Groups of `group_size` judged responses."""
    groups = respond(generator, problems, group_size, (seed, stage, "rollout", step))
    clock.lap("generate")
    verdicts = iter(pool.verify_batch([(problem, s.text) for problem, samples in zip(problems, groups, strict=True) for s in samples]))
    made = []
    for group_id, (problem, samples) in enumerate(zip(problems, groups, strict=True)):
        prompt = prompting.prompt_ids(generator.tokenizer, problem)
        for sample_id, sample in enumerate(samples):
            verdict = next(verdicts)
            made.append(
                Rollout(
                    problem_id=problem.problem_id,
                    group_id=group_id,
                    sample_id=sample_id,
                    step=step,
                    policy=stage,
                    prompt_ids=prompt,
                    **answered(sample, verdict),
                )
            )
    clock.lap("verify")
    return made


def answered(sample: Sample, verdict: Verdict) -> dict[str, Any]:
    """The fields of a rollout that come of the response and of what the verifier says of it; the reward is the verdict's score."""
    return {
        "response_ids": sample.token_ids,
        "behaviour_logp": sample.logp,
        "policy_version": [sample.policy_version] * len(sample.token_ids),
        "finish_reason": sample.finish_reason,
        "response": sample.text,
        "outcome": verdict.outcome.value,
        "extracted": verdict.extracted,
        "detail": verdict.detail,
        "reward": verdict.score,
        "reward_parts": {"correct": verdict.score, "format": float(verdict.outcome != Outcome.UNPARSABLE)},
    }


def judged(made: Sequence[Rollout]) -> list[Rollout]:
    """Rollouts whose verdict says something about the policy: all but those of outcome `infrastructure`.

    Raises:
        InfrastructureError: none is left.
    """
    kept = [rollout for rollout in made if rollout.outcome != Outcome.INFRASTRUCTURE]
    if not kept:
        raise InfrastructureError(f"step {made[0].step}: no response could be judged: {made[0].detail}")
    return kept


def tensors(kept: Sequence[Rollout], device: torch.device, step: int, response_limit: int) -> tuple[Tensor, Tensor, Batch]:
    """(ids_BT, score_BT, batch): prompt + response ids, where response tokens stand, and the batch on the same axis T."""
    ids = pad([r.prompt_ids + r.response_ids for r in kept], device=device)
    score = torch.zeros_like(ids, dtype=torch.bool)
    roll = torch.zeros(ids.shape, device=device)
    for row, r in enumerate(kept):
        start, end = len(r.prompt_ids), len(r.prompt_ids) + len(r.response_ids)
        score[row, start:end] = True
        roll[row, start:end] = torch.tensor(r.behaviour_logp, device=device)
    batch = Batch(
        mask_BT=score.float(),
        reward_B=torch.tensor([r.reward for r in kept], dtype=torch.float32, device=device),
        group_B=torch.tensor([r.group_id for r in kept], device=device),
        logp_old_BT=roll,
        logp_roll_BT=roll,
        truncated_B=torch.tensor([r.finish_reason == "length" for r in kept], device=device),
        step=torch.tensor(step, device=device),
        response_limit=torch.tensor(response_limit, device=device),
    )
    return ids, score, batch
