"""What decides, beside seed and code, how sums are rounded: the number of threads, and the kernels that the CPU gets."""

from __future__ import annotations

import sys
from typing import Any

PACKAGE = "pipelines."


def machine() -> dict[str, Any]:
    """Threads and kind of CPU of this process where it computes with torch, else nothing, for then they decide nothing.

    It does where a module of this package has imported it: that it is loaded says little, since stages are forked from a process that
    has loaded it for those that need it.
    """
    torch = sys.modules.get("torch")
    used = torch and any(vars(module).get("torch") is torch for name, module in list(sys.modules.items()) if name.startswith(PACKAGE))
    return {"threads": torch.get_num_threads(), "cpu_capability": torch.backends.cpu.get_cpu_capability()} if torch and used else {}
