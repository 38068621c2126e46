"""The tensors an objective reads: specs' section 0 as one record.

B sequences (all groups flattened), T padded response length. All tensors are detached; only `logp_BT`, which the loop
passes beside the batch, carries gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One optimiser batch of rollouts, or some rows of it.

    mask_BT: 1 on trainable response tokens (end-of-turn included), else 0. reward_B: scalar outcome reward.
    group_B: prompt id of each row. logp_old_BT: proximal policy (training engine, before the update). logp_roll_BT:
    behaviour policy (generation engine). logp_ref_BT: frozen reference, where a recipe asks for one.
    truncated_B: response reached the length limit. advantage_BT: filled by `advantages`.
    total: the batch that denominators are taken from, when this one is a slice of it.
    """

    mask_BT: Tensor
    reward_B: Tensor
    group_B: Tensor
    logp_old_BT: Tensor
    logp_roll_BT: Tensor | None = None
    logp_ref_BT: Tensor | None = None
    truncated_B: Tensor | None = None
    advantage_BT: Tensor | None = None
    total: Batch | None = None

    @property
    def whole(self) -> Batch:
        """The batch that denominators are global over."""
        return self.total or self

    def rows(self, index: Tensor) -> Batch:
        """The rows at `index`, with this batch as the whole."""
        names = ("mask_BT", "reward_B", "group_B", "logp_old_BT", "logp_roll_BT", "logp_ref_BT", "truncated_B", "advantage_BT")
        picked = {name: value[index] for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **picked, total=self.whole)

    def narrow(self, width: int) -> Batch:
        """The first `width` token positions; the rest must be masked."""
        names = ("mask_BT", "logp_old_BT", "logp_roll_BT", "logp_ref_BT", "advantage_BT")
        return replace(self, **{name: value[:, :width] for name in names if (value := getattr(self, name)) is not None})


def group_index(group_B: Tensor) -> tuple[Tensor, int]:
    """Group ids as 0 .. K-1 and K."""
    ids, index = torch.unique(group_B, return_inverse=True)
    return index, len(ids)
