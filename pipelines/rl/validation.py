"""The policy measured on problems held out of the stage's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines import seeding
from pipelines.config.rl import ValidationSettings
from pipelines.errors import UserError
from pipelines.models.checkpoints import Best
from pipelines.records import Problem
from pipelines.rl.schedule import Schedule, Stored


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
    """Measurements of one stage. best: the weights with the largest pass rate."""

    def __init__(self, settings: ValidationSettings, problems: Sequence[Problem], best: Best) -> None:
        self.settings, self.best = settings, best
        self._problems = problems

    def measure(self, step: int, total: int, schedule: Schedule, policy: Any) -> dict[str, float]:
        """What to log after `step`: nothing, or the pass rate on the held-out problems. New best weights are kept."""
        if step % self.settings.every and step < total:
            return {}
        assert not isinstance(schedule, Stored)  # whoever trains on stored answers has no settings of a validation
        rate = schedule.pass_rate(self._problems, self.settings.samples, step)
        self.best.offer(step, rate, policy)
        return {"validation": rate}
