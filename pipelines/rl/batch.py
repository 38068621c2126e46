"""The tensors that objectives read, as one record.

B sequences (all groups flattened), T padded response length, H hidden size, K as said. A name's suffix is its shape; a
tensor (B, T) says something of each token and is read only where the mask is 1. All are detached; what carries gradient
(`LIVE`) stands beside the batch. A method reads few of them: its functions' positional parameters are these names, and
the loop fills in those and no others (`pipelines/rl/inputs`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

LIVE = {
    "logp_BT": "log-probability of each token under the policy that is trained, nats",
    "entropy_BT": "entropy of the policy at each token, nats",
    "nucleus_entropy_BT": "entropy of the policy restricted to its top-p tokens, renormalised",
    "vocab_mean_BT": "mean over the vocabulary of the policy's log-probabilities",
    "value_BT": "the value head's estimate before each token",
    "student_topk_BTK": "policy's log-probability of the tokens `topk_BTK`",
    "special_B": "log-probability of a reserved token right after the response",
}
"""What one forward pass of the policy can give, with gradient."""


@dataclass(frozen=True)
class Batch:
    """Rollouts of one or more optimiser steps, or some rows of them. The first four are always there."""

    mask_BT: Tensor
    """1 on trainable response tokens (end-of-turn included), else 0."""
    reward_B: Tensor
    """The verifier's score, in [0, 1]. Rows of papers that write -1 and 1 rescale it."""
    group_B: Tensor
    """Prompt id of each row, int: the same for all rows of a group and no others, on whichever process they stand."""
    logp_old_BT: Tensor
    """Proximal policy: the training engine before the update."""
    logp_roll_BT: Tensor | None = None
    """Behaviour policy: the generation engine when it sampled the token."""
    logp_ref_BT: Tensor | None = None
    """Frozen reference policy."""
    truncated_B: Tensor | None = None
    """Response reached the length limit, bool."""
    advantage_BT: Tensor | None = None
    """Filled by `advantages`."""
    step: Tensor | None = None
    """Number of this step, from 1: a scalar."""
    response_limit: Tensor | None = None
    """Longest response that generation allows, tokens: a scalar."""

    correct_B: Tensor | None = None
    """Verdict is `correct`, bool; without it, reward_B > 0."""
    format_B: Tensor | None = None
    """Response had the form asked for, bool."""
    consistency_B: Tensor | None = None
    """Working and answer agree, in [0, 1]."""
    confidence_B: Tensor | None = None
    """Confidence that the response states, in [0, 1]; nan where it states none."""
    candidates_B: Tensor | None = None
    """Number of answers the response offers."""
    rank_B: Tensor | None = None
    """Place of the first right one among them, from 1; 0 where none is."""
    level_B: Tensor | None = None
    """Preference level, 1 the best."""
    diversity_B: Tensor | None = None
    """How unlike its correct siblings a response is, in [0, 1]."""
    baseline_B: Tensor | None = None
    """Expected reward of the prompt under the reference policy."""
    components_BK: Tensor | None = None
    """Reward by part (format, correctness, ...)."""
    component_weight_K: Tensor | None = None
    """Weight of each part, mean 1."""
    reprompt_B: Tensor | None = None
    """A teacher that has seen a solution could score the row, bool."""
    share_BT: Tensor | None = None
    """Equal ids on tokens that siblings share as a prefix, int."""
    step_BT: Tensor | None = None
    """Step of reasoning that the token belongs to, from 0, int."""
    potential_BK: Tensor | None = None
    """Potential after each of K steps, nan past the last."""
    step_value_BK: Tensor | None = None
    """Probability of a correct end before each of K steps, nan past the last."""

    logp_sft_BT: Tensor | None = None
    """The SFT policy."""
    logp_dpo_BT: Tensor | None = None
    """A policy trained on preferences, whose log-ratio to the SFT policy is a reward."""
    logp_prev_BT: Tensor | None = None
    """The policy one step ago."""
    logp_tempered_BT: Tensor | None = None
    """The reference, flattened for responses of low reward."""
    logp_proxy_BT: Tensor | None = None
    """The policy before the update without its least likely tokens; very negative where the token is one."""
    logp_expert_BT: Tensor | None = None
    """Log-probability of the prompt's expert solution, aligned by position; 0 past its end."""
    entropy_old_BT: Tensor | None = None
    """Entropy before the update."""
    value_old_BT: Tensor | None = None
    """Value estimates before the update."""
    vocab_mean_old_BT: Tensor | None = None
    """`vocab_mean_BT` before the update."""
    special_old_B: Tensor | None = None
    """`special_B` before the update."""
    hidden_old_BTH: Tensor | None = None
    """What the language-model head sees where it predicts the token, before the update."""
    topk_BTK: Tensor | None = None
    """The K likeliest tokens before the update, int."""
    teacher_topk_BTK: Tensor | None = None
    """The teacher's log-probability of them."""

    entropy_anchor: Tensor | None = None
    """Entropy statistic held from the first step: a scalar."""
    special_anchor: Tensor | None = None
    """Expected log-probability of the reserved token under the reference: a scalar."""

    kl_scale: Tensor | None = None
    """Factor on the coefficients of KL terms to the reference, which `kl_control` moves: a scalar."""

    return_BT: Tensor | None = None
    component_advantage_BK: Tensor | None = None
    coefficient_B: Tensor | None = None
    weight_BT: Tensor | None = None
    rate_B: Tensor | None = None
    balance_B: Tensor | None = None
    diversity_weight_B: Tensor | None = None
    low_BT: Tensor | None = None
    distil_weight_BT: Tensor | None = None
    pairs: Tensor | None = None
    level_pairs: Tensor | None = None
    responses: Tensor | None = None
    steps: Tensor | None = None
    prompts: Tensor | None = None
    mismatch_mean: Tensor | None = None
    entropy_sum: Tensor | None = None
    peak_sum: Tensor | None = None
    peak_count: Tensor | None = None
    """These come from a whole batch (`advantages`, `weigh`, `aggregates`), so that its slices add up to it."""

    def __post_init__(self) -> None:
        lengths = {name: len(tensor) for name, tensor in self.tensors().items() if is_by_row(name)}
        if any(length != len(self.reward_B) for length in lengths.values()):
            raise ValueError(f"the tensors of a batch must have one row per rollout, got {lengths}")

    def tensors(self) -> dict[str, Tensor]:
        """What is there, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def rows(self, index: Tensor) -> Batch:
        """The rows at `index`. Of a batch that has been weighed the slices' losses add up to its own."""
        return replace(self, **{name: tensor[index] for name, tensor in self.tensors().items() if is_by_row(name)})

    def narrow(self, width: int) -> Batch:
        """The first `width` token positions; the rest must be masked."""
        return replace(self, **{name: tensor[:, :width] for name, tensor in self.tensors().items() if _TOKENS.search(name)})


_ROWS, _TOKENS = re.compile(r"_B[A-Z]*$"), re.compile(r"_BT[A-Z]*$")
TENSORS = (*LIVE, *(field.name for field in fields(Batch)))
"""Every name a method may ask for, beside what objective.py makes on the way."""


def is_by_row(name: str) -> bool:
    """Whether the tensor called so has a row per rollout; the others are scalars and the like."""
    return bool(_ROWS.search(name))


def group_index(group_B: Tensor) -> tuple[Tensor, int]:
    """Group ids as 0 .. K-1 and K."""
    ids, index = torch.unique(group_B, return_inverse=True)
    return index, len(ids)


def group_sum(value_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor]:
    """Per row: the sum of `value_B` over its group, and the group's size."""
    index, groups = group_index(group_B)
    total = torch.zeros(groups, dtype=value_B.dtype, device=value_B.device).index_add(0, index, value_B)
    size = torch.zeros_like(total).index_add(0, index, torch.ones_like(value_B))
    return total.index_select(0, index), size.index_select(0, index)


def group_mean(value_B: Tensor, group_B: Tensor) -> Tensor:
    """Per row: the mean of `value_B` over its group."""
    total, size = group_sum(value_B, group_B)
    return total / size


def present(mask_BT: Tensor) -> Tensor:
    """Rows (B,) with at least one trainable token; the others count in no statistic of a batch."""
    return mask_BT.sum(-1) > 0


def token_mean(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Per row (B,): the mean over its trainable tokens, 0 without any."""
    return (value_BT * mask_BT).sum(-1) / mask_BT.sum(-1).clamp(min=1)


def scaled(coefficient: float, kl_scale: Tensor | None) -> float | Tensor:
    """The coefficient of a KL term to the reference, under `kl_control` if there is one."""
    return coefficient if kl_scale is None else coefficient * kl_scale
