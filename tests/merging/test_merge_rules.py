"""Merge rules against plain implementations of whole tensors, the worked numbers of their papers, and what must hold for any input."""

import numpy as np
import pytest
import torch
from torch import tensor

from pipelines.errors import UserError
from pipelines.merging import METHODS, merge_tensors, tensors
from pipelines.merging.ram import overlap, ram_plus
from pipelines.merging.tensors import collect, loaded, ranked

SIZES = {"matrix": (37, 53), "vector": (61,), "cube": (5, 6, 7)}
ALL = sorted(METHODS)


def experts(*deltas: list[float], base: torch.Tensor | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    base = torch.zeros(len(deltas[0])) if base is None else base
    return base, [base + tensor(delta) for delta in deltas]


def random_inputs(method: str = "", shape: tuple[int, ...] = (257,), count: int = 3) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and as many experts as the method takes, close to the base and unchanged in half of their entries."""
    count = {"slerp": 1, "nuslerp": 2}.get(method, count)
    generator = torch.Generator().manual_seed(1)

    def draw() -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    base = draw()
    return base, [base + 0.3 * draw() * (draw() > 0) for _ in range(count)]


def usual(method: str) -> dict[str, object]:
    """Settings with which a method does what it is for."""
    if method == "slerp":
        return {"t": 0.3}
    if method.startswith(("ties", "dare", "della", "breadcrumbs")):
        return {"density": [0.4, 0.6, 0.8], "weight": [1.0, 0.5, 2.0], "lambda": 0.7}
    return {"weight": [0.3, 0.9, 2.0][: {"nuslerp": 2}.get(method, 3)]} if method in ("linear", "task_arithmetic", "nuslerp") else {}


# One plain float64 implementation each, over whole arrays. T: deltas (N, ...), B: base, W: weights.


def add(base, taus, weights, scale, normalize, elect):
    weighted = [w * t for w, t in zip(weights, taus, strict=True)]
    if not elect:
        return base + scale * sum(weighted) / (sum(weights) if normalize else 1)
    positive = sum(weighted) >= 0
    agree = [(x != 0) & ((x > 0) == positive) for x in weighted]
    count = sum(w * a for w, a in zip(weights, agree, strict=True))
    merged = sum(x * a for x, a in zip(weighted, agree, strict=True))
    return base + scale * (merged / np.where(count == 0, 1, count) if normalize else merged)


def largest(tau, density, gamma=0.0):
    keep = max(1, int(density * tau.size))
    low = max(0, tau.size - keep - int(gamma * tau.size))
    mask = np.zeros(tau.size)
    mask[np.argsort(np.abs(tau).ravel(), kind="stable")[low : low + keep]] = 1
    return tau * mask.reshape(tau.shape)


def drawn(group, i):
    (chunk,) = group.rows() if len(group.shape) > 1 else group.chunks()
    return group.uniform(i, chunk).reshape(group.shape).numpy()


def della(tau, density, spread, uniform):
    rows = tau.reshape(-1, tau.shape[-1])
    ranks = np.abs(rows).argsort(-1, kind="stable").argsort(-1) / (rows.shape[1] - 1)
    p = (density - spread + 2 * spread * ranks).reshape(tau.shape)
    return np.where(uniform < p, tau / p, 0)


def sphere(a, b, t, chord=1.0):
    cos = (a * b).sum(-1, keepdims=True) / np.sqrt((a * a).sum(-1, keepdims=True) * (b * b).sum(-1, keepdims=True))
    w = np.arccos(np.clip(cos, -1, 1))
    arc = (np.sin((1 - t) * w) * a + np.sin(t * w) * b) / np.sin(w)
    return np.where(np.abs(cos) > chord, (1 - t) * a + t * b, arc)


def widen(base, taus, embedding=False):
    if base.ndim == 1:
        moved = [np.abs(taus)]
    else:
        flat = [x.reshape(len(x), -1) for x in (base, *(base + tau for tau in taus))]
        flat = [x.T if embedding else x for x in flat]
        m = [np.linalg.norm(x, axis=0) for x in flat]
        d = [x / n for x, n in zip(flat, m, strict=True)]
        turned = 1 - (np.array(d[1:]) * d[0]).sum(1)
        moved = [np.abs(np.array(m[1:]) - m[0]), np.where(turned < 1e-12, 0, turned)]  # what nothing turned is a tie
    scores = []
    for values in moved:
        places = values.argsort(-1, kind="stable").argsort(-1)
        soft = np.exp(places / values.shape[1]) / np.exp(places / values.shape[1]).sum(0)
        scores.append(np.where(2 * places > values.shape[1] - 1, 1.0, soft))
    weights = np.mean(scores, 0)
    if base.ndim == 1:
        return base + (weights * taus).sum(0)
    return base + sum((w[:, None] if embedding else w) * tau.reshape(len(base), -1) for w, tau in zip(weights, taus, strict=True)).reshape(base.shape)


def reference(method, base, models, name=""):
    group = loaded(base, models, name)
    b, x = base.double().numpy(), [model.double().numpy() for model in models]
    taus = np.array([model - b for model in x])
    s = usual(method)
    w, scale, shares = s.get("weight"), s.get("lambda", 1), s.get("density")
    elect = method in ("ties", "dare_ties", "della", "breadcrumbs_ties")
    if method == "linear":
        return sum(a * v for a, v in zip(w, x, strict=True)) / sum(w)
    if method == "task_arithmetic":
        return add(b, taus, w, scale, False, False)
    if method.startswith(("ties", "breadcrumbs")):
        gamma = 0.0 if method == "ties" else 0.01
        return add(b, [largest(tau, share, gamma) for tau, share in zip(taus, shares, strict=True)], w, scale, method == "ties", elect)
    if method.startswith("dare"):
        kept = [np.where(drawn(group, i) < share, tau / share, 0) for i, (tau, share) in enumerate(zip(taus, shares, strict=True))]
        return add(b, kept, w, scale, False, elect)
    if method.startswith("della"):
        kept = [della(tau, share, 0.15, drawn(group, i)) for i, (tau, share) in enumerate(zip(taus, shares, strict=True))]
        return add(b, kept, w, scale, method == "della", elect)
    if method == "slerp":
        return sphere(b.ravel(), x[0].ravel(), 0.3, 0.9995).reshape(b.shape)
    if method == "nuslerp":
        return b + sphere(taus[0].ravel(), taus[1].ravel(), w[1] / sum(w)).reshape(b.shape)
    if method == "model_stock":
        flat = taus.reshape(len(taus), -1)
        unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        cos = np.mean([unit[i] @ unit[j] for i in range(3) for j in range(i)])
        t = 3 * cos / (1 + 2 * cos)
        return t * np.mean(x, 0) + (1 - t) * b
    if method == "widen":
        return widen(b, taus)
    masks = np.abs(taus) > 1e-3 * np.maximum(np.abs(x), np.abs(b))
    count = masks.sum(0)
    unique = (masks & (count == 1)).reshape(3, -1).sum(1)
    shared = masks.reshape(3, -1).sum(1) - unique
    growth = 1 + 0.1 * np.minimum(shared / unique, 0.2) if method != "ram" else np.ones(3)
    scaled = [np.where(count == 1, g, 1 / np.maximum(count, 1)) * m * tau for g, m, tau in zip(growth, masks, taus, strict=True)]
    return b + sum(scaled)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("method", ALL)
def test_every_method_is_its_plain_formula(method, shape, monkeypatch):
    """Walked in one piece or in many: the same but for rounding, and for elementwise and random methods to the last bit."""
    base, models = random_inputs(method, SIZES[shape])
    before = [base.clone(), *(model.clone() for model in models)]
    expected = torch.from_numpy(reference(method, base, models)).float()
    whole = merge_tensors(method, base, models, **usual(method))
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=2e-6)
    monkeypatch.setattr(tensors, "CHUNK", 40)
    pieces = merge_tensors(method, base, models, **usual(method))
    torch.testing.assert_close(pieces, whole, rtol=1e-6, atol=1e-6)
    if method not in ("slerp", "nuslerp", "model_stock", "widen"):
        assert torch.equal(pieces, whole)
    assert all(torch.equal(now, then) for now, then in zip([base, *models], before, strict=True)), "inputs are not written to"


@pytest.mark.parametrize("by_column", [False, True])
def test_nuslerp_by_rows_and_columns(by_column):
    base, models = random_inputs("nuslerp", (9, 7))
    a, b = ((model - base).double().numpy() for model in models)
    expected = sphere(a.T, b.T, 0.5).T if by_column else sphere(a, b, 0.5)
    merged = merge_tensors("nuslerp", base, models, nuslerp_flatten=False, nuslerp_row_wise=by_column)
    torch.testing.assert_close(merged, base + torch.from_numpy(expected).float())
    alone = merge_tensors("nuslerp", None, models, weight=[1, 3])
    torch.testing.assert_close(alone.flatten(), torch.from_numpy(sphere(*(m.double().numpy().ravel() for m in models), 0.75)).float())


def test_widen_scores_the_tokens_of_an_embedding():
    base, models = random_inputs(shape=(11, 5))
    taus = np.array([(model - base).double().numpy() for model in models])
    merged = merge_tensors("widen", base, models, name="model.embed_tokens.weight")
    torch.testing.assert_close(merged, torch.from_numpy(widen(base.double().numpy(), taus, embedding=True)).float())


@pytest.mark.parametrize(
    ("method", "settings", "base", "deltas", "merged"),
    [
        ("linear", {}, [0, 0], [[1, 4], [3, 0]], [2, 2]),
        ("linear", {"weight": [1, 0]}, [0, 0], [[1, 4], [3, 0]], [1, 4]),
        ("linear", {"weight": [3, 1]}, [0, 0], [[1, 4], [3, 0]], [1.5, 3]),
        ("linear", {"weight": [3, 1], "normalize": False}, [0, 0], [[1, 4], [3, 0]], [6, 12]),
        ("task_arithmetic", {}, [1, 1], [[0.5, -1], [0.25, 2]], [1.75, 2]),
        ("task_arithmetic", {"lambda": 0.5}, [1, 1], [[0.5, -1], [0.25, 2]], [1.375, 1.5]),
        ("task_arithmetic", {"weight": [2, 0], "normalize": True}, [1, 1], [[0.5, -1], [0.25, 2]], [1.5, 0]),
        ("ties", {}, [0] * 4, [[1, -2, 3, 0.1], [1, 1, -1, 0.2]], [1, -2, 3, 0.15]),
        # trimmed to the two largest of four: [0, -2, 3, 0] and [1, 1, -1, 0] (three tie at 1 and are all kept)
        ("ties", {"density": 0.5}, [0] * 4, [[1, -2, 3, 0.1], [1, 1, -1, 0.2]], [1, -2, 3, 0]),
        ("ties", {"normalize": False, "lambda": 2}, [0] * 4, [[1, -2, 3, 0.1], [1, 1, -1, 0.2]], [4, -4, 6, 0.6]),
        ("ties", {"weight": [1, 3]}, [0], [[2], [-2]], [-2]),
        ("ties", {}, [0], [[2], [-2]], [2]),
        ("ties", {"density": 0.01}, [0] * 3, [[0.1, 5, 0.2]], [0, 5, 0]),
        ("ties", {"density": 0.5, "rescale": True}, [0] * 4, [[1, -2, 3, 0]], [0, -2.4, 3.6, 0]),
        # of ten entries the largest goes (gamma), then the smallest until five are left
        ("breadcrumbs", {"density": 0.5, "gamma": 0.1}, [0] * 10, [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]], [0, 0, 0, 0, 5, 6, 7, 8, 9, 0]),
        ("breadcrumbs", {"density": 0.9, "gamma": 0.3}, [0] * 10, [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]], [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]),
        ("breadcrumbs", {"density": 0.5, "gamma": 0.01}, [0] * 4, [[1, 2, 3, 4]], [0, 0, 3, 4]),
        # right angle: sin(pi/4) / sin(pi/2) of each
        ("slerp", {"t": 0.5}, [1, 0], [[-1, 1]], [2**-0.5, 2**-0.5]),
        ("nuslerp", {}, [0, 0], [[1, 0], [0, 1]], [2**-0.5, 2**-0.5]),
        ("model_stock", {}, [5, 5], [[1, 0], [0, 1]], [5, 5]),
        ("model_stock", {}, [5, 5], [[1, 2], [1, 2]], [6, 7]),
        ("model_stock", {}, [1, 1], [[1e-5, 0], [1e-5, 0]], [1 + 1e-5, 1]),
        ("ram", {}, [0] * 3, [[0.1, 0, 0.4], [0, 0.2, 0.2]], [0.1, 0.2, 0.3]),
        # a change is a share of the weight, whatever its size: 9e-4 of it is none, 2e-3 is one
        ("ram", {}, [1, 1], [[9e-4, 0.5], [0.25, 0]], [1.25, 1.5]),
        ("ram", {}, [1e-6, 1e-6], [[9e-10, 5e-7], [2e-9, 0]], [1.002e-6, 1.5e-6]),
        ("ram", {"changed_above": 1e-4}, [1, 1], [[9e-4, 0.5], [0.25, 0]], [1 + (9e-4 + 0.25) / 2, 1.5]),
        ("ram", {"changed_above": 1e-5, "absolute": True}, [0, 0], [[1e-6, 0.5], [0.25, 0]], [0.25, 0.5]),
        ("ram", {"changed_above": 1e-7, "absolute": True}, [0, 0], [[1e-6, 0.5], [0.25, 0]], [(1e-6 + 0.25) / 2, 0.5]),
        ("ram_plus", {}, [0] * 3, [[0.1, 0, 0.4], [0, 0.2, 0.2]], [0.102, 0.204, 0.3]),
        ("ramplus_tl", {}, [0] * 3, [[0.1, 0, 0.4], [0, 0.2, 0.2]], [0.102, 0.204, 0.3]),
        ("ram_plus", {"scaling": "script"}, [0] * 3, [[0.1, 0, 0.4], [0, 0.2, 0.2]], [0.11, 0.22, 0.3]),
        ("ram_plus", {"scaling": "script", "r": 1.0}, [0] * 3, [[0.1, 0, 0.4], [0, 0.2, 0.2]], [0.1, 0.2, 0.3]),
    ],
)
def test_worked_numbers(method, settings, base, deltas, merged):
    start, models = experts(*deltas, base=tensor(base, dtype=torch.float32))
    torch.testing.assert_close(merge_tensors(method, start, models, **settings), tensor(merged, dtype=torch.float32), rtol=1e-6, atol=1e-13)


def test_model_stock_of_three_at_sixty_degrees():
    """N = 3, c = 0.5: t = 3 * 0.5 / (1 + 2 * 0.5) = 0.75."""
    base, models = experts([1, 1, 0], [1, 0, 1], [0, 1, 1])
    torch.testing.assert_close(merge_tensors("model_stock", base, models), tensor([0.5, 0.5, 0.5]))
    rows = [model.repeat(2, 1) for model in models]
    torch.testing.assert_close(merge_tensors("model_stock", base.repeat(2, 1), rows, filter_wise=True), tensor([[0.5] * 3] * 2))


def test_ram_plus_takes_the_counts_of_the_whole_model_where_it_has_them():
    base, models = experts([0.1, 0, 0.4], [0, 0.2, 0.2])
    group = loaded(base, models)
    assert overlap(group).tolist() == [[1, 1], [1, 1]]
    # expert 1 shares 1 of 11 changes: ratio 1/10 by the paper, below its cap, and 1/11 by the script
    group = loaded(base, models, whole=tensor([[10, 1], [0, 5]]))
    assert collect(group, ram_plus(group)).tolist() == pytest.approx([0.101, 0.204, 0.3])
    assert collect(group, ram_plus(group, scope="tensor")).tolist() == pytest.approx([0.102, 0.204, 0.3])
    assert collect(group, ram_plus(group, scaling="script")).tolist() == pytest.approx([0.1 * (1 + 0.2 / 11), 0.24, 0.3])


def test_ram_of_equal_experts_is_the_expert_and_of_disjoint_ones_their_sum_to_the_last_bit():
    base, (expert, *_) = random_inputs()
    for copies in (1, 2, 3, 5):
        assert torch.equal(merge_tensors("ram", base, [expert] * copies, changed_above=0.0), expert)
    base, models = experts([0.5, 0, 0, 0], [0, 0, -0.25, 0], [0, 0, 0, 1], base=torch.linspace(-1, 1, 4))
    assert torch.equal(merge_tensors("ram", base, models), base + tensor([0.5, 0, -0.25, 1]))


@pytest.mark.parametrize("method", [name for name in ALL if name not in ("slerp", "nuslerp")])
def test_order_of_experts_does_not_matter(method):
    base, models = random_inputs()
    settings = {"density": 0.5} if "ties" in method and not method.startswith("dare") else {}
    torch.testing.assert_close(merge_tensors(method, base, models, **settings), merge_tensors(method, base, models[::-1], **settings))


@pytest.mark.parametrize("method", [name for name in ALL if name not in ("nuslerp", "model_stock")])
def test_one_expert_at_full_strength_is_itself_and_none_changed_is_the_base(method):
    base, models = random_inputs(count=1, shape=(7, 9))
    settings = {"t": 1.0} if method == "slerp" else {}
    torch.testing.assert_close(merge_tensors(method, base, models[:1], **settings), models[0])
    same = [base.clone()] if method == "slerp" else [base.clone(), base.clone()]
    torch.testing.assert_close(merge_tensors(method, base, same, **settings), base)


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_the_expectation_over_seeds_is_the_delta(method):
    base, tau = torch.zeros(200, 10), torch.linspace(-1, 1, 10).repeat(200, 1)
    draws = torch.stack([merge_tensors(method, base, [tau], seed=seed, density=0.5) for seed in range(50)])
    assert not torch.equal(draws[0], draws[1])
    # 10,000 draws a column of standard deviation at most |tau| * sqrt((1 - p) / p), p = 0.35 at least
    torch.testing.assert_close(draws.mean((0, 1)), tau[0], rtol=0, atol=4 * (0.65 / 0.35 / 10_000) ** 0.5)
    assert (draws != 0).float().mean() == pytest.approx(0.5, abs=0.01)


def test_della_keeps_the_larger_more_often_and_without_spread_is_dare():
    base, tau = torch.zeros(1000, 10), torch.arange(1.0, 11.0).repeat(1000, 1)
    kept = (merge_tensors("della_linear", base, [tau], density=0.5, epsilon=0.4) != 0).float().mean(0)
    torch.testing.assert_close(kept, torch.linspace(0.1, 0.9, 10), rtol=0, atol=0.06)
    flat = merge_tensors("della_linear", base, [tau], density=0.5, epsilon=0.0)
    assert torch.equal(flat, merge_tensors("dare_linear", base, [tau], density=0.5))
    single = merge_tensors("della", torch.zeros(100, 1), [torch.ones(100, 1)], density=0.5)
    assert set(single.flatten().tolist()) == {0.0, 2.0}, "a row of one entry has no ranks"


def test_random_streams_differ_by_tensor_expert_and_seed():
    base, tau = torch.zeros(64), torch.ones(64)

    def kept(name="a", seed=0, number=0):
        return (merge_tensors("dare_linear", base, [base] * number + [tau], name=name, seed=seed, density=0.5) != 0).tolist()

    assert kept() == kept()
    assert len({str(kept()), str(kept(name="b")), str(kept(seed=1)), str(kept(number=1))}) == 4


def test_order_statistics_are_those_of_a_sort(monkeypatch):
    monkeypatch.setattr(tensors, "CHUNK", 100)
    base = torch.zeros(1000)
    mixed = torch.cat([torch.zeros(300), torch.full((300,), 0.5), torch.randn(399) * 1e-30, tensor([3e38])])
    models = [torch.randn(1000), mixed]
    wanted = [[0, 1, 499, 999], [0, 299, 300, 650, 998, 999]]
    for model, ranks, found in zip(models, wanted, ranked(loaded(base, models), wanted), strict=True):
        assert found == model.abs().sort().values[ranks].tolist()


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("linear", {"weight": [1, 2]}, "weight has 2 entries for 3 models"),
        ("linear", {"weight": [1, -1, 0]}, "add up to 0"),
        ("ties", {"density": 0.0}, r"density must lie in \(0, 1\], got 0"),
        ("della", {"density": 0.9}, "density - epsilon to density \\+ epsilon must lie in"),
        ("slerp", {"t": 0.5}, "takes the base and one model, got 3"),
        ("slerp", {}, "setting 't' is missing"),
        ("ram", {"epsilon": 0.003}, "'epsilon', a distance, has become 'changed_above', a share of the weight .* with absolute: true"),
        ("nuslerp", {}, "takes two models, got 3"),
        ("ties", {"densty": 1}, "unknown setting 'densty'; did you mean 'density'"),
        ("ram_plus", {"scaling": "other"}, "setting 'scaling': expected"),
    ],
)
def test_settings_that_cannot_be_used(method, settings, message):
    base, models = random_inputs()
    with pytest.raises(UserError, match=message):
        merge_tensors(method, base, models, **settings)
