"""What a row of the table needs beside problems with verifiable answers, and what it costs beside sampling a group and the update's own pass.

What its tensors are of says their declaration; what its functions of the data half take, they say themselves (demands.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines import methods
from pipelines.rl.demands import Need, count_of, needs_of, passes_of
from pipelines.rl.recipe import DATA_SLOTS, Bound, Recipe
from pipelines.rl.roles import ROLES, roles_of
from pipelines.rl.tensors import TENSORS, When

ALWAYS = ("mask_BT", "reward_B", "group_B", "logp_old_BT", "logp_roll_BT", "logp_BT", "response_limit", "step")
"""What every run has."""
TEXTS = ("stored", "demonstrations")
"""Sources of roles that are no policy: what was written before."""
SAID = ("teachers", *TEXTS)
"""Sources of roles that teach."""
GROUP = 8
"""Answers of a group, in the costs that people are shown."""


@dataclass(frozen=True)
class Cost:
    """answers: the least and the most to one drawn problem, with groups of so many. passes: what is scored beside the update's own pass, a name for
    each forward pass. policies: the others that are held in memory, by role. value: whether a value head trains beside the policy."""

    answers: tuple[int, int]
    passes: tuple[str, ...]
    policies: tuple[str, ...]
    value: bool

    def __str__(self) -> str:
        least, most = self.answers
        said = [f"{least} answers" if least == most else f"{least} to {most} answers"]
        passes = f"{len(self.passes)} further {'pass' if len(self.passes) == 1 else 'passes'} ({', '.join(self.passes)})"
        said.append(passes if self.passes else "no further pass")
        held = [*self.policies, *(["value head"] if self.value else [])]
        return "; ".join([*said, f"in memory: {', '.join(held)}" if held else "nothing else in memory"])


def reads(row: Recipe) -> list[str]:
    """The tensors, beyond what every run has, that someone must supply: the loop does, by `pipelines.rl.score`."""
    return sorted(name for name in row.having(When.READ, When.BEFORE, When.LIVE) if row.read[name] and name not in ALWAYS)


def another_forward(row: Recipe) -> set[str]:
    """Which of them cost a forward pass beside the update's own."""
    asked = {name: TENSORS[name] for name in reads(row)}
    read = {name for name, d in asked.items() if (name in row.before if d.when is When.BEFORE else d.when is When.READ and not d.free)}
    return read | set(row.of_critic)


def needs(row: Recipe) -> frozenset[Need]:
    """What it cannot run without."""
    found = {need for function, _ in _data_half(row) for need in needs_of(function)}
    found |= {Need.TEACHER if role.source in SAID else Need.POLICY for role in roles_of(row).values()}
    if row.value_head or row.of_critic:
        found.add(Need.VALUE)
    if any(TENSORS[name].solution for name in row.needs):
        found.add(Need.SOLUTIONS)
    return frozenset(found)


def cost(row: Recipe, group: int = GROUP) -> Cost:
    """With `group` answers to a problem where the row does not say otherwise."""
    least = most = group
    for function, settings in _data_half(row):
        least, most = count_of(function)(least, **settings)[0], count_of(function)(most, **settings)[1]
    heavy = another_forward(row) - set(row.of_critic)
    passes = {TENSORS[name].role or ("the policy before the update" if TENSORS[name].when is When.BEFORE else name) for name in heavy}
    passes |= {"critic"} if row.of_critic else set()
    passes |= {name for function, _ in _data_half(row) for name in passes_of(function)}
    policies = tuple(name for name in roles_of(row) if ROLES[name].source not in TEXTS)
    return Cost((least, most * row.single["play"]().width), tuple(sorted(passes)), policies, row.value_head)


def _data_half(row: Recipe) -> Iterator[tuple[Bound, dict[str, object]]]:
    """The functions and classes of the data half, each with all its settings."""
    for slot, declared in DATA_SLOTS.items():
        for bound in row.lists[slot] if declared.several else (row.single[slot],):
            defaults = {name: p.default for name, p in methods.settings_of(bound.func).items()}  # type: ignore[attr-defined]
            yield bound.func, {**defaults, **bound.keywords}  # type: ignore[attr-defined]
