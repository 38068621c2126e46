"""Trajectories to the tensors of a batch: which train, how old they are, which process has which, and where their tokens stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipelines.config.learning import LearningStage
from pipelines.errors import InfrastructureError
from pipelines.models import ranks
from pipelines.models.scoring import pad
from pipelines.records import GUIDE, POLICY, Outcome, Problem, Segment, Trajectory
from pipelines.rl.account import INFRASTRUCTURE, ROUTED, STALE, drop, place, training, trains
from pipelines.rl.batch import Batch, present
from pipelines.rl.history import History
from pipelines.rl.inputs.step import Actor, Step
from pipelines.rl.recipe import Recipe
from pipelines.rl.tensors import TENSORS


def judged(rollouts: Sequence[Trajectory]) -> list[Trajectory]:
    """The rollouts, of which those whose verdict says nothing about the policy (outcome `infrastructure`) are dropped.

    Raises:
        InfrastructureError: that is so of every one.
    """
    marked = [drop(r, INFRASTRUCTURE) if r.outcome == Outcome.INFRASTRUCTURE else r for r in rollouts]
    lost = [r for r in marked if r.outcome == Outcome.INFRASTRUCTURE]
    if len(lost) == len(marked):
        raise InfrastructureError(f"step {lost[0].step}: no response could be judged: {lost[0].detail}")
    return marked


def lags(trajectory: Trajectory, step: int) -> list[int]:
    """For each id of the response, how many updates the weights that sampled it are behind those that `step` updates; 0 where the policy did not
    write it: what a guide or a tool wrote has no age."""
    return [age for s in trajectory.turns for age in (_ages(s, step) if s.author == POLICY else [0] * len(s.ids))]


def _ages(segment: Segment, step: int) -> list[int]:
    return [step - 1 - version for version in segment.versions]


def fresh(rollouts: Sequence[Trajectory], step: int, bound: int | None, action: str) -> tuple[list[Trajectory], dict[str, float]]:
    """The rollouts, of which those sampled more than `bound` updates ago are dropped, and what to log: the share of such responses, and the
    lag of the tokens that train.

    With action `mask` they stay, for their group's statistics, and `tensors` masks their tokens.

    Raises:
        InfrastructureError: nothing is left.
    """
    old = [bound is not None and max(lags(r, step), default=0) > bound for r in rollouts]
    share = sum(stale for r, stale in zip(rollouts, old, strict=True) if not r.dropped) / len(training(rollouts))
    marked = [drop(r, STALE) if stale and action == "drop" else r for r, stale in zip(rollouts, old, strict=True)]
    trained = [age for r in training(marked) for age, does in zip(lags(r, step), trains(r), strict=True) if does]
    ages = [age for age in trained if bound is None or age <= bound]
    if not ages:
        raise InfrastructureError(f"step {step}: every response is older than max_staleness {bound}")
    return marked, {"stale": share, "staleness": sum(ages) / len(ages), "staleness_max": float(max(ages))}


def tensors(
    trajectories: Sequence[Trajectory], device: torch.device, step: int, response_limit: int, bound: int | None = None
) -> tuple[Tensor, Tensor, Batch]:
    """(ids_BT, score_BT, batch): prompt and response as training sees them, where response tokens stand, and the batch on the same axis T. The mask
    has the tokens of segments that train, but for those whose lag is above `bound`."""
    prompts = [r.prompt_ids if r.trained_prompt is None else r.trained_prompt for r in trajectories]
    responses = [r.response_ids for r in trajectories]
    ids = pad([prompt + response for prompt, response in zip(prompts, responses, strict=True)], device=device)
    score, mask = torch.zeros_like(ids, dtype=torch.bool), torch.zeros(ids.shape, device=device)
    roll, age = torch.zeros(ids.shape, device=device), torch.zeros_like(ids)
    for row, (r, prompt, response) in enumerate(zip(trajectories, prompts, responses, strict=True)):
        where = slice(len(prompt), len(prompt) + len(response))
        score[row, where] = True
        mask[row, where] = torch.tensor(trains(r), device=device, dtype=mask.dtype)
        roll[row, where] = torch.tensor(r.behaviour_logp, device=device)
        age[row, where] = torch.tensor(lags(r, step), device=device)
    batch = Batch(
        mask_BT=mask if bound is None else mask * (age <= bound),
        reward_B=torch.tensor([r.reward for r in trajectories], dtype=torch.float32, device=device),
        group_B=torch.tensor([r.group_id for r in trajectories], device=device),
        logp_old_BT=roll,
        logp_roll_BT=roll if all(len(s.logp) == len(s.ids) for r in trajectories for s in r.turns if s.trains) else None,
        truncated_B=torch.tensor([r.finish_reason == "length" for r in trajectories], device=device),
        step=torch.tensor(step, device=device),
        response_limit=torch.tensor(response_limit, device=device),
    )
    return ids, score, batch


def minibatches(trajectories: Sequence[Trajectory], count: int) -> list[list[int]]:
    """Ids of the groups of each optimiser step, in order. Groups that the policy has no part in have a step of their own, the last."""
    answered = {rollout.group_id for rollout in trajectories if rollout.origin != GUIDE}
    shown = sorted({rollout.group_id for rollout in trajectories} - answered)
    parts = torch.tensor(sorted(answered), dtype=torch.long).tensor_split(count)
    return [*(part.tolist() for part in parts if len(part)), *([shown] if shown else [])]


def share_of(trajectories: Sequence[Trajectory], groups: Sequence[Sequence[int]]) -> list[Trajectory]:
    """This rank's rollouts: every `world`-th group of each optimiser step.

    Raises:
        InfrastructureError: there are fewer groups than processes.
    """
    own = {group for minibatch in groups for group in minibatch[ranks.rank() :: ranks.world()]}
    if len(groups[0]) < ranks.world():
        raise InfrastructureError(f"{len(groups[0])} groups are left for {ranks.world()} processes: lower `processes` or `minibatches`")
    return [rollout for rollout in trajectories if rollout.group_id in own]


def make_step(
    actor: Actor,
    recipe: Recipe,
    settings: LearningStage,
    trajectories: Sequence[Trajectory],
    by_id: Mapping[str, Problem],
    history: History,
    held: Mapping[str, float],
    seed: tuple[object, ...],
    step: int,
) -> Step:
    """What the step knows, as tensors."""
    ids_BT, score_BT, batch = tensors(trajectories, actor.policy.device, step, settings.answered.limit, settings.answered.bound)
    names = [name for name, declared in TENSORS.items() if declared.held and name in held and name in recipe.read]
    anchors = {name: torch.tensor(held[name], device=ids_BT.device) for name in names}
    rows = [by_id[r.problem_id] for r in trajectories]
    return Step(step, actor, settings, seed, rows, trajectories, ids_BT, score_BT, batch.having(**anchors), history)


def left_out(rollouts: Sequence[Trajectory], batch: Batch, keep: Mapping[str, torch.Tensor]) -> dict[tuple[int, int, int], str]:
    """Place -> reason of the rollouts of all ranks that no token trains of. batch, keep: of this rank's `rollouts`, before and by routing."""
    fresh_B = present(batch.mask_BT).tolist()
    keeps = {name: keep_B.tolist() for name, keep_B in keep.items()}
    reasons = [
        STALE if not fresh_B[row] else next((f"{ROUTED} {name}" for name, keep in keeps.items() if not keep[row]), "") for row in range(len(rollouts))
    ]
    return dict(ranks.collect([(place(rollout), reason) for rollout, reason in zip(rollouts, reasons, strict=True) if reason]))
