"""May the candidate become champion? The rules stand in params (evaluation.gate); the answer says which one decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config.evaluation import GateSettings
from pipelines.errors import UserError


def decide(settings: GateSettings, differences: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{passed, candidate, against, reasons}: one sentence per benchmark, in the order of the benchmarks.

    Raises:
        UserError: a benchmark to improve on is missing.
    """
    candidate, against = settings.candidate, settings.against
    compared = {d["benchmark"]: d for d in differences if (d["model"], d["against"], d["k"]) == (candidate, against, 1)}
    for name in settings.improve:
        if name not in compared:
            raise UserError(f"evaluation.gate.improve: there are no results on '{name}'")
    passed, reasons = True, []
    for name, d in compared.items():
        seen = f"{name}: pass@1 of {candidate} minus {against} is {d['mean']:+.3f}, 95 % interval {d['low']:+.3f} to {d['high']:+.3f}"
        if name in settings.improve:
            ok = d["low"] > 0
            reasons.append(f"{seen}; {'it lies above zero, as required' if ok else 'it had to lie above zero'}.")
        else:
            ok = d["mean"] >= -settings.tolerate
            reasons.append(f"{seen}; {'no fall beyond' if ok else 'it fell by more than'} the tolerated {settings.tolerate:.3f}.")
        passed = passed and ok
    return {"passed": passed, "candidate": candidate, "against": against, "reasons": reasons}
