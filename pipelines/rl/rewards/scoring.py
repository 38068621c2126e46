"""What a part of the reward is given beside the group."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.models.reward_model import RewardModel
from pipelines.records import Problem, Trajectory, Verdict
from pipelines.verifiers import VerifierPool
from pipelines.verifiers.judgement import Verifier


@dataclass(frozen=True)
class Judges:
    """Models that say what answers are worth. reward_models: those that parts of the reward name, by stage. verifier: what stands in for verifier
    `judge`; None leaves it to the endpoint."""

    reward_models: Mapping[str, RewardModel] = field(default_factory=dict)
    verifier: Verifier | None = None


NOBODY = Judges()


@dataclass(frozen=True)
class Scoring:
    """problem: what the group answered. answers: what is judged of each, the last turn. verdicts: of the problem's own verifier, or of the
    environment. limit: tokens that an answer may have. reward_models: those that parts name, by stage. steps: that the run has; inf where
    nobody says."""

    problem: Problem
    answers: Sequence[str]
    verdicts: Sequence[Verdict]
    pool: VerifierPool
    limit: int
    reward_models: Mapping[str, RewardModel]
    steps: float = math.inf


Part = Callable[[Sequence[Trajectory], Scoring], dict[str, list[float | None]]]
"""(trajectories of one group, scoring) -> values by name, one for each trajectory; None where it cannot be had, and the trajectory does not train."""
