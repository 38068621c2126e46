"""Inputs that can be read off the rollouts and their problems. A verifier or an environment that knows better says so in a
rollout's `reward_parts`, under the same name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipelines import prompting
from pipelines.errors import UserError
from pipelines.models.value_head import bin_edges
from pipelines.records import GUIDE, POLICY, TOOL, Outcome, Trajectory
from pipelines.rl.batch import group_mean
from pipelines.rl.inputs.scores import of_critic
from pipelines.rl.inputs.step import Step
from pipelines.rl.multiplier import Form, costs_of
from pipelines.rl.outcomes import PASSED, class_of
from pipelines.rl.statistics import component_weights
from pipelines.verifiers.confidence import stated_confidence

_OUTCOME_LEVEL = {Outcome.CORRECT.value: 1, Outcome.WRONG.value: 2}


def correct(step: Step) -> Tensor:
    """Verdict is `correct`."""
    return step.tensor([r.outcome == Outcome.CORRECT for r in step.rollouts], torch.bool)


def outcome_class(step: Step) -> Tensor:
    """See outcomes.py; what a guide wrote is right."""
    return step.tensor([PASSED if r.origin == GUIDE else class_of(r.outcome, r.detail) for r in step.rollouts], torch.long)


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


def value_edges(step: Step, *, bins: int = 51, low: float = 0.0, high: float = 1.0, margin: float = 2.25) -> Tensor:
    """See `bin_edges`; low, high: the range of the returns."""
    return bin_edges(bins=bins, low=low, high=high, margin=margin).to(step.ids_BT.device)


def cost(step: Step, *, part: str = "length", lack: bool = True) -> Tensor:
    """The part `part` of the reward as a cost, or with `lack` what it lacks of 1: of `length` the share that was written of what may be."""
    return step.tensor(costs_of(step.rollouts, part, lack))


def multiplier(
    step: Step,
    *,
    form: Form = "log",
    start: float = 1.0,
    rate: float = 0.1,
    limit: float = 0.0,
    cap: float = 5.0,
    window: int = 128,
    gains: tuple[float, float, float] = (1.0, 0.5, 0.2),
) -> Tensor:
    """What it is at the first step. The settings are of the loop (multiplier.py): the form of its law, its rate, the limit of the mean cost, the most
    that it may be, the episodes that the mean is of, and the gains of form `pid`."""
    return torch.tensor(start, device=step.ids_BT.device)


def pool_mean(step: Step) -> Tensor:
    """`pool_mean` of the reward parts, else the mean reward of the group."""
    mean = group_mean(step.batch.reward_B, step.batch.group_B).tolist()
    return step.tensor([r.reward_parts.get("pool_mean", m) for r, m in zip(step.rollouts, mean, strict=True)])


def greedy(step: Step) -> Tensor:
    """`greedy` of the reward parts: the reward of the group's greedy answer. What stands in for one of the group has the others'."""
    known = {r.group_id: r.reward_parts["greedy"] for r in step.rollouts if "greedy" in r.reward_parts}
    return step.tensor([known[r.group_id] for r in step.rollouts])


def role_baseline(step: Step, *, decay: float = 0.95) -> Tensor:
    """A running mean of the rewards of the row's role, b = decay b + (1 - decay) R from 0 on, as it stood before the row in the order of steps,
    groups and samples. What is of an earlier step, or a guide's, has it as the step began."""
    start: dict[float, float] = {}
    for role, rewards in step.history.rewards_by_role.items():
        weights = (1 - decay) * decay ** np.arange(len(rewards) - 1, -1, -1)
        start[role] = float(weights @ np.array(rewards))
    now, before = dict(start), dict[tuple[int, int], float]()
    for (group, sample, _), role, reward in step.history.last:
        before[group, sample] = now.get(role, 0.0)
        now[role] = decay * before[group, sample] + (1 - decay) * reward
    return step.tensor([before.get((r.group_id, r.sample_id), start.get(r.reward_parts.get("role", 0.0), 0.0)) for r in step.rollouts])


def components(step: Step, *, parts: Sequence[str] = ("format", "correct")) -> Tensor:
    """The named parts of the reward, in order."""
    return step.tensor([[r.reward_parts[part] for part in parts] for r in step.rollouts])


def component_weight(
    step: Step, *, parts: Sequence[str] = ("format", "correct"), window: int = 10, temperature: float = 5.0, form: str = "paper"
) -> Tensor:
    """RECAP's weights from 1 - mean reward of each part over the steps so far."""
    history = torch.tensor([[1 - row[part] for row in step.history.rewards_by_part] for part in parts], dtype=torch.float32)
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


def observed(step: Step) -> Tensor:
    """1 on what a tool answered, the chat template's frame around it included."""
    rows = [[s.author == TOOL for s in r.turns for _ in s.ids] for r in step.rollouts]
    return step.tokens(rows, 0).to(step.batch.mask_BT)


def guided(step: Step) -> Tensor:
    """1 on what a guide wrote."""
    rows = [[s.author == GUIDE for s in r.turns for _ in s.ids] for r in step.rollouts]
    return step.tokens(rows, 0).to(step.batch.mask_BT)


def allowed(step: Step, *, p: float = 0.9, top_k: int = 0, least: int = 100, every: int = 20) -> Tensor:
    """What each token was drawn from (B, T, K), K bytes of one bit an id; 0 where all could be drawn. The settings are of sampling
    (generation/action_set.py); every: steps after which the lagged policy becomes the policy, as it is before the update.

    Raises:
        UserError: a token trains that could not have been drawn.
    """
    width = math.ceil(step.actor.policy.config.vocab_size / 8)
    flat = b"".join(bits or bytes(width) for r in step.rollouts for bits in r.allowed or [b""] * len(r.response_ids))
    sets_BTK = torch.zeros((*step.ids_BT.shape, width), dtype=torch.uint8, device=step.ids_BT.device)
    sets_BTK[step.score_BT] = torch.frombuffer(bytearray(flat), dtype=torch.uint8).view(-1, width).to(step.ids_BT.device)
    byte_BT = sets_BTK.gather(-1, (step.ids_BT // 8)[..., None])[..., 0]
    drawn_BT = (byte_BT >> (7 - step.ids_BT % 8).to(torch.uint8)) & 1
    if ((step.batch.mask_BT > 0) & (drawn_BT == 0)).any():
        raise UserError(
            f"step {step.number}: a token trains that is not among those it could be drawn from; a recipe that restricts what the policy may say "
            "trains on what was sampled so alone: leave out what guides write, and rollouts of other recipes"
        )
    return sets_BTK


def common(step: Step) -> Tensor:
    """1 on tokens that stand in runs which response and worked solution have in common, in order; none without a solution."""
    rows = []
    for problem, r in zip(step.problems, step.rollouts, strict=True):
        row = [0] * len(r.response_ids)
        if problem.solution is not None:
            worked = prompting.response_ids(step.actor.tokenizer, problem, step.settings.answered.prompt)
            for block in difflib.SequenceMatcher(None, worked, r.response_ids, autojunk=False).get_matching_blocks():
                row[block.b : block.b + block.size] = [1] * block.size
        rows.append(row)
    return step.tokens(rows, 0).to(step.batch.mask_BT)


def turns(step: Step) -> Tensor:
    """Number of the policy's turn that the token is of, from 0; -1 where the policy reads."""
    return step.tokens([[turn for turn, _, size in _turns(r) for _ in range(size)] for r in step.rollouts], -1)


def turn_return(step: Step, *, gamma: float = 1.0) -> Tensor:
    """`turn_0`, `turn_1`, ... of the reward parts, or where there is none the reward at the last turn; the later ones discounted by
    gamma^(turns between) and added up from each turn on: on the turn's tokens; 0 where the policy reads."""
    flat: list[float] = []
    for r in step.rollouts:
        pieces = [(turn, size) for turn, _, size in _turns(r)]
        count = 1 + max((turn for turn, _ in pieces), default=-1)
        rewards = r.reward_parts if "turn_0" in r.reward_parts else {f"turn_{count - 1}": r.reward}
        returns = [0.0] * (count + 1)
        for turn in reversed(range(count)):
            returns[turn] = rewards.get(f"turn_{turn}", 0.0) + gamma * returns[turn + 1]
        flat += [returns[turn] if turn >= 0 else 0.0 for turn, size in pieces for _ in range(size)]
    values = torch.tensor(flat, device=step.ids_BT.device)
    return torch.zeros(step.ids_BT.shape, device=step.ids_BT.device).masked_scatter(step.score_BT, values)


def states(step: Step) -> Tensor:
    """Equal ids on turns of siblings that answer the same: the prompt, or what was read since the turn before; -1 where the policy reads."""
    ids: dict[tuple[int, tuple[int, ...]], int] = {}
    rows = []
    for r in step.rollouts:
        row: list[int] = []
        for turn, read, size in _turns(r):
            row += [-1 if turn < 0 else ids.setdefault((r.group_id, read), len(ids))] * size
        rows.append(row)
    return step.tokens(rows, -1)


def _turns(rollout: Trajectory) -> Iterator[tuple[int, tuple[int, ...], int]]:
    """For each segment after the prompt: number of the turn or -1, what was read before it since the last turn, and how many ids it has."""
    number, read = 0, tuple(rollout.prompt_ids)
    for segment in rollout.turns:
        if segment.trains or segment.author == POLICY:
            yield number, read, len(segment.ids)
            number, read = number + 1, ()
        else:
            yield -1, (), len(segment.ids)
            read += tuple(segment.ids)
