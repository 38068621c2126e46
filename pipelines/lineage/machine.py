"""What decides, beside seed and code, how sums are rounded: the number of threads, and the kernels that the CPU gets."""

from __future__ import annotations

import sys
from typing import Any


def machine() -> dict[str, Any]:
    """Threads and kind of CPU of this process where it computes with torch; empty where it has not loaded it, for then they decide nothing."""
    torch = sys.modules.get("torch")
    return {} if torch is None else {"threads": torch.get_num_threads(), "cpu_capability": torch.backends.cpu.get_cpu_capability()}
