"""Slot `tasks`: which problems are drawn. A sampler is a class whose keyword-only parameters are its settings; a run makes one of it and calls it
as (problems, draw) -> problems. What it remembers it builds from the history, so nothing of it needs a checkpoint."""

from pipelines.rl.tasks.bots import Bots
from pipelines.rl.tasks.draw import Choose, Draw, draw
from pipelines.rl.tasks.drop_high_pass import DropHighPass

__all__ = ["TASKS", "Bots", "Choose", "Draw", "DropHighPass", "draw"]

TASKS = {"drop_high_pass": DropHighPass, "bots": Bots}
