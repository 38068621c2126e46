"""No gradient flows through advanced indexing, whose backward pass adds in the order in which threads come; and a stage run twice is the same."""

from dataclasses import replace

import pytest
import torch
from batches import leaves, ragged
from loops import TINY, TOKENIZER

from pipelines.models.scoring import chosen, entropy, token_scores
from pipelines.models.tiny import tiny_model
from pipelines.rl import RECIPES, aggregates, objective, route, weigh
from pipelines.rl.ranks import add_up


def nodes(loss: torch.Tensor) -> set[str]:
    """Names of the operations that a loss's gradient goes through."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return {node.name() for node in seen}


def unordered(loss: torch.Tensor) -> set[str]:
    return {name for name in nodes(loss) if name.startswith(("IndexBackward", "IndexPutBackward", "TakeBackward", "PutBackward"))}


def test_the_walk_finds_what_it_looks_for():
    x = torch.ones(3, requires_grad=True)
    assert unordered(x[torch.tensor([0, 0, 1])].sum()) == {"IndexBackward0"}
    assert unordered(x.index_select(0, torch.tensor([0, 0, 1])).sum()) == set()


@pytest.mark.parametrize("name", RECIPES)
def test_no_objective_indexes_under_a_gradient(name):
    recipe = RECIPES[name]
    made, live = ragged(3)
    made, here = weigh(recipe, route(recipe, made)), leaves(live)
    if recipe.aggregates:
        made = replace(made, **add_up(recipe.aggregates, [aggregates(recipe, made, live)], made.mask_BT))
    loss, _ = objective(recipe, made, here.pop("logp_BT"), here)
    assert loss.requires_grad and unordered(loss) == set()


@pytest.mark.parametrize("shared", [True, False])
def test_no_score_indexes_under_a_gradient(shared):
    """Packed with shared prompts, and as another architecture runs, on padded rows."""
    model = tiny_model(TINY, TOKENIZER, 1)
    if not shared:
        model.config.model_type = "other"
    ids = torch.randint(5, 200, (8, 12))
    ids[:, :6] = ids[0, :6]
    score = torch.arange(12)[None].expand(8, -1) >= 6
    found = token_scores(model, ids, score, {"logp": chosen, "entropy": entropy}, on_hidden={"h": torch.Tensor.float}, after=("last", 3))
    assert unordered(sum(value.sum() for value in found.values())) == set()
