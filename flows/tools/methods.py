"""`touchstone methods`: the recipes, one of them, or what sets two apart."""

from __future__ import annotations

import argparse
from typing import Any


def methods(options: argparse.Namespace) -> int:
    from pipelines.rl import RECIPES, recipe

    if options.diff:
        first, second = (recipe(name) for name in options.diff)
        rows: list[tuple[str, Any, Any]] = [(slot, first.slots[slot], second.slots[slot]) for slot in first.slots]
        rows.append(("regularisers", list(first.regularisers), list(second.regularisers)))
        for slot, left, right in rows:
            if left != right:
                print(f"{slot}:\n  {first.name}: {_slot(left)}\n  {second.name}: {_slot(right)}")
        return 0
    if options.name:
        row = recipe(options.name)
        print(f"{row.name}\n  {row.paper}\n  {row.formula}")
        for slot, value in row.slots.items():
            print(f"  {slot}: {_slot(value)}")
        print(f"  regularisers: {_slot(list(row.regularisers))}")
        return 0
    for row in RECIPES.values():
        print(f"{row.name:<12} {row.paper}")
    return 0


def _slot(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_slot, value)) or "none"
    settings = ", ".join(f"{key} {setting}" for key, setting in value.items() if key != "name")
    return value["name"] + (f" ({settings})" if settings else "")
