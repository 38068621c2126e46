"""Slot S9: terms added to the per-token loss before aggregation.

Each function takes (logp_BT, batch) and returns a term (B, T) that is multiplied by its coefficient.
"""

from __future__ import annotations

from torch import Tensor

from pipelines.rl.batch import Batch


def _gap(logp_BT: Tensor, batch: Batch) -> Tensor:
    if batch.logp_ref_BT is None:
        raise ValueError("the recipe has a KL term, so the batch needs logp_ref_BT")
    return (logp_BT - batch.logp_ref_BT).clamp(-20, 20)


def kl_k1(logp_BT: Tensor, batch: Batch) -> Tensor:
    """d = log pi - log ref: unbiased value, but its gradient is 0 in expectation; for monitoring."""
    return _gap(logp_BT, batch)


def kl_k2(logp_BT: Tensor, batch: Batch) -> Tensor:
    """d^2 / 2: on-policy its gradient is that of the reverse KL(pi || ref)."""
    return _gap(logp_BT, batch) ** 2 / 2


def kl_k3(logp_BT: Tensor, batch: Batch) -> Tensor:
    """exp(-d) + d - 1 (GRPO): unbiased value; on-policy its gradient is that of the forward KL(ref || pi)."""
    gap = _gap(logp_BT, batch)
    return (-gap).exp() + gap - 1
