"""Lower precision where the hardware computes in it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from pipelines.errors import UserError

Precision = Literal["float32", "bfloat16"]


def require(device: str, precision: Precision) -> None:
    """
    Raises:
        UserError: this device has no units for the precision; emulated it would be slower than float32.
    """
    kind = torch.device(device).type
    has = torch.cuda.is_bf16_supported(including_emulation=False) if kind == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if precision == "bfloat16" and not has:
        raise UserError(f"precision bfloat16: this {kind} has no units for it; use float32")


def autocast(device: Any, precision: Precision) -> AbstractContextManager[Any]:
    """Matrix products in `precision`; weights, gradients and optimiser state stay in float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")
