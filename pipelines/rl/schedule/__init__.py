"""When answers are made and when they train: `schedule` of an RL stage, a file for each kind.

    take(step, clock)   the answers that a step trains on
    ahead(step)         before the update of the step before: what may be answered beside it
"""

from __future__ import annotations

from typing import Any

from pipelines.rl.schedule.in_flight import InFlight
from pipelines.rl.schedule.one_ahead import OneAhead, Stopped
from pipelines.rl.schedule.source import Follower, Source, engine_of
from pipelines.rl.schedule.synchronous import Synchronous

__all__ = ["Follower", "InFlight", "OneAhead", "Schedule", "Source", "Stopped", "Synchronous", "engine_of", "schedule_of"]

Schedule = Synchronous | OneAhead | InFlight


def schedule_of(source: Source, policy: Any, behaviour: Any) -> Schedule:
    """behaviour: a copy of the policy, where answers are made beside updates."""
    settings = source.settings.schedule
    if settings.kind == "synchronous":
        return Synchronous(source, policy)
    if settings.kind == "one_ahead":
        return OneAhead(source, policy, behaviour)
    groups = settings.groups or 2 * source.settings.prompts_per_step
    return InFlight(source, policy, behaviour, bound=settings.bound, groups=groups, running=settings.running)
