"""The policy measured on problems held out of the stage's own: which weights are the best, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines import seeding
from pipelines.config.rl import ValidationSettings
from pipelines.errors import UserError
from pipelines.models.checkpoints import Checkpoints
from pipelines.records import Problem
from pipelines.rl.schedule import Schedule


def hold_out(problems: Sequence[Problem], settings: ValidationSettings | None, seed: tuple[int, str]) -> tuple[list[Problem], list[Problem]]:
    """(problems to train on, problems to measure on), drawn by (seed, stage).

    Raises:
        UserError: nothing would be left to train on.
    """
    if settings is None:
        return list(problems), []
    if settings.problems >= len(problems):
        raise UserError(f"{seed[1]}: validation.problems {settings.problems} must be less than the {len(problems)} problems of the stage")
    held = set(seeding.generator(*seed, "held out").permutation(len(problems))[: settings.problems].tolist())
    return [p for place, p in enumerate(problems) if place not in held], [p for place, p in enumerate(problems) if place in held]


class Validation:
    """Measurements of one stage. Its state (best rate, its step, measurements since) is a checkpoint's; the best weights lie beside them."""

    def __init__(self, settings: ValidationSettings, problems: Sequence[Problem], checkpoints: Checkpoints, state: dict[str, float]) -> None:
        self.settings = settings
        self._problems, self._checkpoints, self._state = problems, checkpoints, state

    def measure(self, step: int, total: int, schedule: Schedule, policy: Any) -> dict[str, float]:
        """What to log after `step`: nothing, or the pass rate on the held-out problems. New best weights are kept."""
        if step % self.settings.every and step < total:
            return {}
        rate = schedule.pass_rate(self._problems, self.settings.samples, step)
        if rate > self._state.get("best_rate", -1.0):
            self._state |= {"best_rate": rate, "best_step": step, "since_best": 0}
            self._checkpoints.save_best(step, policy)
        else:
            self._state["since_best"] += 1
        return {"validation": rate}

    @property
    def over(self) -> bool:
        """Whether the policy has stopped getting better."""
        return self.settings.patience is not None and self._state.get("since_best", 0) >= self.settings.patience

    @property
    def best_step(self) -> int:
        return int(self._state["best_step"])
