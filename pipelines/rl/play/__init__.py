"""Slot `play`: what a drawn problem leads to, a file for each class."""

from pipelines.rl.play.answer import Answer
from pipelines.rl.play.variational_synthesis import VariationalSynthesis

__all__ = ["PLAY", "Answer", "VariationalSynthesis"]

PLAY = {"answer": Answer, "variational_synthesis": VariationalSynthesis}
