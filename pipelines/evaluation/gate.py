"""May the candidate become champion? The rules stand in params (evaluation.gate); the answer says which of them decided.

Rules are written down before the run and all must hold, so each is tested at its own level: demanding all of them makes a false pass
rarer, not likelier (intersection-union test), and nothing is adjusted for their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config.evaluation import GateSettings
from pipelines.errors import UserError


def decide(settings: GateSettings, differences: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{passed, candidate, against, rules, decided_by, worst, reasons}: one rule and one sentence per benchmark, in the order of the benchmarks.

    decided_by: the rules that failed, or all of them where none did. worst: the benchmark with the largest fall, None without a fall.

    Raises:
        UserError: a benchmark that a rule names is missing.
    """
    candidate, against = settings.candidate, settings.against
    compared = {d["benchmark"]: d for d in differences if (d["model"], d["against"], d["k"]) == (candidate, against, 1)}
    for key, names in (("improve", settings.improve), ("retain", settings.retain)):
        for name in names:
            if name not in compared:
                raise UserError(f"evaluation.gate.{key}: there are no results on '{name}'")
    rules = [_rule(settings, d) for d in compared.values()]
    failed = [rule["name"] for rule in rules if not rule["passed"]]
    fallen = min((d for d in compared.values() if d["mean"] < 0), key=lambda d: d["mean"], default=None)
    return {
        "passed": not failed,
        "candidate": candidate,
        "against": against,
        "rules": rules,
        "decided_by": failed or [rule["name"] for rule in rules],
        "worst": fallen and {key: fallen[key] for key in ("benchmark", "mean", "low", "high")},
        "reasons": [rule["reason"] for rule in rules],
    }


def _rule(settings: GateSettings, d: Mapping[str, Any]) -> dict[str, Any]:
    """The rule for one benchmark, and what it says of this difference."""
    name, margin = d["benchmark"], None
    if name in settings.improve:
        kind, passed = "improve", d["low"] > 0
        says = "it lies above zero, as required" if passed else "it had to lie above zero"
    elif name in settings.retain:
        kind, margin = "retain", settings.retain[name]
        passed = d["low"] > -margin
        says = f"it {'lies above' if passed else 'had to lie above'} minus the margin of {margin:.3f}{', not inferior' if passed else ''}"
    else:
        kind, margin = "tolerate", settings.tolerate
        passed = d["mean"] >= -margin
        says = f"{'no fall beyond' if passed else 'it fell by more than'} the tolerated {margin:.3f}"
    seen = f"pass@1 of {settings.candidate} minus {settings.against} is {d['mean']:+.3f}, 95 % interval {d['low']:+.3f} to {d['high']:+.3f}"
    return {"name": f"{kind} {name}", "margin": margin, "passed": passed, "reason": f"{name}: {seen}; {says}."}
