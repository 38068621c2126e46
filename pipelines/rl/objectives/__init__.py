"""What is no policy gradient: each a module with its paper. A function gives the loss per token (B, T), per response (B,), or
this slice's share of a loss with a denominator of its own (a scalar); the first two are aggregated as the recipe says."""

from pipelines.rl.objectives.implicit_critic import implicit_critic
from pipelines.rl.objectives.negative_aware import negative_aware
from pipelines.rl.objectives.pairwise import contrastive, odds_ratio, preference, trust_region_preference
from pipelines.rl.objectives.random_policy_value import random_policy_value
from pipelines.rl.objectives.self_distillation import self_distillation
from pipelines.rl.objectives.step_regression import step_regression

OBJECTIVES = {
    "implicit_critic": implicit_critic,
    "negative_aware": negative_aware,
    "random_policy_value": random_policy_value,
    "preference": preference,
    "odds_ratio": odds_ratio,
    "trust_region_preference": trust_region_preference,
    "contrastive": contrastive,
    "step_regression": step_regression,
    "self_distillation": self_distillation,
}
PER_TOKEN = ("policy_gradient", "negative_aware", "random_policy_value", "self_distillation")
"""Objectives that give a loss per token, which corrections of the engines' gap, token masks and token weights can multiply."""
GROUPED = ("implicit_critic", "preference", "odds_ratio", "trust_region_preference", "contrastive")
"""Objectives whose gradient couples the responses of a group: a micro-batch holds whole groups."""
