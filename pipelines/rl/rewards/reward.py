"""A group of episodes gets its verdicts, the parts of its reward, and the reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from pipelines.errors import UserError
from pipelines.models.reward_model import RewardModel
from pipelines.records import Outcome, Problem, Trajectory, Verdict
from pipelines.rl.rewards.scoring import Part, Scoring
from pipelines.verifiers import VerifierPool


class Rewards:
    """The recipe's slots `parts` and `combine` at work. pool: of verifiers. limit: tokens that an answer may have. reward_models: those that parts
    name, by stage. steps: that the run has; inf where nobody says."""

    def __init__(
        self,
        pool: VerifierPool,
        parts: Sequence[Part],
        combine: Callable[[dict[str, float]], float],
        limit: int,
        reward_models: Mapping[str, RewardModel] | None = None,
        steps: float = math.inf,
    ) -> None:
        self.pool = pool
        self.limit = limit
        self._parts, self._combine, self._reward_models = parts, combine, reward_models or {}
        self._steps = steps

    def __call__(self, problem: Problem, group: Sequence[Trajectory], answers: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        """Write outcome, parts and reward into the trajectories. What has a part that cannot be had is `infrastructure`: it never trains.

        Raises:
            UserError: `combine` names a part that there is not.
        """
        at = Scoring(problem, answers, verdicts, self.pool, self.limit, self._reward_models, self._steps)
        values: dict[str, list[float | None]] = {}
        for part in self._parts:
            values |= part(group, at)
        for place, (trajectory, verdict) in enumerate(zip(group, verdicts, strict=True)):
            trajectory.outcome, trajectory.extracted, trajectory.detail = verdict.outcome.value, verdict.extracted, verdict.detail
            parts = {name: column[place] for name, column in values.items()}
            trajectory.reward_parts = trajectory.reward_parts | {name: value for name, value in parts.items() if value is not None}
            missing = [name for name, value in parts.items() if value is None]
            if missing and verdict.outcome is not Outcome.INFRASTRUCTURE:
                trajectory.outcome, trajectory.detail = Outcome.INFRASTRUCTURE.value, f"part '{missing[0]}' of the reward could not be had"
            trajectory.reward = 0.0 if missing else self.combined(trajectory.reward_parts)

    def combined(self, parts: dict[str, float]) -> float:
        """The reward of an answer with these parts.

        Raises:
            UserError: `combine` names a part that there is not.
        """
        try:
            return self._combine(parts)
        except KeyError as error:
            raise UserError(f"slot 'combine' names part {error}, and an answer has {', '.join(sorted(parts))}; add it to slot 'parts'") from None
