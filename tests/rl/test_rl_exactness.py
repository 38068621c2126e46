"""No gradient flows through advanced indexing, whose backward pass adds in the order in which threads come; and a stage run twice is the same."""


import pytest
import torch
from batches import leaves, ragged
from killing import Killed
from loops import TINY, TOKENIZER, trained

from pipelines.config.common import GenerationSettings
from pipelines.config.rl import ScheduleSettings
from pipelines.config.training import ArchitectureSettings
from pipelines.models.scoring import CHUNK, chosen, entropy, token_scores
from pipelines.models.tiny import tiny_model
from pipelines.rl import RECIPES, aggregates, objective, route, weigh
from pipelines.rl.gathering import add_up
from pipelines.rl.tensors import When


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
    if recipe.having(When.SUM):
        made = made.having(**add_up(recipe.having(When.SUM), [aggregates(recipe, made, live)], made.mask_BT))
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


DEFAULT = ArchitectureSettings(hidden_size=128, layers=4, heads=4, intermediate_size=384)
WIDE = ArchitectureSettings(hidden_size=64, layers=2, heads=2, intermediate_size=128)
EVERYTHING_TRAINS = {"reward": [{"name": "rescale", "low": -1.0, "high": 1.0}], "center": {"name": "none"}, "scale": {"name": "none"}}
"""A policy that has learnt nothing is always wrong: groups without a mean have a gradient all the same."""


CASES = [(DEFAULT, 400, 24, False), (DEFAULT, 400, 24, True), (WIDE, 49_152, 12, False)]


@pytest.mark.parametrize(
    ("architecture", "words", "tokens", "asynchronous", "threads"),
    [(*case, 2) for case in CASES] + [(*CASES[0], 4)] + [pytest.param(*case, 4, marks=pytest.mark.long) for case in CASES[1:]],
)
def test_a_loop_killed_and_resumed_does_what_one_left_alone_does(tmp_path, architecture, words, tokens, asynchronous, threads):
    """On the default's shapes and on a real vocabulary, with the machine's own threads and with more: weights, journal, rollouts."""
    changes = {
        "steps": 2, "prompts_per_step": 8, "group_size": 8, "minibatches": 2, "micro_batch": 64, "checkpoint_every": 1, "schedule": ScheduleSettings(kind="one_ahead" if asynchronous else "synchronous"),
        "generation": GenerationSettings(max_new_tokens=tokens), "overrides": EVERYTHING_TRAINS,
    }  # fmt: skip
    assert (32 * tokens > CHUNK // words) == (architecture == WIDE)  # a micro-batch needs several chunks of the head, or one

    def once(name: str, stop_at: int | None = None):
        model = tiny_model(architecture, TOKENIZER, 1)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model.resize_token_embeddings(words, mean_resizing=False)
        _, journal = trained(tmp_path / name, model, stop_at, **changes)
        files = {path.name: path.read_bytes() for path in sorted((tmp_path / name / "rollouts").iterdir())}
        return [p.detach().numpy().tobytes() for p in model.parameters()], journal, files

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = once("alone")
        with pytest.raises(Killed):
            once("killed", stop_at=1)
        assert once("killed") == alone
    finally:
        torch.set_num_threads(before)
    assert len({row["grad_norm"] for row in alone[1]}) == 2 and all(row["grad_norm"] > 0 for row in alone[1])
