"""Distillation from other models: a divergence per token over K tokens and the rest as one more bucket.

On-policy (GKD, arXiv 2306.13649) the K tokens are the student's likeliest, in a response of its own, and nothing is weighed by a ratio. Stored
(Dataset Reinforcement, arXiv 2303.08983, moved from images to text) they are those that the teacher kept of its own response: its probabilities are
taken as they are, never renormalised. Nearest relative: self_distillation.py, whose teacher is the policy itself and whose tokens are weighed by
pi/pi_old.
"""

from __future__ import annotations

from torch import Tensor

from pipelines.rl.objectives.self_distillation import divergence_of

NONE = -1e4
"""Log-probability that stands where a token has fewer than K entries."""


def distillation(student_topk_BTK: Tensor, taught_topk_BTK: Tensor, *, divergence: float = 1.0) -> Tensor:
    """Loss per token (B, T), nats. divergence: 0 KL(teacher || student), 1 KL(student || teacher), between them the Jensen-Shannon mixture."""
    return divergence_of(student_topk_BTK, taught_topk_BTK, divergence)


def stored_distillation(student_stored_BTK: Tensor, stored_logp_BTK: Tensor, *, divergence: float = 0.0, temperature: float = 1.0) -> Tensor:
    """Loss per token (B, T), nats, over the tokens that the teacher kept. A teacher that kept the token itself with probability 1 gives the
    cross-entropy, to 2e-6: no probability of the rest is taken below 1e-7. temperature: of both; the loss is times its square, so that gradients stay
    as large (arXiv 1503.02531)."""
    there = stored_logp_BTK > NONE
    return temperature**2 * divergence_of(student_stored_BTK.where(there, NONE), stored_logp_BTK.where(there, NONE), divergence)
