"""Which of the rows that are left make up the set: at most so many of a kind, and given shares. Draws are by hash of the problem id."""

from __future__ import annotations

import functools
import math

import numpy as np
import pyarrow as pa

from pipelines import seeding
from pipelines.curation.deduplication import in_order
from pipelines.curation.steps import Apply, Batch, Decided, Inputs, Rows


def select(rows: Rows, inputs: Inputs) -> Apply:
    """At most `selection.at_most` rows of each kind; the others go as `over_quota`."""
    settings = inputs.settings.selection
    goes = {}
    for kind, drawn in _drawn(rows, settings.per, "select").items():
        detail = f"{len(drawn)} rows of {settings.per} {kind or 'none'}, at most {settings.at_most}"
        goes |= dict.fromkeys(drawn[settings.at_most :].tolist(), ("over_quota", detail))
    return Decided(goes)


def mix(rows: Rows, inputs: Inputs) -> Apply:
    """As many rows as the shares of `mix` allow; the others go as `over_share`, those of what has no share as `no_share`."""
    settings = inputs.settings.mix
    assert settings is not None  # the settings were checked
    drawn = _drawn(rows, settings.by, "mix")
    weights = {name: weight / sum(settings.shares.values()) for name, weight in settings.shares.items() if weight > 0}
    total = min(len(drawn.get(name, ())) / weight for name, weight in weights.items())
    total = min(total, settings.rows) if settings.rows else total
    goes = {}
    for name, numbers in drawn.items():
        if name not in weights:
            goes |= dict.fromkeys(numbers.tolist(), ("no_share", f"mix.shares does not name {settings.by} {name}"))
            continue
        most = math.floor(total * weights[name] + 1e-9)
        goes |= dict.fromkeys(numbers[most:].tolist(), ("over_share", f"{weights[name]:.1%} of {math.floor(total + 1e-9)} rows are {most}"))
    return Decided(goes)


def _drawn(rows: Rows, column: str, purpose: str) -> dict[str, np.ndarray]:
    """Kind -> its row numbers in the order in which they are drawn; of rows with one problem id the preferred first."""
    sketch = rows.sketch(functools.partial(_kinds, column, purpose))
    numbers = sketch.column("row").to_numpy()
    place = in_order(numbers, rows.preferred())
    place = place[np.argsort(sketch.column("draw").to_numpy()[place], kind="stable")]
    kinds = np.array(sketch.column("kind").to_pylist(), object)[place]
    return {kind: numbers[place[kinds == kind]] for kind in sorted(set(kinds.tolist()))}


def _kinds(column: str, purpose: str, batch: Batch) -> pa.Table:
    kinds = [", ".join(value) if isinstance(value, list) else str(value) for value in batch.texts(column)]
    draws = np.array([seeding.key(purpose, name) for name in batch.texts("problem_id")], np.uint64)
    return pa.table({"row": batch.rows, "kind": pa.array(kinds, pa.string()), "draw": draws})
