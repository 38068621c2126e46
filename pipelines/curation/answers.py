"""The audit: a gold answer that its own verifier does not accept can never be rewarded, so the row teaches nothing.

Such rows are wrong labels ("see proof"), answers the verifier cannot read, or programs that fail their own tests.
"""

from __future__ import annotations

from pipelines import verifiers
from pipelines.curation.steps import Inputs
from pipelines.errors import InfrastructureError
from pipelines.records import Dropped, Outcome, Problem


def audit(problems: list[Problem], inputs: Inputs) -> tuple[list[Problem], list[Dropped]]:
    """Drop rows whose gold does not verify against itself, as `gold_<outcome>`, or cannot be judged, as `gold_unjudgeable`.

    Raises:
        InfrastructureError: a verifier could not run on this machine, so nothing can be said of the row.
    """
    kept, dropped = [], []
    for problem, verdict in zip(problems, verifiers.audit_batch(problems), strict=True):
        if verdict.outcome is Outcome.INFRASTRUCTURE and verdict.detail.startswith(f"problem {problem.problem_id}:"):
            # the verifier blames the row's own arguments, not the machine: one row never ends a run of many
            dropped.append(Dropped(problem, "audit", "gold_unjudgeable", verdict.detail))
            continue
        if verdict.outcome is Outcome.INFRASTRUCTURE:
            raise InfrastructureError(f"curation: the audit of {problem.source} {problem.source_id} could not run: {verdict.detail}")
        if verdict.correct:
            kept.append(problem)
        else:
            because = f": {verdict.detail}" if verdict.detail else ""
            detail = f"the verifier '{problem.verifier}' does not accept {problem.answer[:200]!r} as its own answer{because}"
            dropped.append(Dropped(problem, "audit", f"gold_{verdict.outcome}", detail))
    return kept, dropped
