"""Rollouts as tensors: a small core that is always there, and named extras that methods read (`tensors.py` declares each).

B sequences (all groups flattened), T padded response length, H hidden size, K as said. A name's suffix is its shape; a
tensor (B, T) says something of each token and is read only where the mask is 1. All are detached; what carries gradient
stands beside the batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

CORE = ("mask_BT", "reward_B", "group_B", "logp_old_BT")


@dataclass(frozen=True, init=False)
class Batch:
    """Rollouts of one or more optimiser steps, or some rows of them.

    Extras are given by name, read by `batch["logp_ref_BT"]` (or as an attribute) and asked for by `get` and `in`.

    Raises:
        ValueError: a tensor whose name says so has not one row per rollout.
        KeyError: an extra is read that is not there.
    """

    mask_BT: Tensor
    """1 on trainable response tokens (end-of-turn included), else 0."""
    reward_B: Tensor
    """The verifier's score, in [0, 1]. Rows of papers that write -1 and 1 rescale it."""
    group_B: Tensor
    """Prompt id of each row, int: the same for all rows of a group and no others, on whichever process they stand."""
    logp_old_BT: Tensor
    """Proximal policy: the training engine before the update."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __init__(self, *, mask_BT: Tensor, reward_B: Tensor, group_B: Tensor, logp_old_BT: Tensor, **extras: Tensor | None) -> None:
        core = {"mask_BT": mask_BT, "reward_B": reward_B, "group_B": group_B, "logp_old_BT": logp_old_BT}
        if "extras" in extras:
            raise TypeError("a batch takes its tensors by name: `batch.having(name=tensor)` changes some")
        there = {name: tensor for name, tensor in extras.items() if tensor is not None}
        for name, value in (*core.items(), ("extras", there)):
            object.__setattr__(self, name, value)
        lengths = {name: len(tensor) for name, tensor in {**core, **there}.items() if is_by_row(name)}
        if any(length != len(reward_B) for length in lengths.values()):
            raise ValueError(f"the tensors of a batch must have one row per rollout, got {lengths}")

    def __getitem__(self, name: str) -> Tensor:
        return getattr(self, name) if name in CORE else self.extras[name]

    def __getattr__(self, name: str) -> Tensor:
        extras: Mapping[str, Tensor] = self.__dict__.get("extras", {})
        if name in extras:
            return extras[name]
        raise AttributeError(f"the batch has no tensor {name}")

    def __contains__(self, name: object) -> bool:
        return name in CORE or name in self.extras

    def get(self, name: str) -> Tensor | None:
        """The tensor, None where it is not there."""
        return self.tensors().get(name)

    def tensors(self) -> dict[str, Tensor]:
        """What is there, by name."""
        return {**{name: getattr(self, name) for name in CORE}, **self.extras}

    def having(self, **tensors: Tensor | None) -> Batch:
        """The batch with these tensors in place of its own; None takes one away."""
        given: dict[str, Any] = {**self.tensors(), **tensors}
        return Batch(**given)

    def rows(self, index: Tensor) -> Batch:
        """The rows at `index`. Of a batch that has been weighed the slices' losses add up to its own."""
        return self.having(**{name: tensor[index] for name, tensor in self.tensors().items() if is_by_row(name)})

    def narrow(self, width: int) -> Batch:
        """The first `width` token positions; the rest must be masked."""
        return self.having(**{name: tensor[:, :width] for name, tensor in self.tensors().items() if _TOKENS.search(name)})


_ROWS, _TOKENS = re.compile(r"_B[A-Z]*$"), re.compile(r"_BT[A-Z]*$")


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
