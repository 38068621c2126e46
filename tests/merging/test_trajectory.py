"""Where a training was going: worked numbers, the published formula, and a stage on the steps that a real training kept."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines import graph, paths
from pipelines.config import Params, resolve
from pipelines.config.extrapolation import ExtrapolateStage
from pipelines.config.sources import ArithmeticSource
from pipelines.config.training import ArchitectureSettings, SftStage
from pipelines.errors import UserError
from pipelines.merging import lookahead, merge_tensors
from pipelines.merging.tensors import collect, loaded
from pipelines.merging.trajectory import line_weights, relex
from pipelines.models.kept import spacing, steps
from pipelines.models.loading import load_policy, save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.progress import Journal
from pipelines.sft.examples import document
from pipelines.sources.arithmetic import problems
from pipelines.stages import Context, extrapolate, sft
from pipelines.store import discard, read_json, write_problems

BASE = torch.tensor([1.0, 1.0])


def moved(*rows: tuple[float, float]) -> list[torch.Tensor]:
    return [BASE + torch.tensor(row) for row in rows]


def test_weights_of_a_least_squares_line_by_hand() -> None:
    # mean 70/3; centred -40/3, -10/3, 50/3; their squares sum to 1400/3; 60 is 110/3 from the mean
    assert line_weights(np.array([10.0, 20.0, 40.0]), 60.0) == pytest.approx([-5 / 7, 1 / 14, 23 / 14])
    assert line_weights(np.array([10.0, 20.0, 40.0]), 60.0, window=2) == pytest.approx([0, -1, 2])
    assert line_weights(np.array([10.0, 20.0, 40.0]), 60.0, window=1) == pytest.approx([0, 0, 1.5]), "the line through the base"


def test_two_steps_by_hand() -> None:
    # M M^T = diag(9, 16): the first direction is the second row; the line from 1 and 2 to 3 weighs -1 and 2
    rows = moved((3.0, 0.0), (0.0, 4.0))
    assert merge_tensors("relex", BASE, rows, target=3).tolist() == [1.0, 9.0]
    assert merge_tensors("relex", BASE, rows, target=3, rank=2).tolist() == merge_tensors("line", BASE, rows, target=3).tolist() == [-2.0, 9.0]
    heard = {}
    for _ in relex(replace(loaded(BASE, rows), tell=heard.update), target=3.0):
        pass
    # on the first direction the coefficients are 0 and 4: on a line; at 3 it is 8, twice the last update
    assert heard == {"explained": pytest.approx(16 / 25), "fit": pytest.approx(1.0), "length": pytest.approx(2.0), "update": 16.0}


def test_a_straight_training_goes_on_and_a_still_one_stays() -> None:
    v = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    base = torch.randn(50, generator=torch.Generator().manual_seed(2))
    rows = [base + t * v for t in range(1, 11)]
    assert torch.allclose(merge_tensors("relex", base, rows, target=50), base + 50 * v, atol=1e-4)
    assert torch.allclose(merge_tensors("relex", base, rows[1::2], target=50, steps=[2, 4, 6, 8, 10]), base + 50 * v, atol=1e-4)
    assert torch.equal(merge_tensors("relex", base, [base] * 3, target=50), base)


def test_the_weights_of_the_steps_give_what_the_published_formula_gives() -> None:
    """With V made, as the paper writes it: c = M V, a line of each coefficient, theta_0 + c(target) V^T."""
    generator = torch.Generator().manual_seed(3)
    base, rows = torch.randn(4, 6, generator=generator), [torch.randn(4, 6, generator=generator) for _ in range(5)]
    m = torch.stack([(row - base).reshape(-1).double() for row in rows])
    values, u = torch.linalg.eigh(m @ m.T)
    u, s = u.flip(1)[:, :2], values.flip(0)[:2].sqrt()
    v = m.T @ u / s
    c = m @ v
    predicted = torch.stack([torch.tensor(np.polyval(np.polyfit(range(5), c[:, r].numpy(), 1), 4 + 7)) for r in range(2)])
    expected = base.double() + (v @ predicted).reshape(4, 6)
    assert torch.allclose(merge_tensors("relex", base, rows, target=12, rank=2).double(), expected, atol=1e-4)


def matrices(count: int, *, turn: float = 0.0) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """A start and so many steps after it: each matrix moves along one direction at a constant pace, and a little across, a vector straight on."""
    generator = torch.Generator().manual_seed(5)
    start, ways = {}, {}
    for name in ("a", "b", "c"):
        start[name] = torch.randn(6, 10, generator=generator)
        u, v = torch.randn(6, generator=generator), torch.randn(10, generator=generator)
        ways[name] = torch.outer(u, v) / (u.norm() * v.norm())
    start["n"], ways["n"] = torch.ones(4), torch.tensor([1.0, -1.0, 0.5, 0.0])
    noise = {name: turn * torch.randn(value.shape, generator=generator) for name, value in start.items()}
    return start, [{name: start[name] + 0.1 * t * (ways[name] + noise[name] * (t % 2)) for name in start} for t in range(1, count + 1)]


def groups_of(start, steps_of):
    return {name: loaded(start[name], [step[name] for step in steps_of], name, 1) for name in start}


def each(function, values):
    return [function(value) for value in values]


def test_the_first_triplet_of_a_delta_is_that_of_its_singular_value_decomposition() -> None:
    start, along = matrices(4, turn=0.3)
    group = groups_of(start, along)["b"]
    found = lookahead.taken_apart(group, [(3, -1), (1, 0)])
    for (to, since), parts in found.items():
        delta = along[to]["b"] - (start if since < 0 else along[since])["b"]
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        sign = 1.0 if u[u[:, 0].abs().argmax(), 0] > 0 else -1.0
        assert torch.allclose(parts["u"], sign * u[:, 0], atol=1e-3) and torch.allclose(parts["v"], sign * v[0], atol=1e-3)
        assert float(parts["size"]) == pytest.approx(float(s[0]), rel=1e-4)


def test_what_goes_straight_on_is_predicted_to_go_on() -> None:
    """The worked case: theta_t = theta_0 + t s u v^T. The predicted delta points the same way, and strength 0 leaves the last step."""
    start, along = matrices(8)
    groups = groups_of(start, along)
    learnt = lookahead.learn(groups, each, target=11, epochs=400, rate=2e-3)
    first, again = (lookahead.learn(groups, each, target=11, epochs=5, rate=2e-3) for _ in range(2))
    for name, group in groups.items():
        made = collect(group, lookahead.lookahead(replace(group, learnt=learnt[name]), target=11))
        twice = [collect(group, lookahead.lookahead(replace(group, learnt=each[name]), target=11)) for each in (first, again)]
        assert torch.equal(*twice) and not torch.equal(twice[0], made)
        delta, true = made - along[-1][name], along[-1][name] - start[name]
        assert float(torch.nn.functional.cosine_similarity(delta.reshape(1, -1), true.reshape(1, -1))) > 0.99
        assert float(delta.norm() / true.norm()) == pytest.approx(3 / 8, rel=0.15), "three steps after eight"
        assert torch.equal(collect(group, lookahead.lookahead(replace(group, learnt=learnt[name]), target=11, strength=0)), along[-1][name])


def test_nothing_to_learn_looking_ahead_from_is_refused() -> None:
    with pytest.raises(UserError, match=r"next looks 7 steps ahead to step 10, and no two of the steps 1, 2, 3 lie so far apart"):
        merge_tensors("next", BASE, moved((1, 0), (2, 0), (3, 0)), target=10)


def test_steps_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"steps \[2, 1\] must be rising numbers above 0, one for each of 2 models"):
        merge_tensors("relex", BASE, moved((1, 0), (2, 0)), target=3, steps=[2, 1])
    with pytest.raises(UserError, match="a window of 3 steps, and there are 2"):
        merge_tensors("line", BASE, moved((1, 0), (2, 0)), target=3, window=3)


def test_kept_steps_are_evenly_spaced_and_bounded() -> None:
    there: set[int] = set()
    for step in range(1, 200):
        distance = spacing(step, 5, 4)
        there = {kept for kept in there | ({step} if step % 5 == 0 else set()) if kept % distance == 0}
        assert len(there) <= 4 and there == {kept for kept in range(1, step + 1) if kept % distance == 0}
    assert sorted(there) == [40, 80, 120, 160]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stage `sft` has kept its weights on the way."""
    root = tmp_path_factory.mktemp("project")
    rows = list(problems(ArithmeticSource(kind="arithmetic", count=48), 1, "a", Path()))
    tokenizer = train_tokenizer([document(row) for row in rows], 300)
    tiny = ArchitectureSettings(hidden_size=16, layers=1, heads=2, intermediate_size=32, vocab_size=300, context=256)
    save_policy(root / paths.BASE, tiny_model(tiny, tokenizer, 1), tokenizer)
    write_problems(root / paths.SPLITS["sft"], rows)
    train = {"epochs": 3, "batch_size": 8, "optimiser": {"lr": 1e-3}}
    given = SftStage.model_validate({"init": "base", "data": "curation/sft", "train": train, "keep": {"every": 3, "most": 6}})
    summary = sft.run(context(root, "sft", given))
    assert summary["steps"] == 18 and summary["kept"] == 6
    return root


def context(root: Path, name: str, settings: object) -> Context:
    return Context(name, root, 1, settings, root / paths.WORK / name, Journal(root / paths.WORK / name / "j.jsonl", name, io.StringIO()))


def stage(root: Path, **settings: object) -> dict[str, float]:
    given = {"init": "sft", "start": "base", "target": 24} | settings
    return extrapolate.run(context(root, "later", ExtrapolateStage.model_validate(given)))


def test_a_kept_step_is_a_model_and_the_last_is_what_the_stage_made(trained: Path) -> None:
    kept = steps(trained / paths.KEPT / "sft")
    assert list(kept) == [3, 6, 9, 12, 15, 18]
    last, made = load_file(kept[18] / "model.safetensors"), load_file(trained / paths.model("sft") / "model.safetensors")
    assert last.keys() == made.keys() and all(torch.equal(last[name], made[name]) for name in made)
    model, tokenizer = load_policy(kept[9])
    assert model.num_parameters() == load_policy(trained / paths.BASE)[0].num_parameters() and tokenizer.chat_template


def test_the_stage_makes_the_model_of_a_later_step(trained: Path) -> None:
    summary = stage(trained, method="line", settings={"window": 2})
    first, second, made = (
        load_file(folder / "model.safetensors")
        for folder in (trained / paths.KEPT / "sft" / "step-000015", trained / paths.KEPT / "sft" / "step-000018", trained / paths.model("later"))
    )
    for name, tensor in made.items():
        assert torch.allclose(tensor, second[name] + 2 * (second[name] - first[name]), atol=1e-5), "on the line from step 15 to 18, at 24"
    assert summary["fit"] == pytest.approx(1.0) and summary["kept"] == 6 and summary["last_step"] == 18
    summary = stage(trained)
    assert 0.5 < summary["explained"] < 1 and summary["length"] > 1
    found = read_json(trained / paths.model("later") / paths.EXTRAPOLATION)
    assert found["steps"] == [3, 6, 9, 12, 15, 18] and found["tensors"].keys() == made.keys()
    load_policy(trained / paths.model("later"))


def test_the_stage_learns_to_look_ahead(trained: Path) -> None:
    summary = stage(trained, target=21, method="next", settings={"epochs": 20, "rate": 1e-3})
    assert summary["length"] > 0 and "fit" not in summary
    load_policy(trained / paths.model("later"))
    stage(trained, target=21, method="next", settings={"strength": 0})
    made, last = (load_file(f / "model.safetensors") for f in (trained / paths.model("later"), trained / paths.KEPT / "sft" / "step-000018"))
    assert all(torch.equal(made[name], last[name]) for name in made)


def test_the_step_is_chosen_by_problems_that_no_figure_is_of(trained: Path) -> None:
    """Every target is scored on one half, the best compared with the model that the training ended with on the other."""
    write_problems(trained / "held.parquet", list(problems(ArithmeticSource(kind="arithmetic", count=12), 2, "held", Path())))
    search = {"data": "held.parquet", "grid": {"target": [21, 30]}, "problems": 12, "samples": 2, "bootstrap": 100, "generation": {"max_new_tokens": 8}}
    summary = stage(trained, method="line", settings={"window": 2}, search=search)
    record = read_json(trained / paths.model("later") / paths.SEARCH)
    assert [trial["name"] for trial in record["trials"]] == ["sft", *(f"line window 2, target {target}" for target in (24, 21, 30))]
    assert record["problems"] == {"choose": 6, "confirm": 6} and record["expert"] == "sft"
    merges = record["trials"][1:]
    best = max(merges, key=lambda trial: trial["mean"])
    assert record["winner"] == best["name"] and summary["target"] == best["settings"]["target"] and summary["search_trials"] == 4.0
    assert read_json(trained / paths.model("later") / paths.EXTRAPOLATION)["target"] == best["settings"]["target"]
    first, second, made = (
        load_file(folder / "model.safetensors")
        for folder in (trained / paths.KEPT / "sft" / "step-000015", trained / paths.KEPT / "sft" / "step-000018", trained / paths.model("later"))
    )
    beyond = (summary["target"] - 18) / 3
    assert all(torch.allclose(tensor, second[name] + beyond * (second[name] - first[name]), atol=1e-5) for name, tensor in made.items())
    with pytest.raises(UserError, match="later.search.grid.target: step 12 is not later than 18"):
        stage(trained, search=search | {"grid": {"target": [30, 12]}})
    with pytest.raises(ValueError, match="grid: target: expected numbers of steps, got 1.5"):
        stage(trained, search=search | {"grid": {"target": [1.5]}})
    write_problems(trained / paths.BENCHMARKS / "b.parquet", list(problems(ArithmeticSource(kind="arithmetic", count=1), 2, "held", Path())))
    with pytest.raises(UserError, match="later.search: problem .* is in a benchmark"):
        stage(trained, search=search)
    discard(trained / paths.BENCHMARKS)


def test_what_cannot_go_on_is_said(trained: Path) -> None:
    with pytest.raises(UserError, match="later.target: step 18 is not later than 18, the last that sft kept"):
        stage(trained, target=18)
    with pytest.raises(UserError, match="later: other kept 0 steps of its training, and a line needs two; lower its keep.every"):
        stage(trained, init="other")


def test_the_graph_follows() -> None:
    content = {
        "seed": 1,
        "sources": {"train": {"a": {"kind": "arithmetic", "count": 9}}, "benchmarks": {"b": {"kind": "arithmetic", "count": 2}}},
        "stages": {
            "first": {"kind": "sft", "init": "base", "data": "curation/sft", "keep": {"every": 10}},
            "second": {"kind": "rl", "init": "first", "data": "curation/rl"},
            "later": {"kind": "extrapolate", "init": "first", "target": 100},
        },
        "evaluation": {"gate": {"candidate": "later", "against": "first", "improve": ["b"]}},
    }
    params = Params.model_validate(content)
    stages = graph.graph(params)
    assert paths.KEPT / "first" in stages["first"].makes and stages["first"].feeds(stages["later"])
    assert resolve(params, "later").start == "base" and stages["later"].reads == (paths.KEPT / "first", paths.BASE)
    assert stages["later"].makes == (paths.model("later"),)
    content["stages"]["later"]["search"] = {"data": "curation/rl", "grid": {"target": [80, 120]}}
    searched = graph.graph(Params.model_validate(content))["later"]
    assert searched.reads == (paths.KEPT / "first", paths.BASE, paths.model("first"), paths.rows("curation/rl"), paths.BENCHMARKS)
    del content["stages"]["later"]["search"]
    content["stages"]["later"]["init"] = "second"
    with pytest.raises(ValueError, match=r"init: 'second' keeps no weights along its training; give a stage that trains `keep: \{every: ...\}`, or choose"):
        Params.model_validate(content)
