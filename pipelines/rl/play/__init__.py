"""Slot `play`: what a drawn problem leads to, a file for each class."""

from pipelines.rl.play.answer import Answer
from pipelines.rl.play.partial_states import PartialStates
from pipelines.rl.play.variational_synthesis import VariationalSynthesis

__all__ = ["PLAY", "Answer", "PartialStates", "VariationalSynthesis"]

PLAY = {"answer": Answer, "partial_states": PartialStates, "variational_synthesis": VariationalSynthesis}
