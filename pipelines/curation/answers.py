"""The audit: a gold answer that its own verifier does not accept can never be rewarded, so the row teaches nothing.

Such rows are wrong labels ("see proof"), answers the verifier cannot read, or programs that fail their own tests.
"""

from __future__ import annotations

from pipelines import verifiers
from pipelines.curation.steps import Apply, Batch, Inputs, Passed, Rows
from pipelines.errors import InfrastructureError
from pipelines.records import Outcome


def audit(rows: Rows, inputs: Inputs) -> Apply:
    """Drop rows whose gold does not verify against itself, as `gold_<outcome>`, or cannot be judged, as `gold_unjudgeable`.

    Raises:
        InfrastructureError: a verifier could not run on this machine, so nothing can be said of the row.
    """
    return _audited


def _audited(batch: Batch) -> Passed:
    refused = {}
    for place, (problem, verdict) in enumerate(zip(batch.problems, verifiers.audit_batch(batch.problems), strict=True)):
        if verdict.outcome is Outcome.INFRASTRUCTURE and verdict.detail.startswith(f"problem {problem.problem_id}:"):
            # the verifier blames the row's own arguments, not the machine: one row never ends a run of many
            refused[place] = "gold_unjudgeable", verdict.detail
        elif verdict.outcome is Outcome.INFRASTRUCTURE:
            raise InfrastructureError(f"curation: the audit of {problem.source} {problem.source_id} could not run: {verdict.detail}")
        elif not verdict.correct:
            because = f": {verdict.detail}" if verdict.detail else ""
            detail = f"the verifier '{problem.verifier}' does not accept {problem.answer[:200]!r} as its own answer{because}"
            refused[place] = f"gold_{verdict.outcome}", detail
    return Passed(refused)
