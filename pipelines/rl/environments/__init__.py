"""Slot `environment`: how an episode goes, a file for each class."""

from pipelines.rl.environments.harness import Harness
from pipelines.rl.environments.intersection import Intersection
from pipelines.rl.environments.open_env import OpenEnv
from pipelines.rl.environments.single_turn import SingleTurn
from pipelines.rl.environments.tools import Tools

__all__ = ["ENVIRONMENTS", "Harness", "Intersection", "OpenEnv", "SingleTurn", "Tools"]

ENVIRONMENTS = {"single_turn": SingleTurn, "tools": Tools, "open_env": OpenEnv, "harness": Harness, "intersection": Intersection}
