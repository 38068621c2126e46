"""What is no policy gradient: each a module with its paper. A function gives the loss per token (B, T), per response (B,), or
this slice's share of a loss with a denominator of its own (a scalar); the first two are aggregated as the recipe says."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pipelines.rl.objectives.distillation import distillation, stored_distillation
from pipelines.rl.objectives.implicit_critic import implicit_critic
from pipelines.rl.objectives.negative_aware import negative_aware
from pipelines.rl.objectives.pairwise import contrastive, normalised_preference, odds_ratio, preference, reward_difference, trust_region_preference
from pipelines.rl.objectives.random_policy_value import random_policy_value
from pipelines.rl.objectives.self_distillation import self_distillation
from pipelines.rl.objectives.step_regression import step_regression
from pipelines.rl.objectives.unpaired import unpaired


@dataclass(frozen=True)
class Objective:
    """per_token: it gives a loss per token, which corrections of the engines' gap, token masks and token weights can multiply. whole_groups: its
    gradient couples the responses of a group, so a micro-batch holds whole groups."""

    function: Callable[..., Tensor]
    per_token: bool = False
    whole_groups: bool = False


OBJECTIVES: dict[str, Objective] = {
    "implicit_critic": Objective(implicit_critic, whole_groups=True),
    "negative_aware": Objective(negative_aware, per_token=True),
    "random_policy_value": Objective(random_policy_value, per_token=True),
    "preference": Objective(preference, whole_groups=True),
    "odds_ratio": Objective(odds_ratio, whole_groups=True),
    "normalised_preference": Objective(normalised_preference, whole_groups=True),
    "unpaired": Objective(unpaired),
    "trust_region_preference": Objective(trust_region_preference, whole_groups=True),
    "reward_difference": Objective(reward_difference, whole_groups=True),
    "contrastive": Objective(contrastive, whole_groups=True),
    "step_regression": Objective(step_regression),
    "self_distillation": Objective(self_distillation, per_token=True),
    "distillation": Objective(distillation, per_token=True),
    "stored_distillation": Objective(stored_distillation, per_token=True),
}
