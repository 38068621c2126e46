"""Resumable training state: written aside, fsynced, renamed, and bound to what it was made from.

A checkpoint holds weights, optimiser state, the step, and the state of whatever else changes with it. Everything random is
keyed by (seed, purpose, step), so the step is the whole state of every sampler. Beside it lies its digest: a file that a disk
tore or lost in part is passed over for the one before. The identity (settings, inputs, code) is stored too: state of another
identity is refused and the difference named, unless the user accepts it, which is recorded, or has it discarded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from pipelines.errors import UserError
from pipelines.lineage.digests import file_sha256
from pipelines.store import forget_torn, read_json, replacing, write_json

KEEP = 2
"""Newest checkpoints kept: the last, and the one before it in case the disk lies."""
_NAME = re.compile(r"step-(\d+)\.pt")

OnChange = Literal["refuse", "accept", "discard"]
"""What becomes of state of another identity."""


class Stateful(Protocol):
    """What can be saved beside the model: a module, or anything else of tensors and plain values."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of one stage in `folder`, valid for one `identity` (name -> digest, value or mapping of values)."""

    folder: Path
    identity: dict[str, Any]
    on_change: OnChange = "refuse"

    def prepare(self) -> str:
        """Make the folder ready for this identity. Returns a sentence when state of another identity was accepted or discarded, else ''.

        Raises:
            UserError: there is state of another identity, and nobody said what to do with it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        forget_torn(self.folder)
        old = read_json(self._marker) if self._marker.exists() else self.identity
        changed = differences(old, self.identity)
        said = ""
        if changed and self._all():
            step = int(_NAME.fullmatch(self._all()[-1].name)[1])  # type: ignore[index]
            if self.on_change == "refuse":
                raise UserError(
                    f"{self.folder.name}: an interrupted run stands at step {step} that was made otherwise: {'; '.join(changed)}. "
                    "Undo that, or continue all the same with --accept-changes, or begin again with --discard"
                )
            if self.on_change == "accept":
                write_json(self._accepted, [*self.accepted(), {"step": step, "changes": changed}])
                said = f"continuing after step {step} though this changed: {'; '.join(changed)}"
            else:
                self._forget()
                said = f"starting afresh: {'; '.join(changed)}"
        write_json(self._marker, self.identity)
        return said

    def accepted(self) -> list[dict[str, Any]]:
        """Changes under way that the user accepted: [{step, changes}]."""
        return read_json(self._accepted) if self._accepted.exists() else []

    def save(self, step: int, model: Any, optimiser: torch.optim.Optimizer, others: Mapping[str, Stateful] | None = None) -> None:
        """Write the state after `step`. If that fails (a full disk), what was there before is untouched."""
        state = {"step": step, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
        path = self.folder / f"step-{step:08d}.pt"
        with replacing(path) as temporary:
            torch.save(state | {"others": {name: other.state_dict() for name, other in (others or {}).items()}}, temporary)
            write_json(_digest_of(path), file_sha256(temporary))
        for old in self._all()[:-KEEP]:
            old.unlink()
            _digest_of(old).unlink(missing_ok=True)

    def restore(self, model: Any, optimiser: torch.optim.Optimizer, others: Mapping[str, Stateful] | None = None) -> int:
        """Load the newest checkpoint that is whole; returns its step, 0 when there is none."""
        path = next((path for path in reversed(self._all()) if _whole(path)), None)
        if path is None:
            return 0
        state = torch.load(path, weights_only=True, map_location=model.device)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        for name, other in (others or {}).items():
            other.load_state_dict(state["others"][name])
        return int(state["step"])

    def clear(self) -> None:
        """Remove all state: the stage is done and its output stands."""
        self._forget()
        for path in (self._marker, self._accepted):
            path.unlink(missing_ok=True)

    def _forget(self) -> None:
        for path in self._all():
            path.unlink()
            _digest_of(path).unlink(missing_ok=True)

    @property
    def _marker(self) -> Path:
        return self.folder / "identity.json"

    @property
    def _accepted(self) -> Path:
        return self.folder / "accepted.json"

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What differs between two identities: `settings.optimiser.lr: 0.001 -> 0.01`; digests only as `code`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [found for key in keys for found in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)]
    if old == new:
        return []
    digest = any(isinstance(value, str) and len(value) == 64 for value in (old, new)) or isinstance(new, list)
    return [name if digest else f"{name}: {old} -> {new}"]


def _digest_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _whole(path: Path) -> bool:
    digest = _digest_of(path)
    return digest.exists() and read_json(digest) == file_sha256(path)
