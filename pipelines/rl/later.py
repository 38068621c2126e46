"""The role `later`: what another training from the same start became, step by step, as one that goes on from there could."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.generation import Generator


@dataclass(frozen=True)
class Later:
    """steps: number of a step -> folder of the weights that were kept after it. speaking(folder): what serves them; one is held at a time."""

    steps: Mapping[int, Path]
    speaking: Callable[[Path], Generator]

    def near(self, step: int, ahead: Sequence[int]) -> list[int]:
        """For each of these distances the last kept step that is not further from `step`; only later ones, each once."""
        reached = (max((kept for kept in self.steps if kept <= step + distance), default=0) for distance in ahead)
        return sorted({kept for kept in reached if kept > step})

    def generator(self, step: int) -> Generator:
        """What serves the weights after `step`."""
        return self.speaking(self.steps[step])
