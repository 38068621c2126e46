"""`touchstone methods`: the recipes, one of them, what sets two apart, or docs/METHODS.md."""

from __future__ import annotations

import argparse


def methods(options: argparse.Namespace) -> int:
    from pipelines.rl import RECIPES, recipe, table
    from tasks import settings

    if options.markdown:
        print(table.markdown(settings.root() / "tests" / "rl"), end="")
    elif options.diff:
        first, second = (recipe(name) for name in options.diff)
        for slot, left, right in table.differences(first, second):
            print(f"{slot}:\n  {first.name}: {left}\n  {second.name}: {right}")
    elif options.name:
        print(table.describe(recipe(options.name)))
    else:
        for row in RECIPES.values():
            print(f"{row.name:<22} {row.fidelity:<14} {row.paper}")
    return 0
