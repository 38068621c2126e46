"""Every tensor that a method may read, one declaration each: what it is, when it is had, how, and of which policy.

A function of a slot names the tensors it reads by its positional parameters; the loop computes those and no others. To add one: declare
it here, with a function in inputs/ (of rollouts, of a forward pass), in statistics.py (of the whole batch) or in a slot's module.

    GIVEN      by the rollouts, or by the loop
    READ       off rollouts and problems, or by passes of its own: compute(step) -> tensor
    BEFORE     by one pass of the policy before the update; `live` names what the update's own pass gives in its place where that is the same
    LIVE       by the update's pass of the policy, with gradient
    ROWS       of live tensors, row by row, with gradient: compute(tensors)
    SUM        of live tensors over the whole batch of an optimiser step: compute(tensors) is a slice's share, and the shares are added up, or stand
               one after another where it is `listed`
    OF_SUMS    of those sums: compute(tensors), a scalar
    WHOLE      of the whole batch of an optimiser step, so that its slices add up to it: compute(tensors)
    COMPOSED   by objective.py, while it composes the slots

A pass reads one of: VOCABULARY (compute is a score of a chunk of positions, models/scoring.py), HIDDEN (compute(actor) gives a function of
what the head sees), END (compute(tokenizer) names a token whose log-probability right after the response is wanted).
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.models.scoring import chosen, entropy
from pipelines.rl import contrast, statistics
from pipelines.rl.inputs import facts, probes, scores, taught, teacher
from pipelines.rl.objectives import pairwise
from pipelines.rl.objectives.distillation import NONE
from pipelines.rl.objectives.unpaired import reference_point
from pipelines.rl.slots import regularisers, weighting


class When(enum.Enum):
    """See above."""

    GIVEN = enum.auto()
    READ = enum.auto()
    BEFORE = enum.auto()
    LIVE = enum.auto()
    ROWS = enum.auto()
    SUM = enum.auto()
    OF_SUMS = enum.auto()
    WHOLE = enum.auto()
    COMPOSED = enum.auto()


class Reads(enum.Enum):
    """What a pass of the policy looks at."""

    VOCABULARY = enum.auto()
    HIDDEN = enum.auto()
    END = enum.auto()


class Asks(enum.Enum):
    """What stored responses may lack; the value says it to users."""

    BEHAVIOUR = "their log-probabilities under the policy that answered"
    VERDICT = "a verdict on each"
    PROBLEM = "the problems with their answers, as rows beside them"
    SAMPLING = "a policy that answers as it trains"


@dataclass(frozen=True)
class Declared:
    """One tensor.

    about: what it holds. compute: see the head of this file; its keyword-only arguments are what a recipe may set under `inputs`.
    role: the policy beside the trained one that it is of (roles.py). live: see BEFORE. with_: tensors that it cannot be had without.
    held: it keeps the value of the first step; `held_of` is the tensor whose value that is. free: no forward pass of its own. asks: what of stored
    responses must be known for it.
    solution: it is read off the problem's worked solution. head: the value head says it. fill: what stands past a row's end where ranks' rows are put
    together. numbered: its ids are of one rank alone. listed: see SUM.
    """

    about: str
    when: When = When.GIVEN
    compute: Callable[..., Any] | None = None
    reads: Reads = Reads.VOCABULARY
    role: str | None = None
    live: str | None = None
    with_: tuple[str, ...] = ()
    held: bool = False
    held_of: str | None = None
    free: bool = False
    asks: Asks | None = None
    solution: bool = False
    head: bool = False
    fill: float = 0.0
    numbered: bool = False
    listed: bool = False


def _given(about: str, **more: Any) -> Declared:
    return Declared(about, **more)


def _read(compute: Callable[..., Any], about: str, **more: Any) -> Declared:
    return Declared(about, When.READ, compute, **more)


def _before(compute: Callable[..., Any], about: str, **more: Any) -> Declared:
    return Declared(about, When.BEFORE, compute, **more)


def _live(compute: Callable[..., Any], about: str, **more: Any) -> Declared:
    return Declared(about, When.LIVE, compute, **more)


def _whole(compute: Callable[..., Any], about: str) -> Declared:
    return Declared(about, When.WHOLE, compute)


def _composed(about: str) -> Declared:
    return Declared(about, When.COMPOSED)


NAN = float("nan")
TENSORS: dict[str, Declared] = {
    # of the rollouts and the loop
    "mask_BT": _given("1 on trainable response tokens (end-of-turn included), else 0"),
    "reward_B": _given("the verifier's score, in [0, 1]"),
    "group_B": _given("prompt id of each row, int"),
    "logp_roll_BT": _given("behaviour policy: the generation engine when it sampled the token", asks=Asks.BEHAVIOUR),
    "truncated_B": _given("the response reached the length limit, bool"),
    "step": _given("number of this step, from 1: a scalar"),
    "response_limit": _given("longest response that generation allows, tokens: a scalar"),
    "kl_scale": _given("factor on the coefficients of KL terms to the reference, which `kl_control` moves: a scalar", held=True),
    # read off rollouts and problems
    "correct_B": _read(facts.correct, "the verdict is `correct`, bool; without it, reward_B > 0", free=True, asks=Asks.VERDICT),
    "outcome_B": _read(facts.outcome_class, "class of what came of the response, 0 the worst and 3 right, int", free=True, asks=Asks.VERDICT),
    "format_B": _read(facts.form, "the response had the form asked for, bool", free=True, asks=Asks.VERDICT),
    "consistency_B": _read(facts.consistency, "working and answer agree, in [0, 1]", free=True, asks=Asks.VERDICT),
    "confidence_B": _read(facts.confidence, "confidence that the response states, in [0, 1]; nan where it states none", free=True),
    "candidates_B": _read(facts.candidates, "number of answers the response offers", free=True, asks=Asks.VERDICT),
    "rank_B": _read(facts.rank, "place of the first right one among them, from 1; 0 where none is", free=True, asks=Asks.VERDICT),
    "level_B": _read(facts.level, "preference level, 1 the best", free=True, asks=Asks.VERDICT),
    "baseline_B": _read(facts.baseline, "expected reward of the prompt under the reference policy", free=True),
    "pool_mean_B": _read(facts.pool_mean, "mean reward of all that the group was answered, also of what does not train", free=True),
    "greedy_B": _read(facts.greedy, "reward of the greedy answer to the problem", free=True, asks=Asks.SAMPLING),
    "role_baseline_B": _read(facts.role_baseline, "running mean of the rewards of the row's role before it", free=True, asks=Asks.SAMPLING),
    "value_edges_K": _read(facts.value_edges, "edges of the value head's bins, one more than there are bins", free=True),
    "cost_B": _read(facts.cost, "cost of the response, which the reward is not to buy", free=True, asks=Asks.SAMPLING),
    "multiplier": _read(facts.multiplier, "what a cost weighs against the reward: a scalar, which the loop moves", free=True, held=True),
    "components_BK": _read(facts.components, "reward by part (format, correctness, ...)", free=True, asks=Asks.VERDICT),
    "component_weight_K": _read(facts.component_weight, "weight of each part, mean 1", free=True, asks=Asks.SAMPLING),
    "share_BT": _read(facts.shared_prefix, "equal ids on tokens that siblings share as a prefix, int", free=True, numbered=True),
    "observed_BT": _read(facts.observed, "1 on tokens of what a tool answered, else 0", free=True),
    "guided_BT": _read(facts.guided, "1 on tokens that a guide wrote, else 0", free=True, asks=Asks.SAMPLING),
    "common_BT": _read(
        facts.common, "1 on tokens that the worked solution has too, in the same order, else 0", free=True, asks=Asks.PROBLEM, solution=True
    ),
    "allowed_BTK": _read(
        facts.allowed, "ids that the token was drawn from, one bit each, K bytes; 0 for all", role="lagged", free=True, asks=Asks.SAMPLING
    ),
    "turn_BT": _read(facts.turns, "number of the policy's turn, from 0, int; -1 where it reads", free=True),
    "turn_return_BT": _read(facts.turn_return, "what the policy's turn and those after it are worth", free=True, asks=Asks.SAMPLING),
    "state_BT": _read(facts.states, "equal ids on turns of siblings that have read the same, int", free=True, numbered=True),
    # of policies that do not train
    "logp_ref_BT": _read(scores.of_frozen("ref"), "the frozen reference policy", role="ref"),
    "logp_sft_BT": _read(scores.of_frozen("sft"), "the SFT policy", role="sft"),
    "logp_dpo_BT": _read(scores.of_frozen("dpo"), "a policy trained on preferences, whose log-ratio to the SFT policy is a reward", role="dpo"),
    "logp_prev_BT": _read(scores.of_frozen("prev"), "the policy one step ago", role="prev"),
    "logp_tempered_BT": _read(scores.tempered, "the reference, flattened for responses of low reward", role="ref"),
    "logp_expert_BT": _read(
        scores.expert, "log-probability of the prompt's expert solution, aligned by position; 0 past its end", asks=Asks.PROBLEM, solution=True
    ),
    "mismatched_B": _read(scores.mismatched, "log-ratio to the reference of another prompt's response under the row's own prompt, nats", role="ref"),
    # of the policy's own half-finished responses
    "step_BT": _read(probes.steps, "step of reasoning that the token belongs to, from 0, int", free=True),
    "potential_BK": _read(probes.potentials, "potential after each of K steps, nan past the last", fill=NAN, asks=Asks.SAMPLING),
    "step_value_BK": _read(probes.step_values, "probability of a correct end before each of K steps, nan past the last", fill=NAN, asks=Asks.PROBLEM),
    "diversity_B": _read(probes.diversity, "how unlike its correct siblings a response is, in [0, 1]", asks=Asks.VERDICT),
    # of a teacher that has seen a solution
    "reprompt_B": _read(teacher.has_teacher, "a teacher that has seen a solution could score the row, bool", free=True, asks=Asks.PROBLEM),
    "teacher_topk_BTK": _read(teacher.teacher_topk, "the teacher's log-probability of `topk_BTK`", role="teacher", with_=("topk_BTK",)),
    # of other models that teach, or of what they said
    "logp_taught_BT": _read(taught.logp, "the teacher of the row's domain, nats", role="teachers", with_=("logp_old_BT",)),
    "taught_topk_BTK": _read(taught.topk, "that teacher's log-probability of `topk_BTK`", role="teachers", with_=("topk_BTK",)),
    "stored_topk_BTK": _read(taught.stored_ids, "the tokens that a teacher kept, int", role="stored", free=True),
    "stored_logp_BTK": _read(taught.stored_logp, "their log-probabilities, -1e4 where there are fewer than K", role="stored", free=True, fill=NONE),
    # of the policy before the update
    "logp_old_BT": _before(chosen, "proximal policy: the training engine before the update", live="logp_BT"),
    "logp_allowed_old_BT": _before(scores.of_allowed, "`logp_allowed_BT` before the update", live="logp_allowed_BT", with_=("allowed_BTK",)),
    "entropy_old_BT": _before(entropy, "entropy before the update", live="entropy_BT"),
    "vocab_mean_old_BT": _before(scores.vocabulary_mean, "`vocab_mean_BT` before the update", live="vocab_mean_BT"),
    "logp_proxy_BT": _before(scores.proxy, "the policy before the update without its least likely tokens; very negative where the token is one"),
    "topk_BTK": _before(scores.likeliest, "the K likeliest tokens before the update, int"),
    "squares_old_BT": _before(scores.squares, "sum over the vocabulary of squared probabilities, before the update"),
    "value_old_BT": _before(scores.value_before, "value estimates before the update", reads=Reads.HIDDEN, head=True),
    "outcome_logits_old_BTK": _before(
        scores.value_logits, "`outcome_logits_BTK` before the update", reads=Reads.HIDDEN, head=True, with_=("outcome_logits_BTK",)
    ),
    "hidden_old_BTH": _before(scores.hidden, "what the language-model head sees where it predicts the token, before the update", reads=Reads.HIDDEN),
    "special_old_B": _before(scores.reserved, "`special_B` before the update", reads=Reads.END, live="special_B"),
    "special_anchor": _read(
        scores.special_anchor, "expected log-probability of the reserved token under the reference: a scalar", with_=("special_old_B",), held=True
    ),
    # of the policy in the update
    "logp_BT": _live(chosen, "log-probability of each token under the policy that is trained, nats"),
    "logp_allowed_BT": _live(scores.of_allowed, "log-probability of each token among those that it was drawn from, nats", with_=("allowed_BTK",)),
    "entropy_BT": _live(entropy, "entropy of the policy at each token, nats"),
    "nucleus_entropy_BT": _live(scores.nucleus_entropy, "entropy of the policy restricted to its top-p tokens, renormalised"),
    "vocab_mean_BT": _live(scores.vocabulary_mean, "mean over the vocabulary of the policy's log-probabilities"),
    "student_topk_BTK": _live(scores.of_topk, "policy's log-probability of the tokens `topk_BTK`", with_=("topk_BTK",)),
    "student_stored_BTK": _live(scores.of_stored, "policy's log-probability of the tokens `stored_topk_BTK`", with_=("stored_topk_BTK",)),
    "value_BT": _live(scores.value, "the value head's estimate before each token", reads=Reads.HIDDEN, head=True),
    "value_logits_BTK": _live(scores.value_logits, "the value head's logits of K bins before each token", reads=Reads.HIDDEN, head=True),
    "outcome_logits_BTK": _live(scores.value_logits, "the critic's logits of the classes `outcome_B` at each token", reads=Reads.HIDDEN, head=True),
    "projected_BTK": _live(scores.projected, "what the head sees before each token, in fewer dimensions", reads=Reads.HIDDEN, head=True),
    "special_B": _live(scores.reserved, "log-probability of a reserved token right after the response", reads=Reads.END),
    "peak_entropy_B": Declared("mean nucleus entropy of the response's peak tokens, nan without any", When.ROWS, regularisers.peak_entropy),
    "embedding_BK": Declared("what the response says as a vector of length 1, 0 where it says nothing", When.ROWS, contrast.embedding),
    # of a whole batch under the current policy
    "entropy_sum": Declared("aggregated entropy", When.SUM, regularisers.aggregate_entropy),
    "peak_sum": Declared("sum of `peak_entropy_B`", When.SUM, regularisers.sum_of_peaks),
    "peak_count": Declared("responses that have peak tokens", When.SUM, regularisers.count_of_peaks),
    "embeddings_N": Declared("`embedding_BK`, group, and whether it is a solution, of every row", When.SUM, contrast.embeddings, listed=True),
    "harmful_N": Declared("squared log-ratios of tokens that moved with their advantage", When.SUM, weighting.harmful_squares, listed=True),
    "peak_entropy": Declared("mean of `peak_entropy_B`", When.OF_SUMS, regularisers.mean_peak),
    "entropy_anchor": Declared("`peak_entropy` of the first step: a scalar", held=True, held_of="peak_entropy"),
    # of a whole batch
    "rate_B": _whole(statistics.success_rate, "share of the row's group that is right"),
    "balance_B": _whole(statistics.class_balance, "weight that makes right and wrong responses count alike"),
    "diversity_weight_B": _whole(statistics.diversity_weights, "softmax of diversity over the right responses of a group"),
    "low_BT": _whole(statistics.least_likely, "1 on the least likely tokens of negative advantage"),
    "pairs": _whole(pairwise.count_pairs, "pairs of a group whose rewards differ"),
    "level_pairs": _whole(pairwise.count_level_pairs, "pairs of a group whose levels differ"),
    "kl_point": _whole(reference_point, "KL to the reference that KTO compares with, nats, at least 0"),
    "observations": _whole(statistics.observation_count, "tokens of tools in the rows that train"),
    "guided_tokens": _whole(statistics.guided_count, "tokens of guides in the rows that train"),
    "responses": _whole(statistics.response_count, "rows that train"),
    "steps": _whole(statistics.step_count, "steps of reasoning in the rows that train"),
    "prompts": _whole(statistics.prompt_count, "prompts with a row that trains"),
    "distil_weight_BT": _whole(statistics.distillation_weights, "weight of each token that is distilled, mean 1"),
    # made while the slots are composed
    "shaped_B": _composed("the reward after the slot `reward`"),
    "token_reward_BT": _composed("the sum of the slot `token_reward`"),
    "centred_B": _composed("what `center` gives"),
    "advantage_B": _composed("the advantage of each response, before credit"),
    "credited_BT": _composed("what `credit` gives"),
    "advantage_BT": _composed("the advantage of each token"),
    "return_BT": _composed("target of the value head"),
    "component_advantage_BK": _composed("an advantage for each part of the reward"),
    "anchor_BT": _composed("log-probabilities that the ratio is taken to"),
    "x_BT": _composed("log importance ratio"),
    "gap_BT": _composed("log-probability of the training engine before the update minus that of the generation engine"),
    "kept_BT": _composed("tokens that mismatch and token masks let train"),
    "mismatch_mean": _composed("mean weight of the mismatch functions"),
    "weight_BT": _composed("the product of the slot `token_weight`"),
    "coefficient_B": _composed("what a token of the row counts in the loss"),
}


def of(*when: When) -> dict[str, Declared]:
    """The tensors that are had so."""
    return {name: declared for name, declared in TENSORS.items() if declared.when in when}


def _has_settings(function: Callable[..., Any]) -> bool:
    return any(p.kind is inspect.Parameter.KEYWORD_ONLY for p in inspect.signature(function).parameters.values())


SETTABLE: dict[str, Callable[..., Any]] = {
    name: declared.compute for name, declared in TENSORS.items() if declared.compute and not declared.live and _has_settings(declared.compute)
}
"""Tensor -> the function whose settings a recipe may give under `inputs`. Those of a live tensor hold before the update too."""
