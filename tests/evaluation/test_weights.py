"""Two checkpoints compared: by hand, by the invariants of the definitions, and by the Gram matrix as by the whole one."""

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.errors import UserError
from pipelines.evaluation import sampling, weights
from pipelines.evaluation.weights import Change, Settings, change
from pipelines.models import spectra
from pipelines.models.tensors import stored_tensors

STORED = Settings(dtype="stored")


def gaussian(*shape: int, seed: int = 0, spectrum: float | None = None) -> Tensor:
    """A random matrix; with `spectrum` its singular values fall as i^-spectrum."""
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if spectrum is not None:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        matrix = (u * torch.arange(1, len(s) + 1) ** -spectrum) @ v
    return matrix.float()


def folder(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.mkdir(parents=True)
    save_file(tensors, path / "model.safetensors")
    return path


def seen(before: Tensor, after: Tensor, settings: Settings = STORED) -> Change:
    return change("w", before, after, settings, functools.partial(weights.leading, before, settings))


def test_equal_checkpoints(tmp_path: Path) -> None:
    tensors = {"a": gaussian(20, 30), "b": gaussian(5), "steps": torch.arange(3)}
    found = weights.compare(folder(tmp_path / "a", tensors), folder(tmp_path / "b", tensors))
    assert (found["sparsity"], found["drift"], found["relative_update"], found["parameters"]) == (1.0, 0.0, 0.0, 605)
    assert found["left"] < 1e-5 and found["largest"] < 1e-5
    assert found["stable_rank"] is None and found["low"] is None, "there is no update"


def test_one_percent_more_of_everything(tmp_path: Path) -> None:
    before = {"w": gaussian(64, 48)}
    a, b = folder(tmp_path / "a", before), folder(tmp_path / "b", {"w": 1.01 * before["w"]})
    exact, served = weights.compare(a, b, STORED), weights.compare(a, b)
    assert (exact["sparsity"], exact["drift"]) == (0.0, pytest.approx(0.01, rel=1e-4))
    assert exact["left"] < 1e-2 and exact["relative_update"] == pytest.approx(0.01, rel=1e-4)
    assert served["sparsity"] == 0.0 and served["drift"] == pytest.approx(0.01, rel=0.1), "bfloat16 rounds each entry"


def test_what_counts_as_changed() -> None:
    before = torch.tensor([1.0, 1.0, -1.0, 0.0, 0.0, 100.0])
    after = torch.tensor([1.0009, 1.0011, 1.0, 0.0, 1e-30, 100.05])
    assert seen(before, after).sparsity == pytest.approx(3 / 6)


def test_what_bfloat16_cannot_show_has_not_happened(tmp_path: Path) -> None:
    before = {"w": torch.full((8, 8), 1.0)}
    a, b = folder(tmp_path / "a", before), folder(tmp_path / "b", {"w": before["w"] * 1.002})
    assert weights.compare(a, b)["sparsity"] == 1.0 and weights.compare(a, b, STORED)["sparsity"] == 0.0


def test_a_plane_turned_by_ten_degrees() -> None:
    before = torch.diag(torch.tensor([4.0, 3.0, 1.0, 0.5, 0.2, 0.1]))
    turn, cos, sin = torch.eye(6), math.cos(math.radians(10)), math.sin(math.radians(10))
    turn[0, 0], turn[0, 4], turn[4, 0], turn[4, 4] = cos, -sin, sin, cos
    found = seen(before, turn @ before, Settings(dtype="stored", rank=2))
    assert (found.left, found.right, found.largest) == pytest.approx((5.0, 0.0, 10.0), abs=1e-3), "the mean of 0 and 10 degrees"
    assert found.drift == pytest.approx(0.0, abs=1e-6)
    assert seen(before, turn @ before).rank == 3, "half of the side: the space of all six cannot rotate"


def test_stable_rank_of_the_update() -> None:
    before = gaussian(40, 30)
    u, v = gaussian(40, 1, seed=1), gaussian(30, 1, seed=2)
    assert seen(before, before + 1e-2 * u @ v.T).stable_rank == pytest.approx(1.0, abs=1e-3)
    update = torch.diag(torch.tensor([2.0, 1.0, 1.0]))
    from_nothing = seen(torch.zeros(3, 3), update)
    assert from_nothing.stable_rank == pytest.approx(6 / 4) and from_nothing.drift is None, "zeros have no directions to turn"


def test_a_random_update_overlaps_as_chance_does() -> None:
    before = gaussian(200, 150, spectrum=0.7)
    hit = torch.rand(200, 150, generator=torch.Generator().manual_seed(3)) < 0.2
    found = seen(before, torch.where(hit, before * 1.1, before), Settings(dtype="stored", alpha=0.3))
    three_sd = 3 * math.sqrt(0.3 * 0.7 / int(hit.sum()))
    assert found.principal == pytest.approx(0.3, abs=three_sd) and found.low == pytest.approx(0.3, abs=three_sd)
    small = before.abs() <= before.abs().median()
    aimed = seen(before, torch.where(small, before * 1.1, before))
    assert aimed.low == 1.0 and aimed.principal is not None and aimed.principal < 0.5


def test_overlap_by_hand_with_ties() -> None:
    keys = torch.tensor([1.0, 2.0, 2.0, 2.0, 3.0, 4.0])
    changed = torch.tensor([True, True, False, False, True, False])
    # The three smallest are the 1 and two of three 2s, so the changed 2 counts two thirds.
    assert weights.overlap(keys, changed, 0.5) == pytest.approx((1 + 2 / 3) / 3)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
@pytest.mark.parametrize("spectrum", [0.7, None])
def test_large_matrices_through_their_gram_matrix_are_the_same(shape: tuple[int, int], spectrum: float | None) -> None:
    """Also on a flat spectrum, on which a randomised decomposition does not settle."""
    before = gaussian(*shape, spectrum=spectrum)
    after = before + 0.01 * float(before.norm()) / 75 * gaussian(*shape, seed=5)
    found = (vars(seen(before, after, Settings(dtype="stored", rank=24, exact=exact))) for exact in (60, 59))
    whole, gram = ({name: value for name, value in one.items() if isinstance(value, float)} for one in found)
    assert len(whole) == 10 and gram == pytest.approx(whole, rel=1e-5, abs=1e-4)
    assert 0 < gram["left"] != gram["right"] > 0, "left and right are told apart whichever side is the longer"
    transposed = seen(before.T.contiguous(), after.T.contiguous(), Settings(dtype="stored", rank=24, exact=59))
    assert (transposed.left, transposed.right) == pytest.approx((gram["right"], gram["left"]), rel=1e-5)


@pytest.mark.parametrize("spectrum", [2.0, None])
def test_a_decomposition_by_the_gram_matrix(spectrum: float | None) -> None:
    matrix = gaussian(80, 50, spectrum=spectrum)
    whole, gram = (spectra.decompose(matrix, 10, exact) for exact in (50, 49))
    assert torch.linalg.vector_norm(gram.values - whole.values) <= 1e-7 * whole.values[0]
    assert spectra.angles(gram.left, whole.left).max() < 1e-4 and spectra.angles(gram.right, whole.right).max() < 1e-4
    assert spectra.largest(matrix) == pytest.approx(float(whole.values[0]), rel=1e-9)


def test_the_largest_singular_value_of_a_flat_spectrum() -> None:
    """The edge of a random matrix's spectrum is as dense as it gets."""
    matrix = gaussian(700, 600)
    assert spectra.largest(matrix) == pytest.approx(float(torch.linalg.svdvals(matrix.double())[0]), rel=1e-5)


def test_a_matrix_without_full_rank_has_orthonormal_directions() -> None:
    low = gaussian(90, 3) @ gaussian(3, 60, seed=1)
    found = spectra.decompose(low, 20, 0)
    assert torch.allclose(found.left.T @ found.left, torch.eye(20, dtype=torch.float64), atol=1e-9)


def llama(seed: int = 0, layers: int = 12, hidden: int = 48, wide: int = 96) -> dict[str, Tensor]:
    """Matrices named as those of a llama; deeper ones are larger in scale."""
    shapes = {"q_proj": (hidden, hidden), "k_proj": (hidden // 3, hidden), "up_proj": (wide, hidden), "down_proj": (hidden, wide)}
    tensors = {f"layers.{i}.{kind}": gaussian(*shape, seed=100 * i + n + seed) for i in range(layers) for n, (kind, shape) in enumerate(shapes.items())}
    return tensors | {"embed_tokens": gaussian(8 * wide, hidden, seed=seed + 1), "norm": gaussian(hidden, seed=seed + 2)}


def trained(before: dict[str, Tensor], seed: int = 7) -> dict[str, Tensor]:
    """Deeper layers move more, as they do."""
    depth = {name: int(name.split(".")[1]) if "." in name else 6 for name in before}
    return {name: w + (0.01 + 0.004 * depth[name]) * gaussian(*w.shape, seed=seed + i) for i, (name, w) in enumerate(before.items())}


def budgeted(share: float, before: dict[str, Tensor]) -> Settings:
    """A budget of this share of what all matrices cost."""
    sides = [sorted(w.shape, reverse=True) for w in before.values() if w.ndim == 2]
    whole = sum(spectra.seconds(m, n, max(1, n // 2), 0) for m, n in sides)
    return Settings(dtype="stored", exact=0, budget=share * whole)


def test_a_sample_tells_the_whole_within_its_error(tmp_path: Path) -> None:
    """Twelve layers, a third of the cost: no mean is further off than three of the standard errors that it states."""
    before = llama()
    a, b = folder(tmp_path / "a", before), folder(tmp_path / "b", trained(before))
    part, whole = (weights.compare(a, b, budgeted(share, before)) for share in (0.35, 1.01))
    assert (whole["decomposed"], whole["matrices"]) == (49, 49) and 12 <= part["decomposed"] <= 25 and part["left_out"] == {}
    assert whole["errors"] == dict.fromkeys(("drift", "left", "right", "principal"), 0.0)
    for name, error in part["errors"].items():
        assert 0 < error < 0.3 * whole[name] and abs(part[name] - whole[name]) <= 3 * error
    for name in ("sparsity", "relative_update", "low", "parameters"):
        assert part[name] == whole[name], "these are of all tensors"
    mean = sum(one["drift"] for one in whole["tensors"] if one["drift"] is not None) / 49
    assert whole["drift"] == pytest.approx(mean)
    assert weights.compare(a, b, budgeted(0.35, before)) == part, "nothing of it hangs on a clock"


def test_no_budget_is_exceeded_and_kinds_that_do_not_fit_are_named() -> None:
    costs = {f"layers.{i}.{kind}": price for i in range(10) for kind, price in (("q", 1.0), ("up", 3.0))} | {"embed": 50.0}
    for budget in (0.5, 4.0, 9.5, 40.0, 89.0, 90.0, 1e9):
        choice = sampling.choose(costs, budget)
        assert choice.seconds == pytest.approx(sum(costs[name] for name in choice.names)) and choice.seconds <= budget
    four, all_ = sampling.choose(costs, 4.0), sampling.choose(costs, 1e9)
    assert len(four.names) == 2 and four.left_out == {"embed": 50.0} and len(all_.names) == 21
    assert sampling.choose(costs, 0.5).left_out == {"layers.*.q": 1.0, "layers.*.up": 3.0, "embed": 50.0}
    sampled = sampling.choose(costs, 20.0).names
    assert sorted(int(name.split(".")[1]) // 2 for name in sampled if name.endswith("q")) == [0, 1, 2, 3, 4], "one of each part of the depth"


def test_the_error_of_a_stratified_sample_by_hand() -> None:
    kinds = {"a": ["a1", "a2", "a3", "a4"], "b": ["b1", "b2"], "c": ["c1"], "d": ["d1"]}
    # N = 7 without d. s^2 of (1, 3) is 2, which b, of one value, borrows; c is whole.
    mean, error = sampling.mean({"a1": 1.0, "a3": 3.0, "b1": 5.0, "c1": 9.0}, kinds) or (None, None)
    assert mean == pytest.approx(4 / 7 * 2 + 2 / 7 * 5 + 1 / 7 * 9)
    assert error == pytest.approx(math.sqrt((4 / 7) ** 2 * 0.5 * 2 / 2 + (2 / 7) ** 2 * 0.5 * 2))
    assert sampling.mean({"a1": 1.0}, kinds) == (1.0, None) and sampling.mean({}, kinds) is None
    # in order 1, 3 (each for two), 5 (for two), 9: the fourth of seven
    assert sampling.median({"a1": 1.0, "a3": 3.0, "b1": 5.0, "c1": 9.0}, kinds) == 3.0
    assert sampling.median({"b1": 4.0, "b2": 6.0}, kinds) == 5.0 and sampling.median({}, kinds) is None


def test_several_models_share_the_decompositions_of_their_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = llama(layers=2)
    a = folder(tmp_path / "a", before)
    others = [folder(tmp_path / f"b{i}", trained(before, seed)) for i, seed in enumerate((7, 70, 700))]
    seen, decompose, steps = [], weights.decompose, []
    monkeypatch.setattr(weights, "decompose", lambda *given: seen.append(given) or decompose(*given))
    together = weights.compare_all(a, others, Settings(), lambda *step: steps.append(step))
    assert len(seen) == 9 * (1 + 3) and steps == [(i, 10) for i in range(1, 11)]
    assert together == [weights.compare(a, other) for other in others]


def test_shards_are_read_one_tensor_at_a_time_and_mean_the_same(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": gaussian(12, 9, seed=i) for i in range(4)}
    changed = {name: tensor + 0.01 * gaussian(12, 9, seed=9) for name, tensor in tensors.items()}
    whole = folder(tmp_path / "whole", changed)
    parts = tmp_path / "parts"
    parts.mkdir()
    placed = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(changed)}
    for file in set(placed.values()):
        save_file({name: tensor for name, tensor in changed.items() if placed[name] == file}, parts / file)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    before, steps = folder(tmp_path / "before", tensors), []
    assert weights.compare(before, parts) == weights.compare(before, whole, progress=lambda *step: steps.append(step))
    assert steps == [(i, 4) for i in range(1, 5)]
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed | {"gone": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(UserError, match="tensor 'gone' is not in model-00001"):
        stored_tensors(parts)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../before/model.safetensors"}}))
    with pytest.raises(UserError, match="is no file of this folder"):
        stored_tensors(parts)


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", {"w": gaussian(4, 4)})
    with pytest.raises(UserError, match="one: tensor 'v' is missing, .*other has it"):
        weights.compare(one, folder(tmp_path / "other", {"v": gaussian(4, 4)}))
    with pytest.raises(UserError, match=r"tensor 'w' has shape \[4, 5\], expected \[4, 4\]"):
        weights.compare(one, folder(tmp_path / "wide", {"w": gaussian(4, 5)}))
    with pytest.raises(UserError, match="tensor 'w' holds NaN or inf"):
        weights.compare(one, folder(tmp_path / "nan", {"w": gaussian(4, 4) / 0}))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/model.safetensors").write_bytes((one / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        weights.compare(one, tmp_path / "torn")
    with pytest.raises(UserError, match="pickled weights are not read"):
        weights.compare(one, tmp_path)
