"""Merge rules against the worked numbers of their papers, and what must hold for any input."""

import pytest
import torch
from torch import tensor

from pipelines.errors import UserError
from pipelines.merging import METHODS
from pipelines.merging.methods import linear, overlap, ram, ram_plus, task_arithmetic, ties


def experts(*deltas: list[float], base: torch.Tensor | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    base = torch.zeros(len(deltas[0])) if base is None else base
    return base, [base + tensor(delta) for delta in deltas]


def random_inputs(count: int = 3, size: int = 257) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, generator=generator), [torch.randn(size, generator=generator) for _ in range(count)]


def test_linear_is_the_weighted_mean() -> None:
    base, models = experts([1.0, 4.0], [3.0, 0.0])
    assert linear(base, models).tolist() == [2.0, 2.0]
    assert linear(base, models, weights=[1, 0]).tolist() == [1.0, 4.0]
    assert linear(base, models, weights=[3, 1]).tolist() == [1.5, 3.0]
    assert linear(base, models, weights=[3, 1], normalize=False).tolist() == [6.0, 12.0]


def test_task_arithmetic_adds_scaled_deltas_to_the_base() -> None:
    base, models = experts([0.5, -1.0], [0.25, 2.0], base=tensor([1.0, 1.0]))
    assert task_arithmetic(base, models).tolist() == [1.75, 2.0]
    assert task_arithmetic(base, models, scale=0.5).tolist() == [1.375, 1.5]
    assert task_arithmetic(base, models, weights=[2, 0], normalize=True).tolist() == [1.5, 0.0]
    assert task_arithmetic(base, models[:1]).tolist() == models[0].tolist()


def test_ties_worked_example() -> None:
    base, models = experts([1, -2, 3, 0.1], [1, 1, -1, 0.2])
    assert ties(base, models, density=1.0).tolist() == pytest.approx([1, -2, 3, 0.15])
    # Trimmed to the two largest of four: [0,-2,3,0] and [1,1,-1,0] (three tie at 1 and are all kept).
    assert ties(base, models, density=0.5).tolist() == pytest.approx([1, -2, 3, 0])
    assert ties(base, models, density=1.0, normalize=False, scale=2.0).tolist() == pytest.approx([4, -4, 6, 0.6])


def test_ties_breaks_a_draw_of_signs_upwards() -> None:
    base, models = experts([2.0], [-2.0])
    assert ties(base, models, density=1.0).tolist() == [2.0]


def test_ties_keeps_at_least_one_entry_of_a_small_tensor() -> None:
    base, models = experts([0.1, 5.0, 0.2])
    assert ties(base, models, density=0.01).tolist() == [0.0, 5.0, 0.0]


def test_ram_worked_example() -> None:
    base, models = experts([0.1, 0, 0.4], [0, 0.2, 0.2])
    assert ram(base, models).tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_ram_adds_disjoint_deltas_whole() -> None:
    base = torch.linspace(-1, 1, 6)
    base, models = experts([0.5, 0, 0, 0, 0, 0], [0, 0, -0.25, 0, 0, 0], [0, 0, 0, 0, 1, 0], base=base)
    expected = base + tensor([0.5, 0, -0.25, 0, 1, 0])
    assert torch.equal(ram(base, models), expected)


def test_ram_of_equal_experts_is_the_expert_to_the_last_bit() -> None:
    base, (expert, *_) = random_inputs()
    for copies in (1, 2, 3, 5):
        assert torch.equal(ram(base, [expert] * copies), expert)


def test_ram_ignores_what_did_not_change() -> None:
    base, models = experts([1e-6, 0.5], [0.25, 0.0])
    assert ram(base, models).tolist() == [0.25, 0.5]
    assert ram(base, models, eps=1e-7).tolist() == pytest.approx([(1e-6 + 0.25) / 2, 0.5])


def test_ram_plus_worked_example() -> None:
    base, models = experts([0.1, 0, 0.4], [0, 0.2, 0.2])
    assert overlap(base, models).tolist() == [[1, 1], [1, 1]]
    assert ram_plus(base, models).tolist() == pytest.approx([0.102, 0.204, 0.3])
    # Counts of a whole model in which expert 1 shares 1 of 11 changes: rho = 0.1, below the cap.
    whole = tensor([[10, 1], [0, 5]])
    assert ram_plus(base, models, whole).tolist() == pytest.approx([0.101, 0.204, 0.3])
    assert ram_plus(base, models, whole, scope="tensor").tolist() == pytest.approx([0.102, 0.204, 0.3])
    assert torch.equal(ram_plus(base, models, r=0.0), ram(base, models))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_order_of_experts_does_not_matter(name: str) -> None:
    base, models = random_inputs()
    torch.testing.assert_close(METHODS[name](base, models), METHODS[name](base, models[::-1]))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_one_expert_at_full_strength_is_itself(name: str) -> None:
    base, models = random_inputs(1)
    settings = {"ties": {"density": 1.0}, "ram_plus": {"r": 0.0}}.get(name, {})
    torch.testing.assert_close(METHODS[name](base, models, **settings), models[0])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_inputs_are_not_written_to(name: str) -> None:
    base, models = random_inputs()
    before = [base.clone(), *(model.clone() for model in models)]
    METHODS[name](base, models)
    assert all(torch.equal(now, then) for now, then in zip([base, *models], before, strict=True))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("linear", {"weights": [1, 2]}, "weights has 2 entries for 3 models"),
        ("linear", {"weights": [1, -1, 0]}, "add up to 0"),
        ("ties", {"density": 0.0}, "density must lie in"),
    ],
)
def test_settings_that_cannot_be_used(name: str, settings: dict[str, object], message: str) -> None:
    base, models = random_inputs()
    with pytest.raises(UserError, match=message):
        METHODS[name](base, models, **settings)
