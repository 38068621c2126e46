"""What was answered since the last checkpoint, on disk from the moment it was: a run that is killed reads it back and samples nothing twice.

So a run whose engine would answer otherwise the second time (vLLM) still ends where it would have ended, and one of this library's own engine, which
answers alike, saves the time. Files: `step-S-N.parquet`, the trajectories of draw N of step S as the verifiers left them, or with a word for N, what
the step had from elsewhere; `open-S-R.json`, what process R had under way when it went on to step S.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.models import ranks
from pipelines.records import Trajectory
from pipelines.store import forget_torn, read_json, read_trajectories, write_json, write_trajectories

_NAME = re.compile(r"(?:step|open)-(\d+)-\w+\.(?:parquet|json)")


class Ledger:
    """The files of one stage in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if ranks.rank() == 0:
            forget_torn(folder)

    def answered(self, step: int, number: int | str) -> list[Trajectory] | None:
        """What was answered in draw `number` of `step`, if it was, or what it had from where `number` says."""
        path = self._answers(step, number)
        return read_trajectories(path) if path.exists() else None

    def record(self, step: int, number: int | str, trajectories: Sequence[Trajectory]) -> None:
        """The first of several processes writes."""
        if ranks.rank() == 0:
            write_trajectories(self._answers(step, number), trajectories)

    def under_way(self, step: int) -> Any:
        """What this process had under way when it went on to `step`; None if nothing is known of that."""
        path = self._open(step)
        return read_json(path) if path.exists() else None

    def record_under_way(self, step: int, content: Any) -> None:
        write_json(self._open(step), content)

    def forget(self, step: int) -> None:
        """A checkpoint holds all up to `step`: nobody will ask for what was answered up to there."""
        if ranks.rank() == 0:
            for path in self.folder.glob("*-*-*"):
                if (match := _NAME.fullmatch(path.name)) and int(match[1]) <= step:
                    path.unlink()

    def _answers(self, step: int, number: int | str) -> Path:
        return self.folder / f"step-{step:06d}-{number}.parquet"

    def _open(self, step: int) -> Path:
        return self.folder / f"open-{step:06d}-{ranks.rank()}.json"
