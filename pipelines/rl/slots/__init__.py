"""The slots a recipe fills, one module each, and what may stand in them: slot -> name -> function.

A function's positional parameters are the tensors it reads (`batch.py`, and what objective.py makes on the way), its
keyword-only ones its settings. A parameter with a default of None is read where it is there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.rl.contrast import contrast
from pipelines.rl.objectives import OBJECTIVES
from pipelines.rl.slots import advantage, aggregation, auxiliary, clip, credit, mismatch, modify, ratio, regularisers, reward, routing, weighting

Family = dict[str, Callable[..., Any]]


def policy_gradient() -> None:
    """What the other slots compose to; see objective.py."""


@dataclass(frozen=True)
class Slot:
    """What may stand in it. several: it holds a list, and the empty list does nothing. early: it sees the batch before the update."""

    functions: Family
    several: bool = False
    early: bool = False


SLOTS: dict[str, Slot] = {
    "center": Slot(
        {
            "none": advantage.center_none,
            "const": advantage.center_const,
            "batch_mean": advantage.center_batch_mean,
            "group_mean": advantage.center_group_mean,
            "length_mean": advantage.center_length_mean,
            "leave_one_out": advantage.center_leave_one_out,
            "critic": advantage.center_critic,
            "pool_mean": advantage.center_pool_mean,
            "greedy": advantage.center_greedy,
            "role_mean": advantage.center_role_mean,
        },
        early=True,
    ),
    "scale": Slot(
        {
            "none": advantage.scale_none,
            "group_std": advantage.scale_group_std,
            "group_mean": advantage.scale_group_mean,
            "valid_share": advantage.scale_valid_share,
            "batch_std": advantage.scale_batch_std,
            "beta": advantage.scale_beta,
            "hardness": advantage.scale_hardness,
        },
        early=True,
    ),
    "credit": Slot(
        {
            "broadcast": credit.broadcast,
            "return_to_go": credit.return_to_go,
            "gae": credit.gae,
            "step_potential": credit.step_potential,
            "by_importance": credit.by_importance,
            "token_optimal": credit.token_optimal,
            "outcome_chance": credit.outcome_chance,
            "shared_prefix_mean": credit.shared_prefix_mean,
            "step_group": credit.step_group,
            "turn_return": credit.turn_return,
            "projection_residual": credit.projection_residual,
        },
        early=True,
    ),
    "anchor": Slot({"old": ratio.anchor_old, "roll": ratio.anchor_roll, "ref": ratio.anchor_ref, "allowed": ratio.anchor_allowed}),
    "ratio": Slot(
        {
            "token": ratio.token,
            "token_allowed": ratio.token_allowed,
            "sequence_geometric": ratio.sequence_geometric,
            "sequence_geometric_clipped": ratio.sequence_geometric_clipped,
            "sequence_product": ratio.sequence_product,
            "cumulative_product": ratio.cumulative_product,
            "cumulative_geometric": ratio.cumulative_geometric,
        },
    ),
    "clip": Slot(
        {
            "none": clip.surrogate,
            "ppo": clip.ppo,
            "ppo_centred": clip.ppo_centred,
            "ppo_log_adaptive": clip.ppo_log_adaptive,
            "ppo_low_probability": clip.ppo_low_probability,
            "shaped_guide": clip.shaped_guide,
            "soft_gate": clip.soft_gate,
            "window": clip.window,
            "score": clip.score,
            "score_ratio": clip.score_ratio,
            "weight_cap": clip.weight_cap,
            "masked_score": clip.masked_score,
            "taper": clip.taper,
            "soft_gamma": clip.soft_gamma,
        },
    ),
    "denominator": Slot({"original": aggregation.original, "kept": aggregation.kept}),
    "aggregation": Slot(
        {
            "token_mean": aggregation.token_mean,
            "sequence_mean_token_mean": aggregation.sequence_mean_token_mean,
            "sequence_mean_token_sum": aggregation.sequence_mean_token_sum,
            "sequence_mean_token_sum_norm": aggregation.sequence_mean_token_sum_norm,
            "prompt_mean": aggregation.prompt_mean,
            "constant_sum": aggregation.constant_sum,
        },
        early=True,
    ),
    "objective": Slot({"policy_gradient": policy_gradient, **{name: objective.function for name, objective in OBJECTIVES.items()}}),
    "routing": Slot(
        {
            "drop_zero_variance": routing.drop_zero_variance,
            "drop_truncated": routing.drop_truncated,
            "only_correct": routing.only_correct,
            "only_wrong": routing.only_wrong,
            "with_teacher": routing.with_teacher,
            "pairs": routing.pairs,
            "positive_advantage": routing.positive_advantage,
        },
        several=True,
        early=True,
    ),
    "reward": Slot(
        {
            "overlong": reward.overlong,
            "rescale": reward.rescale,
            "clamp": reward.clamp,
            "decoupled": reward.decoupled,
            "log_tamed": reward.log_tamed,
            "sequence_kl": reward.sequence_kl,
            "brier": reward.brier,
            "exploration": reward.exploration,
            "backward_correction": reward.backward_correction,
            "diversity": reward.diversity,
            "consistency": reward.consistency,
            "format_and_accuracy": reward.format_and_accuracy,
        },
        several=True,
        early=True,
    ),
    "token_reward": Slot({"kl": reward.token_kl, "kl_sft": reward.token_kl_sft, "preference": reward.token_preference}, several=True, early=True),
    "modify": Slot(
        {
            "signed_outcome": modify.signed_outcome,
            "positive_part": modify.positive_part,
            "overconfident_errors": modify.overconfident_errors,
            "success_scaled_negatives": modify.success_scaled_negatives,
            "forward_correction": modify.forward_correction,
            "lagrangian": modify.lagrangian,
            "pair_roles": modify.pair_roles,
            "self_rewarded": modify.self_rewarded,
            "imitated": modify.imitated,
        },
        several=True,
        early=True,
    ),
    "token_modify": Slot(
        {
            "whiten": credit.whiten,
            "own_tokens": credit.own_tokens,
            "zero_outliers": credit.zero_outliers,
            "teacher_gap": credit.teacher_gap,
            "remaining_gap": credit.remaining_gap,
        },
        several=True,
        early=True,
    ),
    "mismatch": Slot(
        {
            "token_truncated": mismatch.token_truncated,
            "token_window": mismatch.token_window,
            "token_capped": mismatch.token_capped,
            "sequence_truncated": mismatch.sequence_truncated,
            "sequence_window": mismatch.sequence_window,
            "geometric_window": mismatch.geometric_window,
            "divergence_limit": mismatch.divergence_limit,
            "veto": mismatch.veto,
            "divide_by_mean": mismatch.divide_by_mean,
        },
        several=True,
    ),
    "token_mask": Slot(
        {
            "unmastered": weighting.unmastered,
            "probability_gap": weighting.probability_gap,
            "binary_kl": weighting.binary_kl,
            "binary_kl_both": weighting.binary_kl_both,
            "second_moment": weighting.second_moment,
            "without_teacher": weighting.without_teacher,
            "uncertain_guide": weighting.uncertain_guide,
            "praised_guide": weighting.praised_guide,
        },
        several=True,
    ),
    "token_weight": Slot({"discriminative": weighting.discriminative}, several=True, early=True),
    "regularisers": Slot(
        {
            "kl": regularisers.kl,
            "kl_old": regularisers.kl_old,
            "kl_roll": regularisers.kl_roll,
            "kl_convex": regularisers.kl_convex,
            "kl_forward": regularisers.kl_forward,
            "entropy_bonus": regularisers.entropy_bonus,
            "entropy_correct": regularisers.entropy_correct,
            "entropy_target": regularisers.entropy_target,
            "entropy_anchor": regularisers.entropy_anchor,
        },
        several=True,
    ),
    "auxiliary": Slot(
        {
            "value": auxiliary.value,
            "value_histogram": auxiliary.value_histogram,
            "outcome_ce": auxiliary.outcome_ce,
            "contrast": contrast,
            "self_reward": auxiliary.self_reward,
            "expert": auxiliary.expert,
            "distil": auxiliary.distil,
            "observation_ce": auxiliary.observation_ce,
            "guide_ce": auxiliary.guide_ce,
        },
        several=True,
    ),
}
