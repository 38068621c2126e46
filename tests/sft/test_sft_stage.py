"""Kind sft as a stage: weights, repeated examples, what is held out, adapters, recomputed activations, and several processes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from killing import Killed, die_after
from test_supervised import PROBLEMS, TINY, TOKENIZER

from pipelines import paths
from pipelines.config.training import SftStage
from pipelines.errors import UserError
from pipelines.models.loading import load_policy, save_policy
from pipelines.models.tiny import tiny_model
from pipelines.progress import Journal
from pipelines.sft.examples import chat_examples
from pipelines.stages import Context, sft
from pipelines.store import write_problems

WORKED = PROBLEMS[:40]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder of projects, of which `start` has a model and rows."""
    start = tmp_path_factory.mktemp("sft") / "start"
    save_policy(start / paths.model("base"), tiny_model(TINY, TOKENIZER, 1), TOKENIZER)
    write_problems(start / paths.rows("curation/sft"), [replace(problem, pass_rate=i / 40) for i, problem in enumerate(WORKED)])
    return start.parent


def context(root: Path, name: str, first: bool = True, **changes: object) -> Context:
    """Of the stage `sft` in a project of its own."""
    project = root / name
    if first and not project.exists():
        shutil.copytree(root / "start", project)
    train = {"epochs": 2, "batch_size": 8, "micro_batch": 4, "checkpoint_every": 2, "optimiser": {"lr": 1e-2, "warmup": 0.1}}
    settings = {"init": "base", "data": "curation/sft", **changes, "train": {**train, **changes.get("train", {})}}
    journal = Journal(project / "work" / ("journal.jsonl" if first else "other.jsonl"), "sft")
    return Context("sft", project, 1, SftStage.model_validate(settings), project / "work", journal, first=first)


def run(root: Path, name: str, **changes: object) -> dict[str, float]:
    return sft.run(context(root, name, **changes))


def told(root: Path, name: str, figure: str = "loss") -> dict[int, float]:
    """Step -> what the journal says of it, where it says something."""
    return {row["step"]: row[figure] for row in Journal(root / name / "work" / "journal.jsonl", "sft").rows() if figure in row}


def losses(root: Path, name: str) -> list[float]:
    return list(told(root, name).values())


def weights(root: Path, name: str, model: Path = paths.MODELS / "sft") -> dict[str, torch.Tensor]:
    return load_policy(root / name / model)[0].state_dict()


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def test_the_answer_weighs_more_than_the_working() -> None:
    (example,), _ = chat_examples(TOKENIZER, WORKED[:1], 256, answer_weight=3.0)
    (_, middle, one), (again, _, three) = example.spans
    assert (one, three, again) == (1.0, 3.0, middle)
    assert TOKENIZER.decode(example.ids[:middle]).endswith("</think>")
    assert TOKENIZER.decode(example.ids[middle:]) == f"\\boxed{{{WORKED[0].answer}}}<|end|>"


def test_rows_that_weigh_twice_pull_as_two_of_them(root: Path) -> None:
    """One step on a batch: a reference's weight scales all alike, so the mean does not move; a repeated row moves it."""
    once = {"train": {"epochs": 0.2, "batch_size": 40}}
    run(root, "plain", **once)
    run(root, "heavy", **once, weights={"curation/sft": 2.0})
    assert losses(root, "heavy") == pytest.approx(losses(root, "plain"), rel=1e-6)
    doubled = run(root, "hard", duplicate=[{"where": {"pass_rate": [0, 0.2]}, "times": 3}, {"where": {"pass_rate": [0, 0.5]}}])
    assert doubled["examples"] == 40 + 2 * 9 + 12, "of pass rate 0 to .2 nine, three times; up to .5 twelve more, twice"
    with pytest.raises(ValueError, match="weights: 'curation/rl' is not in data; choose among curation/sft"):
        run(root, "wrong", weights={"curation/rl": 2.0})
    with pytest.raises(UserError, match="sft: duplicate.0.where.sql: "):
        run(root, "wrong", duplicate=[{"where": {"sql": "nothing > 1"}}])


def test_recomputed_activations_change_no_loss(root: Path) -> None:
    run(root, "kept")
    run(root, "recomputed", train={"gradient_checkpointing": True, "micro_tokens": 300})
    assert losses(root, "recomputed") == pytest.approx(losses(root, "kept"), rel=1e-4)


def test_adapters_train_and_are_merged_into_the_model(root: Path) -> None:
    run(root, "adapted", lora={"rank": 4, "alpha": 8})
    before, after = weights(root, "adapted", paths.BASE), weights(root, "adapted")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}
    assert losses(root, "adapted")[-1] < losses(root, "adapted")[0]


def test_the_best_weights_are_kept_and_training_stops(root: Path) -> None:
    """At a rate that wrecks the model the first measurement is the best."""
    held = {"problems": 8, "every": 2, "patience": 2}
    wrecking = {"epochs": 4, "held_out": held, "optimiser": {"lr": 0.5, "warmup": 0.4}}
    summary = run(root, "stopped", train=wrecking)
    assert summary["examples"] == 32 and summary["steps"] < 16
    measured = told(root, "stopped", "held_out_loss")
    assert summary["held_out_loss"] == min(measured.values()) and summary["best_step"] == min(measured, key=measured.__getitem__)
    assert summary["steps"] == summary["best_step"] + 4, "two measurements without a new best"
    assert same(weights(root, "stopped"), torch.load(root / "stopped" / "work" / "resume" / f"best-{int(summary['best_step']):08d}.pt")["model"])
    assert not same(weights(root, "stopped"), weights(root, "stopped", Path("work/last")))
    with pytest.raises(UserError, match="train.held_out.problems 40 must be less than the 40 problems and conversations there are"):
        run(root, "none", train={"held_out": {"problems": 40}})


def test_killed_and_resumed_it_keeps_the_same_best(root: Path) -> None:
    held = {"held_out": {"problems": 8, "every": 1}}
    whole = run(root, "whole", train=held)
    cut = context(root, "cut", train=held)
    die_after(cut.journal, 5)
    with pytest.raises(Killed):
        sft.run(cut)
    assert run(root, "cut", train=held) == whole
    assert same(weights(root, "cut"), weights(root, "whole"))


def of_two(rank: int, root: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=2)
    sft.run(context(Path(root), "two", first=not rank, processes=2, lora={"rank": 4, "alpha": 8}, train={"held_out": {"problems": 9, "every": 3}}))
    dist.destroy_process_group()


def test_two_processes_do_what_one_does(root: Path) -> None:
    shutil.copytree(root / "start", root / "two")
    processes.spawn(of_two, (str(root),), nprocs=2)
    summary = run(root, "one", lora={"rank": 4, "alpha": 8}, train={"held_out": {"problems": 9, "every": 3}})
    assert losses(root, "two") == pytest.approx(losses(root, "one"), rel=1e-4)
    assert min(told(root, "two", "held_out_loss").values()) == pytest.approx(summary["held_out_loss"], rel=1e-4)
    for name, value in weights(root, "one").items():
        torch.testing.assert_close(weights(root, "two")[name], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"processes": 2, "train": {"optimiser": {"name": "muon"}}}, "train.optimiser.name muon needs whole matrices"),
        ({"processes": 9}, r"train.batch_size 8 must be at least processes \(9\)"),
        ({"duplicate": [{"where": {}, "times": 1}]}, "greater than or equal to 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(root: Path, changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        context(root, "refused", **changes)
