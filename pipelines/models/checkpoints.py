"""Resumable training state: written aside, fsynced, renamed, and bound to what it was made from.

A checkpoint holds weights, optimiser state, the step, and the state of whatever else changes with it. Everything random is
keyed by (seed, purpose, step), so the step is the whole state of every sampler. Beside it lies its digest: a file that a disk
tore or lost in part is passed over for the one before. The identity (settings, inputs, code) is stored too: state of another
identity is refused and the difference named, unless the user accepts it, which is recorded, or has it discarded.

Another number of threads, or another kind of CPU, rounds otherwise: such a resume goes on, says so, and is recorded as an accepted change.

The state after the last step is a checkpoint too, and none is removed here when training is done: a run that is killed before its
outputs are recorded writes them again from there. Whoever records the stage clears the folder.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from pipelines.errors import UserError
from pipelines.interrupted import Interrupted, OnChange, differences
from pipelines.lineage.digests import file_sha256
from pipelines.lineage.machine import machine
from pipelines.models.adapters import VALUE_HEAD, plain_weights
from pipelines.models.sharding import load_optimiser, load_weights, optimiser_state, weights_on_first
from pipelines.store import discard, forget_torn, read_json, replacing, write_json

KEEP = 2
"""Newest checkpoints kept: the last, and the one before it in case the disk lies."""
_NAME = re.compile(r"step-(\d+)\.pt")


class Stateful(Protocol):
    """What can be saved beside the model: a module, or anything else of tensors and plain values."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


class Numbers(dict[str, float]):
    """Numbers by name that a checkpoint keeps."""

    state_dict = dict.copy

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.update(state)


class Pace:
    """When a checkpoint is due: at every step that `every` divides, and when `minutes` have passed since the last.

    longest: of the seconds that several processes measure the largest, so that all agree.
    """

    def __init__(self, every: int, minutes: float, longest: Callable[[float], float] = float) -> None:
        self._every, self._seconds, self._longest = every, 60 * minutes, longest
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether one is due after `step`; the next is counted from here."""
        found = step % self._every == 0 or self._longest(time.monotonic() - self._last) >= self._seconds
        if found:
            self._last = time.monotonic()
        return found


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of one stage in `folder`, valid for one `identity` (name -> digest, value or mapping of values)."""

    folder: Path
    identity: dict[str, Any]
    on_change: OnChange = "refuse"
    writes: bool = True
    """False in all but the first of several processes."""
    stage: str = "training"
    """Whose they are, for what is told."""

    def prepare(self) -> str:
        """Make the folder ready for this identity. Returns a sentence when state of another identity was accepted or discarded, or is continued
        where sums are rounded otherwise; else ''.

        Raises:
            UserError: there is state of another identity, and nobody said what to do with it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        forget_torn(self.folder)
        if self._record.changed:
            discard(self.folder / "ledger")  # answers since the last checkpoint, of who asks for them otherwise now
        said = self._record.meet(_step(self._all()[-1]) if self._all() else None, self._forget)
        return "; ".join(filter(None, (said, self._meet_machine())))

    def _meet_machine(self) -> str:
        """Note the threads and the CPU that compute from here on. Returns a sentence where they are not those of the state that is here."""
        here = machine()
        before = read_json(self._machine) if self._machine.exists() else here
        write_json(self._machine, here)
        changed = differences(before, here)
        if not changed or not self._all():
            return ""
        step = _step(self._all()[-1])
        self._record.accept(step, changed)
        return f"continuing after step {step} on another machine ({'; '.join(changed)}): the last digits are not those of a run left alone"

    def accepted(self) -> list[dict[str, Any]]:
        """Changes under way that the user accepted: [{step, changes}]."""
        return self._record.accepted()

    def save(self, step: int, model: Any, optimiser: torch.optim.Optimizer, others: Mapping[str, Stateful] | None = None) -> None:
        """Write the state after `step`. If that fails (a full disk), what was there before is untouched.

        Of several processes all must call, and the first writes.
        """
        state = {"step": step, "model": weights_on_first(model), "optimiser": optimiser_state(model, optimiser)}
        state |= {"others": {name: other.state_dict() for name, other in (others or {}).items()}}
        if self.writes:
            self._write(self.folder / f"step-{step:08d}.pt", state)
            for old in self._all()[:-KEEP]:
                self._remove(old)
            oldest = f"best-{_step(self._all()[0]):08d}.pt"
            for old in [path for path in self._bests() if path.name <= oldest][:-1]:  # no checkpoint names them any more
                self._remove(old)

    def oldest(self) -> int:
        """Step of the oldest checkpoint that is kept, 0 where there is none."""
        return _step(self._all()[0]) if self._all() else 0

    def save_best(self, step: int, model: Any) -> None:
        """Keep the weights after `step`, as a plain model's, as the best so far; earlier ones stay while a checkpoint names them."""
        state = {"step": step, "model": plain_weights(model)}
        if self.writes:
            self._write(self.folder / f"best-{step:08d}.pt", state)

    def best(self, step: int) -> dict[str, Any]:
        """The weights that `save_best` kept after `step`.

        Raises:
            UserError: they are not there, or not whole.
        """
        path = self.folder / f"best-{step:08d}.pt"
        if not path.exists() or not _whole(path):
            raise UserError(f"{path}: the best weights, of step {step}, are damaged or gone; begin the stage again with --discard")
        return torch.load(path, weights_only=True)["model"]

    def restore(
        self,
        model: Any,
        optimiser: torch.optim.Optimizer,
        others: Mapping[str, Stateful] | None = None,
        afresh: Callable[[str], object] = str,
    ) -> int:
        """Load the newest checkpoint that is whole; returns its step, 0 when there is none.

        A checkpoint of settings that were changed since may lack a part (`optimiser`, `value head`, one of `others`), which then stays as it
        is; `afresh` hears its name.

        Raises:
            UserError: it is of a model with other weights.
        """
        path = next((path for path in reversed(self._all()) if _whole(path)), None)
        if path is None:
            return 0
        state = torch.load(path, weights_only=True, map_location="cpu")
        saved, own = (
            {(name, tuple(value.shape)) for name, value in tensors.items() if not name.startswith(VALUE_HEAD)}
            for tensors in (state["model"], model.state_dict())
        )
        if saved != own:
            name, shape = min(saved ^ own)
            raise UserError(
                f"{path}: it is of a model with other weights (such as {name} of shape {list(shape)}): undo that change, "
                f"or remove {self.folder} to begin again"
            )
        names = model.state_dict().keys()
        load_weights(model, {name: value for name, value in state["model"].items() if name in names})
        if not names <= state["model"].keys():
            afresh("value head")
        if not load_optimiser(model, optimiser, state["optimiser"]):
            afresh("optimiser")
        for name, other in (others or {}).items():
            if name in state["others"]:
                other.load_state_dict(state["others"][name])
            else:
                afresh(name)
        return int(state["step"])

    def _forget(self) -> None:
        for path in (*self._all(), *self._bests()):
            self._remove(path)

    @staticmethod
    def _write(path: Path, state: dict[str, Any]) -> None:
        with replacing(path) as temporary:
            torch.save(state, temporary)
            write_json(_digest_of(path), file_sha256(temporary))

    @staticmethod
    def _remove(path: Path) -> None:
        path.unlink()
        _digest_of(path).unlink(missing_ok=True)

    @property
    def _record(self) -> Interrupted:
        return Interrupted(self.folder, self.identity, self.on_change, self.stage)

    @property
    def _machine(self) -> Path:
        return self.folder / "machine.json"

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*.pt") if _NAME.fullmatch(path.name))

    def _bests(self) -> list[Path]:
        return sorted(self.folder.glob("best-*.pt"))


class Best:
    """The weights with the largest of the figures that were measured so far. state: numbers of a checkpoint (its best figure and step, measurements
    since); the weights lie beside them. patience: measurements in a row without a new best after which training is over; None never."""

    def __init__(self, checkpoints: Checkpoints, state: dict[str, float], patience: int | None) -> None:
        self._checkpoints, self._state, self._patience = checkpoints, state, patience

    def offer(self, step: int, figure: float, model: Any) -> None:
        """Keep the weights after `step` if their figure is the largest. Of several processes all must call."""
        if figure > self._state.get("best", -math.inf):
            self._state |= {"best": figure, "best_step": step, "since_best": 0}
            self._checkpoints.save_best(step, model)
        else:
            self._state["since_best"] += 1

    @property
    def over(self) -> bool:
        """Whether the model has stopped getting better."""
        return self._patience is not None and self._state.get("since_best", 0) >= self._patience

    @property
    def step(self) -> int:
        return int(self._state["best_step"])

    @property
    def figure(self) -> float:
        return self._state["best"]

    def weights(self) -> dict[str, Any]:
        """The best weights, as a plain model's."""
        return self._checkpoints.best(self.step)


def _step(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def _digest_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _whole(path: Path) -> bool:
    digest = _digest_of(path)
    return digest.exists() and read_json(digest) == file_sha256(path)
