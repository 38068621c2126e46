"""From raw rows to rows worth training on, every missing one with a reason.

`curate` runs the steps that params name, in that order, and keeps the account: kept + dropped = input at every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.config.curation import CurationSettings
from pipelines.curation.answers import audit
from pipelines.curation.decontamination import decontaminate
from pipelines.curation.deduplication import exact_dedup
from pipelines.curation.filters import filters
from pipelines.curation.near_duplicates import near_dedup
from pipelines.curation.normalise import normalise
from pipelines.curation.steps import Inputs, Step
from pipelines.records import Dropped, Problem

STEPS: dict[str, Step] = {
    "normalise": normalise,
    "filters": filters,
    "exact_dedup": exact_dedup,
    "near_dedup": near_dedup,
    "decontaminate": decontaminate,
    "audit": audit,
}
"""Name in `curation.steps` of params.yaml -> step."""


@dataclass(frozen=True)
class Curated:
    """Kept rows by problem id, dropped rows in the order of the steps, and per step {step, input, kept, dropped, reasons, sources}."""

    kept: list[Problem]
    dropped: list[Dropped]
    ledger: list[dict[str, Any]]


def curate(
    problems: Iterable[Problem], benchmarks: Mapping[str, list[Problem]], settings: CurationSettings, *, known: Iterable[Problem] = ()
) -> Curated:
    """Run `settings.steps` over `problems`; the result does not depend on their order.

    Raises:
        UserError: the audit cannot run on this machine.
        AssertionError: a step lost or invented a row, which is a bug.
    """
    inputs = Inputs(settings, dict(benchmarks), tuple(known))
    kept, dropped, ledger = sorted(problems, key=_order), [], []
    for name in settings.steps:
        before = len(kept)
        kept, refused = STEPS[name](kept, inputs)
        if len(kept) + len(refused) != before:
            raise AssertionError(f"curation step '{name}': {before} rows went in, {len(kept)} kept and {len(refused)} dropped came out")
        refused.sort(key=lambda row: _order(row.problem))
        dropped += refused
        ledger.append(_account(name, before, kept, refused))
    return Curated(sorted(kept, key=_order), dropped, ledger)


def _order(problem: Problem) -> tuple[str, ...]:
    """A total order: rows that tie here are the same row."""
    return (problem.problem_id, problem.source, problem.source_id, problem.answer, problem.solution or "", problem.prompt, problem.verifier_args)


def _account(name: str, before: int, kept: list[Problem], refused: list[Dropped]) -> dict[str, Any]:
    return {
        "step": name,
        "input": before,
        "kept": len(kept),
        "dropped": len(refused),
        "reasons": dict(sorted(Counter(row.reason for row in refused).items())),
        "sources": dict(sorted(Counter(problem.source for problem in kept).items())),
    }
