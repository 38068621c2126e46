"""Which matrices of a model are decomposed within a budget, and what the ones that are say of all.

Matrices of one kind have the same name but for numbers (the layer's): a stratum. Kinds get one matrix each, then a second, and so on, while
the nominal cost (models/spectra.py) stays within the budget; each kind's depth is cut into as many equal parts as it has matrices, and of each part
a hash takes one. So a choice depends on names, shapes and the budget alone.

A mean over all matrices is sum_h N_h / N mean_h (h: kinds, N_h of whose matrices n_h were taken). Its standard error is that of a
stratified sample without replacement: sqrt(sum_h (N_h / N)^2 (1 - n_h / N_h) s_h^2 / n_h); a kind with one of several matrices has the
s^2 of the other kinds together. Even depth makes it too large rather than too small. The maximum of a sample is a lower bound.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from pipelines import seeding

NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Choice:
    """names: the matrices to decompose. kinds: kind -> all its names. seconds: nominal cost. left_out: kind -> nominal seconds of one."""

    names: frozenset[str]
    kinds: Mapping[str, Sequence[str]]
    seconds: float
    left_out: Mapping[str, float]


def choose(costs: Mapping[str, float], budget: float) -> Choice:
    """The matrices whose costs fit. costs: name -> nominal seconds."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in sorted(costs, key=_natural):
        kinds[NUMBER.sub("*", name)].append(name)
    price = {kind: max(costs[name] for name in names) for kind, names in kinds.items()}
    counts, spent = dict.fromkeys(kinds, 0), 0.0
    growing = sorted(kinds, key=lambda kind: (price[kind], kind))
    while growing:
        again = []
        for kind in growing:
            if spent + price[kind] <= budget:
                spent += price[kind]
                counts[kind] += 1
                if counts[kind] < len(kinds[kind]):
                    again.append(kind)
        growing = again
    names = frozenset(name for kind, count in counts.items() for name in _spread(kinds[kind], count))
    return Choice(names, kinds, spent, {kind: price[kind] for kind in sorted(kinds) if not counts[kind]})


def mean(values: Mapping[str, float], kinds: Mapping[str, Sequence[str]]) -> tuple[float, float | None] | None:
    """(the mean over all matrices of the kinds that have a value, its standard error) from those of some; the error is None where
    nothing says how much they differ, the whole None without a value."""
    strata = [(len(names), [values[name] for name in names if name in values]) for names in kinds.values()]
    strata = [(size, taken) for size, taken in strata if taken]
    if not strata:
        return None
    total = sum(size for size, _ in strata)
    estimate = sum(size / total * fmean(taken) for size, taken in strata)
    several = [taken for _, taken in strata if len(taken) > 1]
    degrees = sum(len(taken) - 1 for taken in several)
    pooled = sum((len(taken) - 1) * variance(taken) for taken in several) / degrees if degrees else None
    error = 0.0
    for size, taken in strata:
        if size == len(taken):
            continue
        spread = variance(taken) if len(taken) > 1 else pooled
        if spread is None:
            return estimate, None
        error += (size / total) ** 2 * (1 - len(taken) / size) * spread / len(taken)
    return estimate, math.sqrt(error)


def median(values: Mapping[str, float], kinds: Mapping[str, Sequence[str]]) -> float | None:
    """The median over all matrices of those kinds: each value stands for as many as its kind has for each that was taken."""
    weighted = []
    for names in kinds.values():
        taken = [values[name] for name in names if name in values]
        weighted += [(value, len(names) / len(taken)) for value in taken]
    weighted.sort()
    half, below = sum(weight for _, weight in weighted) / 2, 0.0
    for place, (value, weight) in enumerate(weighted):
        below += weight
        if below > half:
            return value
        if below == half:  # an even number
            return (value + weighted[place + 1][0]) / 2
    return None


def _spread(names: Sequence[str], count: int) -> list[str]:
    """One of each of `count` equal parts of the names."""
    ends = [round(part * len(names) / count) for part in range(count + 1)] if count else []
    return [names[low + seeding.key(names[low], count) % (high - low)] for low, high in itertools.pairwise(ends)]


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
