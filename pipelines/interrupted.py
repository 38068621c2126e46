"""What interrupted work was made from. Work of another identity (settings, seed, inputs, code) is refused and the difference named, unless the
user accepts it, which is recorded, or has it discarded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.errors import UserError
from pipelines.store import read_json, write_json

OnChange = Literal["refuse", "accept", "discard"]
"""What becomes of work of another identity."""


@dataclass(frozen=True)
class Interrupted:
    """The record beside the work in `folder`. identity: name -> digest, value or mapping of values. stage: whose work it is, for what is told."""

    folder: Path
    identity: dict[str, Any]
    on_change: OnChange = "refuse"
    stage: str = "training"

    @property
    def changed(self) -> list[str]:
        """What sets the identity apart from that of the work which lies there."""
        return differences(read_json(self._marker), self.identity) if self._marker.exists() else []

    def meet(self, step: int | None, forget: Callable[[], None]) -> str:
        """Make what lies there work of this identity. step: where it stands, None where there is none. forget: removes it.

        Returns a sentence when work of another identity was accepted or discarded, else ''.

        Raises:
            UserError: there is such work, and nobody said what to do with it.
        """
        changed, said = self.changed, ""
        if changed and step is not None:
            if self.on_change == "refuse":
                raise UserError(
                    f"{self.stage}: an interrupted run stands at step {step} that was made otherwise: {'; '.join(changed)}. "
                    "Undo that, or continue all the same with --accept-changes, or begin again with --discard"
                )
            if self.on_change == "accept":
                self.accept(step, changed)
                said = f"continuing after step {step} though this changed: {'; '.join(changed)}"
            else:
                forget()
                said = f"starting afresh: {'; '.join(changed)}"
        write_json(self._marker, self.identity)
        return said

    def accept(self, step: int, changes: list[str]) -> None:
        """Note that the work goes on from `step` though something has changed."""
        write_json(self._accepted, [*self.accepted(), {"step": step, "changes": changes}])

    def accepted(self) -> list[dict[str, Any]]:
        """Changes under way that the user accepted: [{step, changes}]."""
        return read_json(self._accepted) if self._accepted.exists() else []

    @property
    def _marker(self) -> Path:
        return self.folder / "identity.json"

    @property
    def _accepted(self) -> Path:
        return self.folder / "accepted.json"


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What differs between two identities: `settings.optimiser.lr: 0.001 -> 0.01`; digests only as `code`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [found for key in keys for found in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)]
    if old == new:
        return []
    digest = any(isinstance(value, str) and len(value) == 64 for value in (old, new)) or isinstance(new, list)
    return [name if digest else f"{name}: {old} -> {new}"]
