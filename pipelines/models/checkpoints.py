"""Resumable training state: written aside, fsynced, renamed, and bound to what it was made from.

A checkpoint holds weights, optimiser state, the step, and the state of whatever else changes with it. Everything random is
keyed by (seed, purpose, step), so the step is the whole state of every sampler. The identity (settings, inputs, code) is
stored with it: state of another identity is never continued, and the difference is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from pipelines.store import read_json, replacing, write_json

KEEP = 2
"""Newest checkpoints kept: the last, and the one before it in case the disk lies."""
_NAME = re.compile(r"step-(\d+)\.pt")


class Stateful(Protocol):
    """What can be saved beside the model: a module, or anything else of tensors and plain values."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of one stage in `folder`, valid for one `identity` (name -> digest or value)."""

    folder: Path
    identity: dict[str, Any]

    def prepare(self) -> str:
        """Make the folder ready for this identity. Returns a sentence when state of another identity was thrown away, else ''."""
        self.folder.mkdir(parents=True, exist_ok=True)
        marker = self.folder / "identity.json"
        if marker.exists() and (old := read_json(marker)) != self.identity:
            for path in self._all():
                path.unlink()
            write_json(marker, self.identity)
            changed = sorted(name for name in {*old, *self.identity} if old.get(name) != self.identity.get(name))
            return f"starting afresh: {', '.join(changed)} changed since the interrupted run"
        write_json(marker, self.identity)
        return ""

    def save(self, step: int, model: Any, optimiser: torch.optim.Optimizer, others: Mapping[str, Stateful] | None = None) -> None:
        state = {"step": step, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
        with replacing(self.folder / f"step-{step:08d}.pt") as temporary:
            torch.save(state | {"others": {name: other.state_dict() for name, other in (others or {}).items()}}, temporary)
        for path in self._all()[:-KEEP]:
            path.unlink()

    def restore(self, model: Any, optimiser: torch.optim.Optimizer, others: Mapping[str, Stateful] | None = None) -> int:
        """Load the newest checkpoint; returns its step, 0 when there is none."""
        paths = self._all()
        if not paths:
            return 0
        state = torch.load(paths[-1], weights_only=True, map_location=model.device)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        for name, other in (others or {}).items():
            other.load_state_dict(state["others"][name])
        return int(state["step"])

    def clear(self) -> None:
        """Remove all state: the stage is done and its output stands."""
        for path in [*self._all(), self.folder / "identity.json"]:
            path.unlink(missing_ok=True)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*.pt") if _NAME.fullmatch(path.name))
