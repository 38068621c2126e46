"""Which weights count as changed between two checkpoints: the same notion for merges and for diagnostics (arXiv 2511.08567).

A weight is changed iff |a - b| > share * max(|a|, |b|). A share of the weight, not a distance: then neither the scale of the weights nor
the learning rate decides what counts. Two different bfloat16 numbers are at least 2^-8 = .0039 apart in this sense, so the default counts
every change that weights in bfloat16 can show, and of float32 weights what is not far below it.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHARE = 1e-3
"""eta of the paper."""


def changed(before: Tensor, after: Tensor, share: float = SHARE) -> Tensor:
    """True where `after` is another number than `before`, by more than this share of the larger of the two."""
    return (after - before).abs_() > torch.maximum(before.abs(), after.abs()).mul_(share)
