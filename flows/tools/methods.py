"""`touchstone methods`: the recipes, those that are sought, one of them, what sets two apart, or docs/METHODS.md."""

from __future__ import annotations

import argparse
import sys


def methods(options: argparse.Namespace) -> int:
    from pipelines.rl import recipe, table
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
        rows = table.found(options.part, options.paper, options.needs)
        for row in rows:
            print(f"{row.name:<22} {row.fidelity:<14} {row.paper}")
        if not rows:
            print("no such row", file=sys.stderr)
            return 1
    return 0
