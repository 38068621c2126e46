"""NExt (arXiv 2604.11446): what a training would add next, predicted for each tensor from the leading directions of what it has added.

Of each matrix, at every kept step t, three deltas are taken: global theta_t - theta_0, local theta_t - theta_s with s the kept step before, and,
where step t + horizon is kept, target theta_(t + horizon) - theta_t; of each the first singular triplet (u, sigma, v). A predictor learns the
target's from the global's and the local's, one for all vectors of a length: each input through Linear(d, 256), Linear(256, d), ReLU, Linear(d, 256),
Linear(256, d), then both through Linear(2d, 256), Linear(256, 2d), ReLU, Linear(2d, 256), Linear(256, d); summed L1 loss over all steps at once,
AdamW, cosine to a tenth. What it says of the last step, u and v brought to length 1, is added: theta = theta_T + strength * sigma u v^T. Vectors
enter as they are.

Differences: of a triplet the largest entry of u is positive, since its sign is arbitrary; sigmas are learnt in units of the largest, vectors in units
of their longest; vectors have predictors of their own. A triplet is found by block power iteration over walks, so no matrix is held.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines import seeding
from pipelines.errors import UserError
from pipelines.merging.tensors import Chunk, Group, total
from pipelines.merging.trajectory import Floats, positions

HIDDEN = 256
TINY = 1e-12
BLOCK, WALKS = 4, 8
"""Columns of the power iteration, and walks over a tensor that it takes."""
Delta = tuple[int, int]
"""Numbers of the experts that it leads to and comes from; the base is -1."""
Each = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""each(function, values): the function of every value, in order, by threads that compute on one processor each."""
Parts = dict[str, Tensor]
"""A delta as what is learnt of it: `u`, `size` and `v` of a matrix, `raw` of a vector."""


@dataclass(frozen=True)
class Plan:
    """Which deltas are learnt from. asked: (global, local) of the last step. known: (global, local, target) of each step with a target."""

    asked: tuple[Delta, Delta]
    known: tuple[tuple[Delta, Delta, Delta], ...]

    @property
    def deltas(self) -> list[Delta]:
        return list(dict.fromkeys([*self.asked, *(delta for each in self.known for delta in each)]))


def lookahead(
    group: Group, *, target: float, steps: Sequence[float] | None = None, strength: float = 1.0, epochs: int = 1000, rate: float = 2e-5
) -> Iterator[Tensor]:
    """The tensor at step `target`: as many steps after the last as predictors have learnt to look ahead. strength: what the predicted delta is
    multiplied by; the paper chooses it among 0.5, 1, ..., 4 by validation. epochs, rate: of the predictors. Tells `length` and `update` as
    trajectory.py does."""
    plan(positions(steps, group.experts), target)
    parts: Parts = group.learnt if group.learnt and strength else {}
    moved = update = 0.0
    for chunk in group.rows() if len(group.shape) == 2 else group.chunks():
        last, base = chunk.experts[-1], chunk.base
        assert base is not None
        if "raw" in parts:
            made = last.add(parts["raw"][chunk.start : chunk.start + len(last)], alpha=strength)
        elif parts:
            first = chunk.start // group.width
            made = last.add(torch.outer(parts["u"][first : first + len(last)], parts["v"]), alpha=strength * float(parts["size"]))
        else:
            made = last
        moved, update = moved + total((made - base).square_()), update + total((last - base).square_())
        yield made
    group.tell({"length": math.sqrt(moved / update) if update else 0.0, "update": update})


def plan(at: Floats, target: float) -> Plan:
    """
    Raises:
        UserError: no two kept steps lie as far apart as the last and the target.
    """
    places = {float(step): place for place, step in enumerate(at)}
    horizon = target - at[-1]
    known = [(place, places[step + horizon]) for step, place in places.items() if step + horizon in places] if horizon > 0 else []
    if not known:
        raise UserError(
            f"merging: next looks {horizon:g} steps ahead to step {target:g}, and no two of the steps {', '.join(f'{step:g}' for step in at)} "
            "lie so far apart for it to learn from"
        )
    deltas = [((place, -1), (place, place - 1), (then, place)) for place, then in known]
    return Plan(((len(at) - 1, -1), (len(at) - 1, len(at) - 2)), tuple(deltas))


def learn(
    groups: Mapping[str, Group], each: Each, *, target: float, steps: Sequence[float] | None = None, strength: float = 1.0, epochs: int = 1000,
    rate: float = 2e-5,
) -> dict[str, Parts]:  # fmt: skip
    """What is predicted for each matrix and vector. The other arguments are those of `lookahead`."""
    names = [name for name, group in groups.items() if len(group.shape) in (1, 2) and group.size]
    if not names or strength == 0:
        return {}
    wanted = plan(positions(steps, groups[names[0]].experts), target)
    found: dict[str, dict[Delta, Parts]] = dict(zip(names, each(lambda name: taken_apart(groups[name], wanted.deltas), names), strict=True))
    alike: dict[tuple[bool, int], list[tuple[str, str]]] = defaultdict(list)
    for name, by in found.items():
        for part, values in by[wanted.asked[0]].items():
            alike[part == "raw", len(values)].append((name, part))

    def predicted(key: tuple[bool, int]) -> Tensor:
        """What comes of the members of a kind, in their units."""
        raw, length = key
        units = [_unit(found, part) for _, part in alike[key]]

        def rows(deltas: Sequence[Delta]) -> Tensor:
            return torch.stack([found[name][delta][part] / unit for delta in deltas for (name, part), unit in zip(alike[key], units, strict=True)])

        model = Predictor(length, groups[names[0]].seed, raw)
        _train(model, [rows(column) for column in zip(*wanted.known, strict=True)], epochs, rate)
        with torch.no_grad():
            return model(*(rows([delta]) for delta in wanted.asked)) * torch.tensor(units)[:, None]

    parts: dict[str, Parts] = defaultdict(dict)
    for key, values in zip(sorted(alike), each(predicted, sorted(alike)), strict=True):
        for (name, part), value in zip(alike[key], values, strict=True):
            parts[name][part] = value / value.norm().clamp(min=TINY) if part in ("u", "v") else value
    return dict(parts)


def _unit(found: Mapping[str, Mapping[Delta, Parts]], part: str) -> float:
    """What values of a part are divided by: the largest of all tensors and deltas; directions have length 1 as they are."""
    if part in ("u", "v"):
        return 1.0
    return max(float(parts[part].norm()) for by in found.values() for parts in by.values() if part in parts) or 1.0


class Predictor(nn.Module):
    """Of vectors of length d: (global, local) -> target."""

    def __init__(self, d: int, *seed: object) -> None:
        super().__init__()
        self.of_global, self.of_local, self.of_both = _layers(d, d), _layers(d, d), _layers(2 * d, d)
        draw = seeding.generator("next", *seed, d)
        with torch.no_grad():  # as torch does by default, but with a stream of its own
            for layer in (each for each in self.modules() if isinstance(each, nn.Linear)):
                for values in (layer.weight, layer.bias):
                    bound = layer.in_features**-0.5
                    values.copy_(torch.from_numpy(draw.uniform(-bound, bound, tuple(values.shape))))

    def forward(self, global_BD: Tensor, local_BD: Tensor) -> Tensor:
        return self.of_both(torch.cat([self.of_global(global_BD), self.of_local(local_BD)], -1))


def _layers(d: int, out: int) -> nn.Sequential:
    sizes = ((d, HIDDEN), (HIDDEN, d), (d, HIDDEN), (HIDDEN, out))
    first, second, third, fourth = (nn.utils.skip_init(nn.Linear, *size) for size in sizes)
    return nn.Sequential(first, second, nn.ReLU(), third, fourth)


def _train(model: Predictor, columns: Sequence[Tensor], epochs: int, rate: float) -> None:
    """Learn the third column from the first two."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs, rate / 10)
    global_BD, local_BD, target_BD = columns
    for _ in range(epochs):
        optimiser.zero_grad()
        (model(global_BD, local_BD) - target_BD).abs().sum().backward()
        optimiser.step()
        decay.step()


def taken_apart(group: Group, deltas: Sequence[Delta]) -> dict[Delta, Parts]:
    """Each delta of a matrix as its first singular triplet, of a vector as it is."""
    if len(group.shape) == 1:
        whole = [torch.cat(pieces) for pieces in zip(*([d.clone() for d in _differences(c, deltas)] for c in group.chunks()), strict=True)]
        return {delta: {"raw": values} for delta, values in zip(deltas, whole, strict=True)}
    columns = min(BLOCK, *group.shape)
    start = torch.from_numpy(seeding.generator("next", group.name).standard_normal((group.width, columns))).float()
    bases = [torch.linalg.qr(start)[0] for _ in deltas]
    for _ in range(WALKS - 2):
        bases = [torch.linalg.qr(product)[0] for product in _products(group, deltas, bases)]
    best = []
    for basis, product in zip(bases, _products(group, deltas, bases), strict=True):
        _, vectors = torch.linalg.eigh((basis.T @ product + product.T @ basis) / 2)
        best.append(basis @ vectors[:, -1])
    pieces: list[list[Tensor]] = [[] for _ in deltas]
    for chunk in group.rows():
        for found, delta, v in zip(pieces, _differences(chunk, deltas), best, strict=True):
            found.append(delta @ v)
    return {delta: _triplet(torch.cat(found), v) for delta, found, v in zip(deltas, pieces, best, strict=True)}


def _triplet(projected: Tensor, v: Tensor) -> Parts:
    """u, sigma, v of D v; the largest entry of u is positive."""
    size = projected.norm()
    u = projected / size if size > 0 else torch.zeros_like(projected)
    sign = -1.0 if u[u.abs().argmax()] < 0 else 1.0
    return {"u": sign * u, "size": size.reshape(1), "v": sign * v}


def _products(group: Group, deltas: Sequence[Delta], bases: Sequence[Tensor]) -> list[Tensor]:
    """D^T D V of each delta D and its basis V, in one walk."""
    sums = [torch.zeros_like(basis) for basis in bases]
    for chunk in group.rows():
        for whole, delta, basis in zip(sums, _differences(chunk, deltas), bases, strict=True):
            whole.add_(delta.T @ (delta @ basis))
    return sums


def _differences(chunk: Chunk, deltas: Sequence[Delta]) -> Iterator[Tensor]:
    assert chunk.base is not None
    for to, since in deltas:
        yield chunk.experts[to] - (chunk.base if since < 0 else chunk.experts[since])
