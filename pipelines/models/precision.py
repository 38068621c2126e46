"""Lower precision where the hardware computes in it."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from pipelines.config.common import Precision
from pipelines.errors import UserError


def chosen(device: Any, wanted: Precision) -> Literal["float32", "bfloat16"]:
    """The precision that is computed in.

    Raises:
        UserError: bfloat16 is asked for and the device has no units for it; emulated it would be slower than float32.
    """
    if wanted == "float32":
        return "float32"
    if _has_units(torch.device(device).type):
        return "bfloat16"
    if wanted == "bfloat16":
        raise UserError(f"precision bfloat16: this {torch.device(device).type} has no units for it; use float32, or auto")
    return "float32"


def autocast(device: Any, wanted: Precision) -> AbstractContextManager[Any]:
    """Matrix products in the precision; weights, gradients and optimiser state stay in float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=chosen(device, wanted) == "bfloat16")


def _has_units(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("x86_64", "AMD64"):  # AVX-512 alone is enough for oneDNN, which then converts to float32 and back
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
