"""Slots `parts` and `combine`: the reward of an answer. (What an objective makes of it is the slot `reward`.)"""

from pipelines.rl.rewards.combine import COMBINE, weighted
from pipelines.rl.rewards.parts import PARTS
from pipelines.rl.rewards.reward import Rewards
from pipelines.rl.rewards.scoring import NOBODY, Judges, Part, Scoring

__all__ = ["COMBINE", "NOBODY", "PARTS", "Judges", "Part", "Rewards", "Scoring", "weighted"]
