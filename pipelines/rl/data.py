"""From problems to groups of rollouts, and from rollouts to the tensors of a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines import prompting, seeding
from pipelines.errors import InfrastructureError, UserError
from pipelines.generation import Generator, Sample, respond
from pipelines.models.scoring import pad
from pipelines.records import GUIDE, Outcome, Problem, Rollout, Verdict
from pipelines.rl.account import INFRASTRUCTURE, STALE, drop, training
from pipelines.rl.batch import Batch
from pipelines.verifiers import VerifierPool


class Clock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.beside: dict[str, float] = {}
        """Likewise, of phases that ran beside an earlier step."""
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
    generator: Generator,
    pool: VerifierPool,
    problems: Sequence[Problem],
    group_size: int,
    seed: tuple[Any, ...],
    step: int,
    clock: Clock,
    slots: Sequence[int],
    draw: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Rollout]:
    """Groups of `group_size` judged responses, with the ids `slots`. seed: (seed, stage, purpose).

    Randomness is keyed by (seed, step, draw, slot, problem), so a problem that comes twice is answered twice.
    """
    groups = respond(generator, problems, group_size, (*seed, step, draw), progress, slots=slots)
    clock.lap("generate")
    verdicts = iter(pool.verify_batch([(problem, s.text) for problem, samples in zip(problems, groups, strict=True) for s in samples]))
    made = []
    for group_id, problem, samples in zip(slots, problems, groups, strict=True):
        prompt = prompting.prompt_ids(generator.tokenizer, problem, generator.settings.prompt)
        for sample_id, sample in enumerate(samples):
            verdict = next(verdicts)
            made.append(
                Rollout(
                    problem_id=problem.problem_id,
                    group_id=group_id,
                    sample_id=sample_id,
                    step=step,
                    policy=seed[1],
                    prompt_ids=prompt,
                    **answered(sample, verdict),
                )
            )
    clock.lap("verify")
    return made


def answered(sample: Sample, verdict: Verdict) -> dict[str, Any]:
    """The fields of a rollout that come of the response and of what the verifier says of it; the reward is the verdict's score.

    Raises:
        UserError: the engine gave no log-probabilities of what it sampled.
    """
    if len(sample.logp) != len(sample.token_ids):
        raise UserError(
            f"the engine gave {len(sample.logp)} log-probabilities of {len(sample.token_ids)} tokens that it sampled, and RL trains on them; "
            "choose generation.engine torch, vllm or vllm_server"
        )
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


def judged(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts, of which those whose verdict says nothing about the policy (outcome `infrastructure`) are dropped.

    Raises:
        InfrastructureError: none is left.
    """
    marked = [drop(r, INFRASTRUCTURE) if r.outcome == Outcome.INFRASTRUCTURE else r for r in rollouts]
    if not training(marked):
        lost = next((r for r in marked if r.dropped == INFRASTRUCTURE), marked[0])
        raise InfrastructureError(f"step {lost.step}: no response could be judged: {lost.detail}")
    return marked


def lag(rollout: Rollout, step: int) -> list[int]:
    """By token, how many updates the weights that sampled it are behind those that `step` updates; what a guide wrote has no age."""
    return [0 if rollout.policy == GUIDE else step - 1 - version for version in rollout.policy_version]


def fresh(rollouts: Sequence[Rollout], step: int, bound: int | None, action: str) -> tuple[list[Rollout], dict[str, float]]:
    """The rollouts, of which those sampled more than `bound` updates ago are dropped, and what to log: the share of such responses, and the
    lag of the tokens that train.

    With action `mask` they stay, for their group's statistics, and `tensors` masks their tokens.

    Raises:
        InfrastructureError: nothing is left.
    """
    old = [bound is not None and max(lag(r, step), default=0) > bound for r in rollouts]
    share = sum(stale for r, stale in zip(rollouts, old, strict=True) if not r.dropped) / len(training(rollouts))
    marked = [drop(r, STALE) if stale and action == "drop" else r for r, stale in zip(rollouts, old, strict=True)]
    lags = [value for r in training(marked) for value in lag(r, step) if bound is None or value <= bound]
    if not lags:
        raise InfrastructureError(f"step {step}: every response is older than max_staleness {bound}")
    return marked, {"stale": share, "staleness": sum(lags) / len(lags), "staleness_max": float(max(lags))}


def tensors(kept: Sequence[Rollout], device: torch.device, step: int, response_limit: int, bound: int | None = None) -> tuple[Tensor, Tensor, Batch]:
    """(ids_BT, score_BT, batch): prompt + response ids, where response tokens stand, and the batch on the same axis T. The mask leaves out
    tokens whose lag is above `bound`."""
    ids = pad([r.prompt_ids + r.response_ids for r in kept], device=device)
    score = torch.zeros_like(ids, dtype=torch.bool)
    roll, age = torch.zeros(ids.shape, device=device), torch.zeros_like(ids)
    for row, r in enumerate(kept):
        start, end = len(r.prompt_ids), len(r.prompt_ids) + len(r.response_ids)
        score[row, start:end] = True
        roll[row, start:end] = torch.tensor(r.behaviour_logp, device=device)
        age[row, start:end] = torch.tensor(lag(r, step), device=device)
    trained = score if bound is None else score & (age <= bound)
    batch = Batch(
        mask_BT=trained.float(),
        reward_B=torch.tensor([r.reward for r in kept], dtype=torch.float32, device=device),
        group_B=torch.tensor([r.group_id for r in kept], device=device),
        logp_old_BT=roll,
        logp_roll_BT=roll,
        truncated_B=torch.tensor([r.finish_reason == "length" for r in kept], device=device),
        step=torch.tensor(step, device=device),
        response_limit=torch.tensor(response_limit, device=device),
    )
    return ids, score, batch
