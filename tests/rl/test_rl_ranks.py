"""Data-parallel ranks in real processes: their losses and gradients add up to those of one process with all rows, and the loop does what one does."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from batches import loss_and_gradients, ragged, widened
from killing import Killed, die_after
from loops import GROUPS, ONE_AHEAD, PROBLEMS, TOKENIZER, beside, policy_of, settings

from pipelines.config.common import GenerationSettings
from pipelines.config.rl import ResetSettings, ScheduleSettings, ValidationSettings
from pipelines.errors import UserError
from pipelines.generation import torch_engine
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.optimisation import make_optimiser
from pipelines.models.sharding import gathered, optimiser_state, shard, weights, weights_on_first
from pipelines.progress import Journal
from pipelines.rl import RECIPES, recipe, route
from pipelines.rl.gathering import gather
from pipelines.rl.train import train
from pipelines.store import read_trajectories

ROWS = {0: [0, 1, 2, 3, 8, 9, 10, 11], 1: [4, 5, 6, 7]}
"""The fixture's rows of each rank: the first and the last group, and the one between, whose padding is wider there."""
SEEDS = range(40)


def rows_of(rank: int, seed: int = 3):
    made, live = ragged(seed)
    index = torch.tensor(ROWS[rank])
    made, live = made.rows(index), {name: value[index] for name, value in live.items()}
    return widened(made, live, 2) if rank else (made, live)


def work(rank: int, folder: str) -> None:
    """All that a rank does for these tests: its processes take longer to start than to work."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    start = torch.load(f"{folder}/start.pt")
    gather_to_save(rank, start)
    stops(rank, Path(folder) / "stopped", start)
    cut(rank, Path(folder) / "in flight", start)
    found = add_up(rank) | {"loops": {name: loop(rank, Path(folder) / name, start, **changes) for name, changes in LOOPS.items()}}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(start, tmp_path_factory):
    """(folder, what the first rank found, what the second did)."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(start, folder / "start.pt")
    processes.spawn(work, (str(folder),), nprocs=2)
    return folder, *(torch.load(folder / f"{rank}.pt") for rank in (0, 1))


def add_up(rank: int) -> dict:
    made, live = rows_of(rank)
    whole, mine = gather(made)
    assert whole.group_B.tolist() == sorted(whole.group_B.tolist()) and len(torch.unique(whole.group_B)) == 3
    assert torch.equal(whole.reward_B, ragged(3)[0].reward_B) and torch.equal(whole.reward_B[mine], made.reward_B)
    slices = [torch.arange(len(made.reward_B))]
    found = {name: loss_and_gradients(row, made, live, slices) for name, row in RECIPES.items()}
    pairs = [route(RECIPES["w_grpo_pairs"], rows_of(rank, seed)[0]).mask_BT[:, 0] for seed in SEEDS]
    with pytest.raises(ValueError, match="rows of one group stand on several processes"):
        gather(ragged(3)[0])
    return {"losses": found, "pairs": pairs}


def in_order(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The rows of both ranks as one process has them."""
    width = min(first.shape[1:2] + second.shape[1:2], default=0)
    both = torch.cat([first, second]) if first.ndim == 1 else torch.cat([first[:, :width], second[:, :width]])
    return both[torch.tensor(ROWS[0] + ROWS[1]).argsort()]


def test_ranks_add_up_to_one_process(ranks):
    _, first, second = ranks
    made, live = ragged(3)
    assert list(first["losses"]) == list(RECIPES)
    for name in RECIPES:
        loss, gradients = loss_and_gradients(RECIPES[name], made, live)
        assert first["losses"][name][0] + second["losses"][name][0] == pytest.approx(loss, abs=1e-9), name
        for tensor, gradient in gradients.items():
            both = in_order(first["losses"][name][1][tensor], second["losses"][name][1][tensor])
            torch.testing.assert_close(both, gradient, atol=1e-9, rtol=0, msg=f"{name}: {tensor}")
    alone = [route(RECIPES["w_grpo_pairs"], ragged(seed)[0]).mask_BT[:, 0] for seed in SEEDS]
    assert all(torch.equal(in_order(*both), one) for *both, one in zip(first["pairs"], second["pairs"], alone, strict=True))
    assert 5 < sum(bool(one.any()) for one in alone) < 40  # some batches have pairs


DATA_HALF = {
    "tasks": [{"name": "drop_high_pass"}, {"name": "bots"}],
    "guidance": {"name": "solution_prefix", "shown": "hint"},
    "explore": {"name": "adaptive", "rounds": 2, "per_round": 4},
    "environment": {"name": "tools", "call": "function", "described": False},
    "parts": [{"name": "verdict"}, {"name": "format"}, {"name": "length", "among": "group"}],
    "combine": {"name": "weighted", "weights": {"correct": 1.0, "length": 0.1}},
    "recompose": [{"name": "prioritised_replay", "share": 0.5}],
}
"""Something in every slot of the data half."""
SELECTION = {
    "tasks": [{"name": "rule_reasoner", "every": 1, "by": "source"}, {"name": "success_pairs"}],
    "guidance": {"name": "templates", "names": ["abel", "simplerl"]},
    "environment": {"name": "single_turn"},
}
LOOPS = {
    "spae": {"prompts_per_step": 3, "row": "spae"},
    "laser": {"row": "laser"},
    "pairs": {"row": "w_grpo_pairs"},
    "npo": {"row": "npo", "prompts_per_step": 10},
    "dapo": {"row": "dapo", "minibatches": 2},
    "data half": {"row": "remix", "overrides": DATA_HALF},
    "selection": {"row": "rlcs", "overrides": SELECTION},
    "one ahead": {"row": "grpo", "schedule": ONE_AHEAD},
    "stored": {"row": "kto", "stored": GROUPS},
    "taught": {"row": "topk_distillation"},
    "validated": {"row": "grpo", "validation": ValidationSettings(every=1, problems=1, samples=4)},
    "reset": {"row": "grpo_kl", "reset": ResetSettings(kl=1e-7)},
    "roles": {"row": "rae"},
    "contrast": {"row": "carft"},
    "costs": {"row": "lagrangian", "overrides": {"inputs": {"multiplier": {"window": 7}}}},
    "lagged": {"row": "nlpo", "overrides": {"inputs": {"allowed_BTK": {"p": 0.5, "least": 2, "every": 1}}}},
    "moments": {"row": "m2po", "minibatches": 2},
    "what teachers wrote": {"row": "ampo", "prompts_per_step": 5},
    "demonstrations": {
        "row": "relift", "overrides": {"recompose": [{"name": "demonstration_buffer", "size": 3}, {"name": "demonstrations", "below": 0.3}]},
        "schedule": ONE_AHEAD,
    },
    "beginnings": {"row": "cure", "prompts_per_step": 3, "group_size": 2},
}  # fmt: skip
"""Probes that generate, a statistic of the whole batch, a choice among all groups, a guide, further draws, a data half of many parts, problems and
prompts that are chosen, answers made beside updates, stored ones with mismatched pairs across ranks, a teacher, fewer held-out problems than ranks, a
reset, a baseline that goes through the answers of all ranks, solutions of all ranks in a contrast, a cost's multiplier, what a lagged policy allows,
a mask by what all ranks' tokens have moved, solutions that teachers wrote, demonstrations in groups and in a step of their own, and answers that go
on from the beginnings of others."""


def loop(rank: int, folder: Path, start, row: str, overrides: dict | None = None, stored=None, **changes) -> dict:
    """Two steps of the loop on one of several ranks; what only this rank knows."""
    policy, asked = policy_of(start), []
    real = torch_engine._Rows.answer

    def counted(self, requests=()):
        asked.extend("guide" if "guide" in request.key else "policy" for request in requests)
        return real(self, requests)

    checkpoints = Checkpoints(folder / "checkpoints", {}, writes=rank == 0)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    frozen = beside(row, start)
    torch_engine._Rows.answer = counted
    try:
        train(
            policy, TOKENIZER, PROBLEMS[:10], recipe(row, **(overrides or {})), settings(steps=2, generation=GenerationSettings(max_new_tokens=8), **changes),
            stage="rl@t", seed=1, journal=Journal(folder / f"journal-{rank}.jsonl", "rl"), checkpoints=checkpoints,
            rollout_folder=folder / "rollouts", frozen=frozen, stored=stored,
        )  # fmt: skip
    finally:
        torch_engine._Rows.answer = real
    return {"guide": asked.count("guide"), "weights": {n: v.clone() for n, v in weights(policy).items()}}


def stops(rank: int, folder: Path, start) -> None:
    """A loss that is not finite stops both ranks before either changes a weight, whichever has the rows it comes from."""
    huge = {"reward": [{"name": "rescale", "low": 0.0, "high": 1e39}], "center": {"name": "none"}, "scale": {"name": "none"}}
    policy = policy_of(start)
    folder.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=r"the loss is (-?inf|nan) .*: no weight was changed"):
        train(
            policy, TOKENIZER, PROBLEMS[:10], recipe("grpo", **huge), settings(steps=2), stage="rl@t", seed=1, frozen={},
            journal=Journal(folder / f"journal-{rank}.jsonl", "rl"), checkpoints=Checkpoints(folder, {}, writes=rank == 0),
            rollout_folder=folder / "rollouts",
        )  # fmt: skip
    assert all(torch.equal(value, start[name]) for name, value in weights(policy).items())


def test_ranks_stop_together_and_keep_the_batch(ranks):
    """What `stops` asserts held on both ranks, else `ranks` would have raised."""
    folder, *_ = ranks
    kept = [torch.load(path) for path in sorted((folder / "stopped").glob("not-finite-*.pt"))]
    assert len(kept) == 2 and any(torch.isinf(batch["advantage_BT"]).any() for batch in kept)


def cut(rank: int, folder: Path, start) -> None:
    """In flight on two ranks: again the same, and after a kill between checkpoints, with groups under way, too."""
    schedule = ScheduleSettings(kind="in_flight", bound=2, groups=8)
    changes = {"steps": 4, "schedule": schedule, "generation": GenerationSettings(max_new_tokens=24, batch_size=6)}
    found = []
    for name, stops_at in {"whole": [None], "again": [None], "cut": [3, None]}.items():
        for stop in stops_at:
            policy, journal = policy_of(start), Journal(folder / name / f"journal-{rank}.jsonl", "rl")
            (folder / name / "checkpoints").mkdir(parents=True, exist_ok=True)
            if stop:
                die_after(journal, stop)
            with pytest.raises(Killed) if stop else nullcontext():
                train(
                    policy, TOKENIZER, PROBLEMS[:10], recipe("grpo"), settings(**changes), stage="rl@t", seed=1, journal=journal,
                    checkpoints=Checkpoints(folder / name / "checkpoints", {}, writes=rank == 0), rollout_folder=folder / name / "rollouts",
                )  # fmt: skip
        said = {path.name: path.read_bytes() for path in sorted((folder / name / "rollouts").iterdir())}
        found.append((weights(policy), [json.loads(line) for line in journal.path.read_text().splitlines()], said))
    for other in found[1:]:
        assert all(torch.equal(value, other[0][tensor]) for tensor, value in found[0][0].items())
        assert found[0][1:] == other[1:]
    assert any(row["under_way"] for row in found[0][1]) or rank


def told(folder: Path):
    """The journal of the first rank and what the rollouts say."""
    rows = [json.loads(line) for line in (folder / "journal-0.jsonl").read_text().splitlines()]
    paths = sorted((folder / "rollouts").glob("*.parquet"))
    return rows, [(r.problem_id, r.group_id, r.sample_id, r.response_ids, r.origin, r.dropped) for path in paths for r in read_trajectories(path)]


def test_in_flight_on_two_ranks_is_reproducible_and_survives_a_kill(ranks):
    """What `cut` asserts held on both ranks."""
    folder, *_ = ranks
    assert len(list((folder / "in flight" / "cut" / "rollouts").iterdir())) == 4


def test_the_loop_on_two_ranks_does_what_one_process_does(ranks, tmp_path, start):
    folder, *found = ranks
    first, second = (one["loops"] for one in found)
    for name, changes in LOOPS.items():
        alone = loop(0, tmp_path / "alone" / name, start, **changes)
        (ours, said), (theirs, expected) = told(folder / name), told(tmp_path / "alone" / name)
        assert said == expected, name
        for one, two in zip(ours, theirs, strict=True):
            rates = ("grad_norm", "loss")  # AdamW magnifies rounding
            assert {k: v for k, v in one.items() if k not in rates} == pytest.approx({k: v for k, v in two.items() if k not in rates}, abs=1e-4), name
            assert [one[k] for k in rates] == pytest.approx([two[k] for k in rates], rel=1e-2, abs=1e-4), name
        for tensor, value in alone["weights"].items():
            torch.testing.assert_close(first[name]["weights"][tensor], value, rtol=0, atol=1e-4)
        assert first[name]["guide"] + second[name]["guide"] == alone["guide"]  # shared out, not done twice
    assert first["npo"]["guide"] and second["npo"]["guide"]
    moments = torch.load(folder / "reset" / "checkpoints" / "step-00000002.pt")["optimiser"]["state"].values()
    assert moments and not any(value.any() for one in moments for value in one.values()), "the reset after the last step cleared the shards"


def gather_to_save(rank: int, start) -> None:
    """What a checkpoint holds is gathered by the first process alone, on its CPU; and gathering inside gathering gathers once."""
    policy = policy_of(start)
    shard(policy)
    with gathered(policy), gathered(policy):
        pass
    optimiser = make_optimiser(policy, settings().optimiser)
    for p in policy.parameters():
        p.grad = torch.ones_like(p)
    optimiser.step()
    state, adam = weights_on_first(policy), optimiser_state(policy, optimiser)
    whole = weights(policy)
    if rank == 0:
        assert state.keys() == whole.keys() and all(type(v) is torch.Tensor and torch.equal(v, whole[n]) for n, v in state.items())
        moments = [value for one in adam["state"].values() for value in one.values()]
        assert moments and all(type(value) is torch.Tensor and value.device.type == "cpu" for value in moments)
    else:
        assert state == {} and adam == {}
    with pytest.raises(RuntimeError, match="inside"), gathered(policy):
        raise RuntimeError("inside")
    with gathered(policy):
        assert torch.equal(policy.get_input_embeddings().weight, whole["model.embed_tokens.weight"])  # gathered anew
