"""Reinforcement learning with verifiable rewards: one loop (`train.py`), slots, and a table of published recipes.

Reading order: docs/RL.md (the walk of one problem), train.py (the loop) and run.py (what its verbs do), recipes.yaml (the methods).
The data half, from a problem to a batch: tasks/, play/, guidance/, explore/, environments/, rewards/, schedule/, recompose/, between which
episodes.py has the records and protocols; collate.py makes the batch. The objective half, from a batch to a loss: tensors.py (every tensor,
once), slots/, objectives/, objective.py (how slots compose), inputs/ (how the loop comes by the tensors).
"""

from pipelines.rl.batch import Batch
from pipelines.rl.objective import advantages, aggregates, objective, route, weigh, with_advantages
from pipelines.rl.recipe import Recipe, names, recipe

RECIPES: dict[str, Recipe] = {name: recipe(name) for name in names()}

__all__ = ["RECIPES", "Batch", "Recipe", "advantages", "aggregates", "objective", "recipe", "route", "weigh", "with_advantages"]
