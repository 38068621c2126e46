"""Inputs that can be read off the rollouts and their problems. A verifier or an environment that knows better says so in a
rollout's `reward_parts`, under the same name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pipelines import prompting
from pipelines.records import Outcome, Trajectory
from pipelines.rl.batch import group_mean
from pipelines.rl.inputs.scores import of_critic
from pipelines.rl.inputs.step import Step
from pipelines.rl.statistics import component_weights
from pipelines.verifiers.confidence import stated_confidence

_OUTCOME_LEVEL = {Outcome.CORRECT.value: 1, Outcome.WRONG.value: 2}


def correct(step: Step) -> Tensor:
    """Verdict is `correct`."""
    return step.tensor([r.outcome == Outcome.CORRECT for r in step.rollouts], torch.bool)


def form(step: Step) -> Tensor:
    """An answer could be found."""
    return step.tensor([has_form(r) for r in step.rollouts], torch.bool)


def has_form(rollout: Trajectory) -> bool:
    return rollout.outcome != Outcome.UNPARSABLE


def consistency(step: Step) -> Tensor:
    """`consistency` of the reward parts, else whether the answer that was judged occurs in the working."""
    return step.tensor([r.reward_parts.get("consistency", _occurs(r)) for r in step.rollouts])


def _occurs(rollout: Trajectory) -> float:
    return float(bool(rollout.extracted) and str(rollout.extracted) in rollout.response.partition(prompting.END_THINK)[0])


def confidence(step: Step) -> Tensor:
    """`confidence` of the reward parts, else the last one that the response states (verifiers/confidence.py); nan where it states none."""
    return step.tensor([r.reward_parts.get("confidence", _or_nan(stated_confidence(r.response))) for r in step.rollouts])


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def candidates(step: Step) -> Tensor:
    """`candidates` of the reward parts; a text problem has one answer."""
    return step.tensor([r.reward_parts.get("candidates", 1.0) for r in step.rollouts])


def rank(step: Step) -> Tensor:
    """`rank` of the reward parts; of one answer: 1 when it is right, else 0."""
    return step.tensor([r.reward_parts.get("rank", float(r.outcome == Outcome.CORRECT)) for r in step.rollouts])


def level(step: Step) -> Tensor:
    """1 right, 2 wrong, 3 without an answer to judge."""
    return step.tensor([_OUTCOME_LEVEL.get(r.outcome, 3) for r in step.rollouts], torch.long)


def baseline(step: Step, *, by: Literal["pass_rate", "critic"] = "pass_rate") -> Tensor:
    """by `pass_rate`: the problem's pass rate under the SFT policy where difficulty measured it, else the group's mean reward. `critic`: what a
    critic that was trained beforehand says of the prompt."""
    if by == "critic":
        return of_critic(step).gather(1, step.score_BT.int().argmax(1, keepdim=True))[:, 0]
    mean = group_mean(step.batch.reward_B, step.batch.group_B).tolist()
    return step.tensor([m if p.pass_rate is None else p.pass_rate for p, m in zip(step.problems, mean, strict=True)])


def pool_mean(step: Step) -> Tensor:
    """`pool_mean` of the reward parts, else the mean reward of the group."""
    mean = group_mean(step.batch.reward_B, step.batch.group_B).tolist()
    return step.tensor([r.reward_parts.get("pool_mean", m) for r, m in zip(step.rollouts, mean, strict=True)])


def components(step: Step, *, parts: Sequence[str] = ("format", "correct")) -> Tensor:
    """The named parts of the reward, in order."""
    return step.tensor([[r.reward_parts[part] for part in parts] for r in step.rollouts])


def component_weight(
    step: Step, *, parts: Sequence[str] = ("format", "correct"), window: int = 10, temperature: float = 5.0, form: str = "paper"
) -> Tensor:
    """RECAP's weights from 1 - mean reward of each part over the steps so far."""
    history = torch.tensor([[1 - row[part] for row in step.rewards_by_part] for part in parts], dtype=torch.float32)
    return component_weights(history.reshape(len(parts), -1), window=window, temperature=temperature, form=form).to(step.ids_BT.device)


def shared_prefix(step: Step) -> Tensor:
    """Equal ids on tokens that siblings have in common from the start on."""
    ids: dict[tuple[int, int], int] = {}
    rows = []
    for r in step.rollouts:
        node, row = ids.setdefault((-1, r.group_id), len(ids)), []
        for token in r.response_ids:
            node = ids.setdefault((node, token), len(ids))
            row.append(node)
        rows.append(row)
    return step.tokens(rows, -1)
