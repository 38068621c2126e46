"""Slot `recompose`: what becomes of a step's trajectories before they train, a file for each function."""

from pipelines.rl.recompose.auto_npo import auto_npo
from pipelines.rl.recompose.corrected_prefixes import corrected_prefixes
from pipelines.rl.recompose.critical_tokens import critical_tokens
from pipelines.rl.recompose.demonstrations import demonstration_buffer, demonstrations, teachers_for_failures
from pipelines.rl.recompose.dynamic_sampling import dynamic_sampling
from pipelines.rl.recompose.feedback import feedback
from pipelines.rl.recompose.inject import inject
from pipelines.rl.recompose.interventions import interventions
from pipelines.rl.recompose.oversampling import oversampling
from pipelines.rl.recompose.prioritised_replay import prioritised_replay
from pipelines.rl.recompose.recomposition import Recomposition
from pipelines.rl.recompose.replay import replay
from pipelines.rl.recompose.response_recomposition import response_recomposition
from pipelines.rl.recompose.swarm import swarm

__all__ = [
    "CONTINUING", "RECOMPOSE", "Recomposition", "auto_npo", "corrected_prefixes", "critical_tokens", "demonstration_buffer", "demonstrations",
    "dynamic_sampling", "feedback", "inject", "interventions", "oversampling", "prioritised_replay", "replay", "response_recomposition", "swarm",
    "teachers_for_failures",
]  # fmt: skip

RECOMPOSE = {
    "dynamic_sampling": dynamic_sampling,
    "oversampling": oversampling,
    "replay": replay,
    "inject": inject,
    "auto_npo": auto_npo,
    "demonstrations": demonstrations,
    "demonstration_buffer": demonstration_buffer,
    "teachers_for_failures": teachers_for_failures,
    "corrected_prefixes": corrected_prefixes,
    "critical_tokens": critical_tokens,
    "feedback": feedback,
    "interventions": interventions,
    "prioritised_replay": prioritised_replay,
    "response_recomposition": response_recomposition,
    "swarm": swarm,
}

CONTINUING = (corrected_prefixes, critical_tokens, feedback, interventions)
"""Those after which an answer goes on from the beginning of another."""
