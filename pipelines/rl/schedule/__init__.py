"""When answers are made and when they train: `schedule` of a stage that samples, a file for each kind; and those that are stored (stored.py).

    take(step, clock)   the answers that a step trains on
    ahead(step)         before the update of the step before: what may be answered beside it
"""

from __future__ import annotations

from typing import Any

from pipelines.rl.schedule.in_flight import InFlight
from pipelines.rl.schedule.one_ahead import OneAhead, Stopped
from pipelines.rl.schedule.source import Follower, Source, engine_of
from pipelines.rl.schedule.stored import Stored
from pipelines.rl.schedule.synchronous import Synchronous

__all__ = ["Follower", "InFlight", "OneAhead", "Sampled", "Schedule", "Source", "Stopped", "Stored", "Synchronous", "engine_of", "schedule_of"]

Sampled = Synchronous | OneAhead | InFlight
Schedule = Sampled | Stored


def schedule_of(source: Source, policy: Any, behaviour: Any) -> Sampled:
    """behaviour: a copy of the policy, where answers are made beside updates."""
    settings = source.settings.schedule
    if settings.kind == "synchronous":
        return Synchronous(source, policy)
    if settings.kind == "one_ahead":
        return OneAhead(source, policy, behaviour)
    groups = settings.groups or 2 * source.settings.prompts_per_step
    return InFlight(source, policy, behaviour, bound=settings.bound, groups=groups, running=settings.running)
