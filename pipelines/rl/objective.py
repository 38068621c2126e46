"""How a recipe's slots compose. Losses are minimised.

    advantages    R' = reward(R);  A = modify(scale(center(R')));  A_t = token_modify(credit(A))
    weigh         what the loss needs of the whole optimiser step: coefficients of the aggregation, statistics
    objective     x = ratio(logp, anchor);  l_t = clip(x, A_t) * mismatch * mask * weight
                  L = sum_b c_b sum_t l_t + regularisers + auxiliary      (or an objective of its own in place of l)

`advantages` and `weigh` are taken once of all rows, of all ranks where there are several (ranks.py); after that any slicing
into micro-batches gives losses that add up to the loss of the whole.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.rl.batch import Batch
from pipelines.rl.gathering import over_ranks, tensors_over_ranks
from pipelines.rl.recipe import Bound, Recipe, inputs_of
from pipelines.rl.tensors import TENSORS, When


class Tensors(dict[str, Tensor]):
    """Named tensors that functions are called with."""

    def __init__(self, recipe: Recipe, batch: Batch, live: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(batch.tensors())
        self._recipe = recipe.name
        self.setdefault("correct_B", batch.reward_B > 0)
        if unknown := sorted(set(live or ()) - set(TENSORS)):
            raise ValueError(f"no method reads {', '.join(unknown)}")
        self.update(live or {})
        if live:
            self.update({name: self.call(recipe.derived[name]) for name in recipe.having(When.ROWS) if self._has(recipe.derived[name])})

    def _has(self, function: Bound) -> bool:
        """Whether all is there that the function must be given."""
        return all(name in self for name, needed in inputs_of(function) if needed)

    def __missing__(self, name: str) -> Tensor:
        raise ValueError(f"recipe '{self._recipe}' needs the tensor {name}, which the batch lacks")

    def call(self, function: Bound) -> Any:
        """`function` of the tensors that its positional parameters name."""
        return function(*(self[name] if needed else self.get(name) for name, needed in inputs_of(function)))


def route(recipe: Recipe, batch: Batch) -> Batch:
    """The batch with the rows that the recipe does not train on masked out entirely."""
    return masked(batch, routes(recipe, batch))


def routes(recipe: Recipe, batch: Batch) -> dict[str, Tensor]:
    """Function of the slot `routing` -> the rows (B,) that it lets train."""
    functions = {value["name"]: keep for value, keep in zip(recipe.slots["routing"], recipe.lists["routing"], strict=True)}
    if not functions:
        return {}
    read = {"mask_BT", "reward_B", "group_B", "logp_old_BT", "correct_B", *(name for keep in functions.values() for name, _ in inputs_of(keep))}
    slim = batch.having(**dict.fromkeys(batch.tensors().keys() - read))

    def of_all(whole: Batch) -> dict[str, Tensor]:
        tensors = Tensors(recipe, whole)
        return {name: tensors.call(keep) for name, keep in functions.items()}

    return tensors_over_ranks(of_all, slim)


def masked(batch: Batch, keep: Mapping[str, Tensor]) -> Batch:
    """The batch in which only rows train that all of these keep."""
    mask_BT = batch.mask_BT
    for keep_B in keep.values():
        mask_BT = mask_BT * keep_B[:, None].to(mask_BT)
    return batch.having(mask_BT=mask_BT)


def advantages(recipe: Recipe, batch: Batch) -> Tensor:
    """advantage_BT, detached; 0 where the mask is 0. Needs whole groups, and every row that a batch statistic covers."""
    return with_advantages(recipe, batch.having(advantage_BT=None))["advantage_BT"]


def _advantages(recipe: Recipe, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """The advantage, and what it was before `token_modify`."""
    mask_BT = tensors["mask_BT"]
    tensors["shaped_B"] = tensors["reward_B"]
    for shape in recipe.lists["reward"]:
        tensors["shaped_B"] = tensors.call(shape)
    terms = [tensors.call(term) for term in recipe.lists["token_reward"]]
    tensors["token_reward_BT"] = torch.stack(terms).sum(0) if terms else torch.zeros_like(mask_BT)
    tensors["centred_B"] = tensors.call(recipe.single["center"])
    tensors["advantage_B"] = tensors.call(recipe.single["scale"])
    for change in recipe.lists["modify"]:
        tensors["advantage_B"] = tensors.call(change)
    credited = tensors["credited_BT"] = tensors["advantage_BT"] = tensors.call(recipe.single["credit"])
    for change in recipe.lists["token_modify"]:
        tensors["advantage_BT"] = tensors.call(change)
    return tensors["advantage_BT"], credited


def with_advantages(recipe: Recipe, batch: Batch) -> Batch:
    """The batch with its advantages (unless it has them), and what else comes of them: returns for a value head, an advantage
    per reward part."""
    return over_ranks(functools.partial(_with_advantages, recipe), batch)


def _with_advantages(recipe: Recipe, batch: Batch) -> Batch:
    tensors = Tensors(recipe, batch)
    advantage_BT, credited_BT = _advantages(recipe, tensors)
    more: dict[str, Tensor] = {}
    if "return_BT" in recipe.needs:
        more["return_BT"] = (credited_BT + tensors["value_old_BT"]).detach()
    if recipe.by_component:
        parts = [_of_response(recipe, batch.having(reward_B=reward_B)) for reward_B in tensors["components_BK"].unbind(-1)]
        more["component_advantage_BK"] = torch.stack(parts, -1)
    given = {} if "advantage_BT" in batch else {"advantage_BT": advantage_BT.detach()}
    return batch.having(**given, **more)


def _of_response(recipe: Recipe, batch: Batch) -> Tensor:
    """The advantage of each response (B,), before credit."""
    tensors = Tensors(recipe, batch)
    _advantages(recipe, tensors)
    return tensors["advantage_B"].detach()


def weigh(recipe: Recipe, batch: Batch) -> Batch:
    """The batch of one optimiser step with all that its slices need to know of it."""
    if any(name in recipe.needs and name not in batch for name in ("advantage_BT", "return_BT", "component_advantage_BK")):
        batch = with_advantages(recipe, batch)
    return over_ranks(functools.partial(_weigh, recipe), batch)


def _weigh(recipe: Recipe, batch: Batch) -> Batch:
    tensors = Tensors(recipe, batch)
    filled: dict[str, Tensor] = {}
    if recipe.shrinks:
        old = Tensors(recipe, batch, _as_live(batch))
        old["kept_BT"] = _product(old, recipe.lists["token_mask"]) * (_mismatch(old, recipe.corrections) > 0)
        tensors["mask_BT"] = filled["mask_BT"] = old.call(recipe.single["denominator"])
    for name in recipe.having(When.WHOLE):
        if name in recipe.derived:
            tensors[name] = filled[name] = tensors.call(recipe.derived[name])
    if "mismatch_mean" in recipe.needs:
        weight = _mismatch(Tensors(recipe, batch), recipe.corrections)
        filled["mismatch_mean"] = (weight * tensors["mask_BT"]).sum() / tensors["mask_BT"].sum().clamp(min=1)
    if recipe.lists["token_weight"]:
        filled["weight_BT"] = _product(tensors, recipe.lists["token_weight"])
    filled["coefficient_B"] = tensors.call(recipe.single["aggregation"])
    return batch.having(**filled)


def _as_live(batch: Batch) -> dict[str, Tensor]:
    """What the policy said before the update, under the names of what it says in it."""
    return {declared.live: batch[name] for name, declared in TENSORS.items() if declared.live and name in batch}


def objective(recipe: Recipe, batch: Batch, logp_BT: Tensor, live: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict[str, float]]:
    """The loss of `batch` and what to log, as sums over its tokens.

    A slice of a batch that `weigh` has seen gives its share of that batch's loss; any other batch counts as a whole
    optimiser step. Reads batch.advantage_BT, which `advantages` fills. Gradient flows through `logp_BT` (B, T) and through
    `live`, what else of the policy's forward pass the recipe needs (`batch.LIVE`).

    Raises:
        ValueError: a tensor that the recipe needs is missing.
    """
    if "coefficient_B" not in batch:
        if "advantage_BT" not in batch and recipe.reads_advantage:
            raise ValueError("batch.advantage_BT is empty: call advantages(recipe, batch) on the whole batch first")
        batch = weigh(recipe, batch)
    tensors = Tensors(recipe, batch, {"logp_BT": logp_BT, **(live or {})})
    figures = {"tokens": float(batch.mask_BT.sum())}
    if recipe.policy_gradient:
        term = _policy_gradient(recipe, tensors)
        figures |= _clipping(recipe, tensors)
    else:
        term = tensors.call(recipe.single["objective"])
    if term.ndim == 2:
        term = term * _mismatch(tensors, recipe.lists["mismatch"]) * _product(tensors, recipe.lists["token_mask"])
        term = term * tensors["weight_BT"] if recipe.lists["token_weight"] else term
    loss = _aggregate(term, tensors)
    for function in (*recipe.lists["regularisers"], *recipe.lists["auxiliary"]):
        loss = loss + _aggregate(tensors.call(function), tensors)
    return loss, figures


def _policy_gradient(recipe: Recipe, tensors: Tensors) -> Tensor:
    """Loss per token (B, T), before weights and masks."""
    tensors["anchor_BT"] = tensors.call(recipe.single["anchor"])
    tensors["x_BT"] = tensors.call(recipe.single["ratio"])
    if not recipe.by_component:
        return tensors.call(recipe.single["clip"])
    # every clip is homogeneous in A, so a part's weight may go inside
    part_BK = tensors["component_advantage_BK"] * tensors["component_weight_K"] / tensors["component_weight_K"].numel()
    loss_BT, whole_BT = torch.zeros_like(tensors["x_BT"]), tensors["advantage_BT"]
    for part_B in part_BK.unbind(-1):
        tensors["advantage_BT"] = part_B[:, None] * tensors["mask_BT"]
        loss_BT = loss_BT + tensors.call(recipe.single["clip"])
    tensors["advantage_BT"] = whole_BT
    return loss_BT


def _mismatch(tensors: Tensors, functions: Sequence[Bound]) -> Tensor:
    """Weights for the gap between the engines, 1 where no function corrects it."""
    if functions:
        tensors["gap_BT"] = (tensors["logp_old_BT"] - tensors["logp_roll_BT"]) * tensors["mask_BT"]
    return _product(tensors, functions)


def _product(tensors: Tensors, functions: Sequence[Bound]) -> Tensor:
    """The product of weights, detached."""
    product = torch.ones((), device=tensors["mask_BT"].device)
    for function in functions:
        product = product * tensors.call(function)
    return product.detach()


def _aggregate(term: Tensor, tensors: Tensors) -> Tensor:
    if term.ndim == 0:
        return term
    coefficient_B, mask_BT = tensors["coefficient_B"], tensors["mask_BT"]
    if term.ndim == 1:
        return (coefficient_B * (mask_BT.sum(-1) > 0) * term).sum()
    return (coefficient_B[:, None] * mask_BT * term).sum()


def _clipping(recipe: Recipe, tensors: Tensors) -> dict[str, float]:
    """Sum of the ratios, and how many tokens lie beyond the clip in the direction of their advantage."""
    mask = tensors["mask_BT"].bool()
    ratio, advantage = tensors["x_BT"].detach().exp()[mask], tensors["advantage_BT"][mask]
    if recipe.relative_clip is None:
        return {"ratio": float(ratio.sum()), "clipped": 0.0}
    low, high = recipe.relative_clip
    beyond = ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))
    return {"ratio": float(ratio.sum()), "clipped": float(beyond.sum())}


def aggregates(recipe: Recipe, batch: Batch, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This slice's share of the batch sums that the recipe's regularisers are no linear function of.

    Added up over the slices and set on the batch before `objective`, they make its slices add up too.
    """
    tensors = Tensors(recipe, batch, live)
    return {name: tensors.call(recipe.derived[name]).detach() for name in recipe.having(When.SUM)}


def of_aggregates(recipe: Recipe, batch: Batch) -> dict[str, float]:
    """What the recipe reads of those sums, once they stand in the batch."""
    tensors = Tensors(recipe, batch)
    return {name: float(tensors.call(recipe.derived[name])) for name in recipe.having(When.OF_SUMS)}
