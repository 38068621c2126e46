"""Reinforcement learning with verifiable rewards: one loop (`train.py`), slots, and a table of published recipes.

Reading order: train.py (the loop), objective.py (how slots compose), recipes.yaml (the methods), then one module per slot:
reward, advantage, ratio (and clip), mismatch, aggregation, regularisers, routing.
"""

from pipelines.rl.batch import Batch
from pipelines.rl.objective import advantages, objective, route
from pipelines.rl.recipe import Recipe, names, recipe

RECIPES: dict[str, Recipe] = {name: recipe(name) for name in names()}

__all__ = ["RECIPES", "Batch", "Recipe", "advantages", "objective", "recipe", "route"]
