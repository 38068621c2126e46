"""The recipes as text for people: one row, what sets two apart, and docs/METHODS.md, which is written from here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines import methods
from pipelines.rl.costs import GROUP, another_forward, cost, needs, reads
from pipelines.rl.demands import Need
from pipelines.rl.recipe import DATA_SLOTS, Recipe, names, recipe
from pipelines.rl.slots import SLOTS

_ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")

HEADER = """# Methods

Written by `touchstone methods --markdown`; a test fails when this file and the code differ. A row is an entry of
[recipes.yaml](../pipelines/rl/recipes.yaml). Two columns list what it says differently from the default row: in the data half, from a problem to a
batch, and in the objective half, from a batch to a loss. The default row:

    {default}

`needs`: what it cannot run without beside problems with verifiable answers (`solutions`, worked ones; `rates`, graded pass rates; another
`policy` in memory; a `teacher`; a `value` head). `answers`: the least and the most to a drawn problem, with groups of {group}. `reads` names
what it reads beside rewards, log-probabilities and masks; the loop computes that and no more (see [tensors.py](../pipelines/rl/tensors.py));
**bold** is what costs another forward pass. `fidelity`: *published* where every rule and constant is the paper's or its code's, *reconstructed*
where one was open or stands in for another (the notes say which). `test`: the row against hand-computed numbers; besides, every row is held to
`tests/rl/test_rl_invariances.py` (slicing, order, padding, masked rows, empty masks, finite differences), each kind of function to derivatives
written by hand (`test_rl_derivatives.py`), and trained in `tests/rl/test_rl_loop.py`.

| method | row | data half | objective half | needs | answers | reads | fidelity | test |
|---|---|---|---|---|---|---|---|---|
"""


def value(slot: Any) -> str:
    """A slot's content in a line."""
    if isinstance(slot, Mapping) and "name" in slot:
        settings = ", ".join(f"{key} {setting}" for key, setting in slot.items() if key != "name")
        return slot["name"] + (f" ({settings})" if settings else "")
    if isinstance(slot, Mapping):
        return "; ".join(f"{key}: " + ", ".join(f"{k} {v}" for k, v in settings.items()) for key, settings in slot.items()) or "none"
    return " + ".join(map(value, slot)) or "none"


def differences(first: Recipe, second: Recipe) -> list[tuple[str, str, str]]:
    """(slot, first's, second's) where they differ."""
    return [(slot, value(first.slots[slot]), value(second.slots[slot])) for slot in first.slots if first.slots[slot] != second.slots[slot]]


def describe(row: Recipe) -> str:
    """One row: paper, formula, fidelity, slots, what it reads, needs and costs."""
    lines = [row.name, f"  {row.paper}", f"  {row.formula}", f"  fidelity: {row.fidelity}"]
    lines += [f"  assumed: {row.assumed}"] if row.assumed else []
    lines += [f"  code variant: {row.code_variant}"] if row.code_variant else []
    lines += [f"  {slot}: {value(content)}" for slot, content in row.slots.items() if content or _single(slot)]
    lines += [f"  reads: {', '.join(reads(row)) or 'rewards and log-probabilities alone'}"]
    lines += [f"  needs: {', '.join(sorted(needs(row))) or 'problems with verifiable answers alone'}"]
    return "\n".join([*lines, f"  costs, with groups of {GROUP}: {cost(row)}"])


def found(part: str | None = None, paper: str | None = None, need: str | None = None) -> list[Recipe]:
    """The rows that differ from the default row in a slot, whose paper holds these words, and that cannot run without what is named.

    Raises:
        UserError: no such slot or need; names the nearest.
    """
    rows, default = [recipe(name) for name in names()], recipe("grpo")
    if part is not None:
        methods.choose("part", default.slots, part)
        rows = [row for row in rows if row.slots[part] != default.slots[part]]
    if paper is not None:
        rows = [row for row in rows if paper.casefold() in row.paper.casefold()]
    if need is not None:
        wanted = methods.choose("need", {each.value: each for each in Need}, need)
        rows = [row for row in rows if wanted in needs(row)]
    return rows


def worked_examples(folder: Path) -> dict[str, str]:
    """Row -> the file of its test `test_<row>`."""
    found = {}
    for path in sorted(folder.glob("test_rl_*.py")):
        found |= dict.fromkeys(re.findall(r"^def test_(\w+)\(", path.read_text(), re.MULTILINE), path.name)
    return {row: found[row] for row in names() if row in found}


def markdown(tests: Path) -> str:
    """docs/METHODS.md; `tests` is the folder of the worked examples."""
    rows, default, tested = [recipe(name) for name in names()], recipe("grpo"), worked_examples(tests)
    shown = "\n    ".join(f"{slot}: {value(content)}" for slot, content in default.slots.items() if content or _single(slot))
    text = [HEADER.format(default=shown, group=GROUP)]
    for row in rows:
        changed = differences(default, row)
        halves = ["; ".join(f"{slot} {theirs}" for slot, _, theirs in changed if (slot in DATA_SLOTS) is data) for data in (True, False)]
        heavy = another_forward(row)
        read = ", ".join(f"**{name}**" if name in heavy else name for name in reads(row))
        answers = " to ".join(str(count) for count in dict.fromkeys(cost(row).answers))
        cells = [_cite(row.paper), f"`{row.name}`", *halves, ", ".join(sorted(needs(row))), answers, read]
        text.append(f"| {' | '.join(cells)} | {row.fidelity} | {tested.get(row.name, '')} |\n")
    text.append("\n## Formulas and notes\n")
    for row in rows:
        text.append(f"\n**{row.name}**: {row.formula}\n")
        text += [f"\n- {label}: {note}\n" for label, note in (("assumed", row.assumed), ("code variant", row.code_variant)) if note]
    text.append("\n## What may stand in a slot\n")
    for name, slot in sorted({**SLOTS, **DATA_SLOTS}.items(), key=lambda pair: pair[1].several):
        text.append(f"\n**{name}**{' (a list)' if slot.several else ''}\n\n")
        text += [f"- `{function}`{_settings(f)}: {_summary(f)}\n" for function, f in slot.functions.items()]
    return "".join(text)


def _single(slot: str) -> bool:
    return slot in SLOTS and not SLOTS[slot].several


def _cite(paper: str) -> str:
    return _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


def _settings(function: Callable[..., Any]) -> str:
    shown = [
        name if parameter.default is inspect.Parameter.empty else f"{name}={parameter.default}"
        for name, parameter in methods.settings_of(function).items()
    ]
    return f" ({', '.join(shown)})" if shown else ""


def _summary(function: Callable[..., Any]) -> str:
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
