"""Reinforcement learning with verifiable rewards: one loop (`train.py`), slots, and a table of published recipes.

Reading order: train.py (the loop), recipes.yaml (the methods), objective.py (how slots compose), slots/ (one module a slot),
objectives/ (what is no policy gradient), batch.py (the tensors), inputs/ (how the loop comes by them).
"""

from pipelines.rl.batch import Batch
from pipelines.rl.objective import advantages, aggregates, objective, route, weigh, with_advantages
from pipelines.rl.recipe import Recipe, names, recipe

RECIPES: dict[str, Recipe] = {name: recipe(name) for name in names()}

__all__ = ["RECIPES", "Batch", "Recipe", "advantages", "aggregates", "objective", "recipe", "route", "weigh", "with_advantages"]
