"""Slot `environment`: how an episode goes, a file for each class."""

from pipelines.rl.environments.forced_answer import ForcedAnswer
from pipelines.rl.environments.harness import Harness
from pipelines.rl.environments.intersection import Intersection
from pipelines.rl.environments.open_env import OpenEnv
from pipelines.rl.environments.single_turn import SingleTurn
from pipelines.rl.environments.tools import Tools

__all__ = ["ENVIRONMENTS", "ForcedAnswer", "Harness", "Intersection", "OpenEnv", "SingleTurn", "Tools"]

ENVIRONMENTS = {
    "single_turn": SingleTurn,
    "forced_answer": ForcedAnswer,
    "tools": Tools,
    "open_env": OpenEnv,
    "harness": Harness,
    "intersection": Intersection,
}
